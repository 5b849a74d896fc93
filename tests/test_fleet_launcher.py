"""`hydra/launcher=fleet`: grouping, the command in real processes, and the memory of a GPU that is too small."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bsnn_cli.networks import building, memory
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.memory import training_bytes
from bsnn_cli.runs import checkpoint, runner
from bsnn_cli.runs.checkpoint import CURRENT
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.runs.fleet_launcher import MEMBER_KEYS, fleets
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve
from tests.conftest import SMALL, Answer, run_bsnn, small


def config(name: str = "selu", seed: int = 0, **optim: Any) -> TrainConfig:
    return resolve(
        TrainConfig(
            activation=ActivationConfig(name=name),
            dataset=DatasetConfig(kind="digits"),
            model=ModelConfig(depth=2, width=8),
            optim=OptimConfig(epochs=1, **optim),
            seed=seed,
            progress=False,
        )
    )


def test_activations_seeds_and_learning_rates_share_a_fleet_in_contiguous_groups() -> None:
    runs = [config("tanh"), config("selu", clip=1.0), config("tanh", seed=1, lr=0.1), config("selu", weight_decay=0.1)]
    [fleet] = fleets(runs, networks=24, memory=1e12)
    assert [run.activation.name for run in fleet] == ["selu", "selu", "tanh", "tanh"]


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(config(), model=ModelConfig(depth=3, width=8)),
        dataclasses.replace(config(), model=ModelConfig(depth=2, width=8, norm="batch")),
        config(momentum=0.9),
        config(kind="adamw"),
        config(schedule="cosine"),
        config(batch_size=32),
        dataclasses.replace(config(), output_root="elsewhere"),
    ],
)
def test_what_does_not_fit_together_is_trained_apart(other: TrainConfig) -> None:
    assert len(fleets([config(), other], networks=24, memory=1e12)) == 2
    assert MEMBER_KEYS  # what may differ is tested above


def test_fleets_are_no_larger_than_asked_and_than_the_memory() -> None:
    runs = [config(seed=seed) for seed in range(10)]
    each = training_bytes(runs[0])
    assert [len(fleet) for fleet in fleets(runs, networks=4, memory=1e12)] == [4, 4, 2]
    assert [len(fleet) for fleet in fleets(runs, networks=24, memory=6.5 * each)] == [6, 4]
    assert [len(fleet) for fleet in fleets(runs[:2], networks=24, memory=0)] == [1, 1]


def test_the_size_of_a_network_is_that_of_its_tensors() -> None:
    run = TrainConfig(model=ModelConfig(depth=200, width=500))
    assert training_bytes(run) == pytest.approx(2 * 200e6 + 1002 * 64 * 500 * 4)
    run.optim.kind = "adamw"
    assert training_bytes(run) == pytest.approx(3 * 200e6 + 1002 * 64 * 500 * 4)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_networks_of_a_fleet_have_rates_decays_and_limits_of_their_own(kind: str, tmp_path: Path) -> None:
    settings = [{"lr": 1e-3}, {"lr": 1e-2, "weight_decay": 0.1}, {"lr": 1e-2, "weight_decay": 0.1, "clip": 0.1}]
    runs = [config(kind=kind, schedule="cosine", warmup=0.5, **values) for values in settings]

    def results(root: str, groups: list[list[TrainConfig]]) -> list[RunResult]:
        placed = [[dataclasses.replace(run, output_root=str(tmp_path / root)) for run in group] for group in groups]
        return [result for group in placed for result in runner.run(group)]

    alone, together = results("alone", [[run] for run in runs]), results("together", fleets(runs, 24, 1e12))
    assert [result.networks for result in together] == [3] * 3
    losses = [result.test_loss for result in alone]
    assert [result.test_loss for result in together] == pytest.approx(losses, rel=1e-4)
    assert len({round(loss or 0, 3) for loss in losses}) == 3


def test_a_sweep_of_optimisers_says_what_is_trained_apart(tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith("optim.lr")]
    varied = ["optim=sgd,adamw", "optim.lr=1e-3,1e-2", "optim.clip=null,1"]
    result = run_bsnn("train", "-m", *words, *varied, "hydra/launcher=fleet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runs that differ in optim.kind are trained in different fleets" in result.stderr
    results = [RunDirectory(path).result() for path in tmp_path.glob("outputs/runs/*/*/*")]
    assert [result.networks for result in results if result is not None] == [4] * 8


def test_a_sweep_as_a_fleet_leaves_the_runs_of_a_plain_sweep(tmp_path: Path) -> None:
    kept = ["checkpoint.every_s=0", "checkpoint.keep=all"]
    sweep = ["train", "-m", "activation=tanh_gpn,selu,selu_gpn", "optim.lr=0.01,0.02", *SMALL[:-1], *kept]
    roots = [tmp_path / "fleet", tmp_path / "alone"]
    for root in roots:
        root.mkdir()
    fleet = run_bsnn(*sweep, "hydra/launcher=fleet", cwd=roots[0])
    assert fleet.returncode == 0, fleet.stderr
    assert "6 runs: 6 done" in fleet.stdout
    found = {path.relative_to(roots[0]): path for path in roots[0].glob("outputs/runs/*/*/*")}
    assert len(found) == 6
    assert run_bsnn("train", *small("optim.lr=0.02"), *kept, "activation=selu_gpn", cwd=roots[1]).returncode == 0
    [lone] = roots[1].glob("outputs/runs/*/*/*")
    same = found[lone.relative_to(roots[1])]
    ours, expected = (json.loads((path / "result.json").read_text()) for path in (same, lone))
    for key in ("status", "steps", "activation", "test_accuracy"):
        assert ours[key] == expected[key]
    assert ours["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    for name in ("weights.pt", CURRENT):  # the newest checkpoint may be one with fewer records
        assert (same / name).stat().st_size == pytest.approx((lone / name).stat().st_size, abs=1000)
    again = run_bsnn(*sweep, "hydra/launcher=fleet", cwd=roots[0])
    assert "6 runs: 6 finished" in again.stdout


def test_a_run_that_is_taken_or_cannot_be_written_costs_a_fleet_no_other(
    tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    assert bsnn("train", *SMALL, "seed=0").returncode == 0
    [first] = tmp_path.glob("outputs/runs/*/*/*")
    blocked, taken, free = (first.with_name(first.name.replace("-s0", f"-s{seed}")) for seed in (1, 2, 3))
    blocked.touch()
    with RunDirectory(taken).lock():
        answer = bsnn("train", "-m", "hydra/launcher=fleet", *SMALL, "seed=0,1,2,3")
    assert answer.returncode == 1
    assert "4 runs: 2 done, 1 running, 1 not finished" in answer.stdout
    assert "2 of 4 runs are finished" in answer.stderr
    assert not (taken / "failed.json").exists()
    errors = [line for line in (taken / "log.txt").read_text().splitlines() if line.startswith("error: ")]
    assert all(path.name in line for path, line in zip((blocked, taken), errors, strict=True))
    assert RunDirectory(free).status() == "done"


def test_networks_that_do_not_fit_a_gpu_together_are_trained_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    class SmallGpu(Fleet):
        def __init__(self, model: ModelConfig, members: list[object], **options: object) -> None:
            sizes.append(len(members))
            if len(members) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(model, members, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "Fleet", SmallGpu)
    runs = [dataclasses.replace(config(seed=seed), output_root=str(tmp_path)) for seed in range(5)]
    assert [result.status for result in runner.run(runs)] == ["done"] * 5
    assert sizes == [5, 2, 3, 1, 2]
    assert all((run_directory(run) / "result.json").exists() for run in runs)


def test_a_fleet_that_runs_out_of_memory_in_mid_training_goes_on_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its last checkpoint, with the networks that halves trained from the start would have given."""

    class SmallGpu(Fleet):
        def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if len(self.members) > 2 and self.steps[0] == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(inputs, labels)

    straight, broken = (
        [dataclasses.replace(config(seed=seed), output_root=str(tmp_path / name)) for seed in range(3)]
        for name in ("straight", "broken")
    )
    expected = [*runner.run(straight[:1]), *runner.run(straight[1:])]
    monkeypatch.setattr(building, "Fleet", SmallGpu)
    monkeypatch.setattr(runner, "SAVING_SHARE", math.inf)
    for one in broken:
        one.checkpoint.every_s = 0
    results = runner.run(broken)
    assert capsys.readouterr().err.count("(5 steps)") == 2
    assert [result.networks for result in results] == [1, 2, 2]
    for ours, theirs, result, reference in zip(broken, straight, results, expected, strict=True):
        assert (result.status, result.steps) == ("done", reference.steps)
        assert result.train_loss == pytest.approx(reference.train_loss, rel=1e-5)
        weights, others = (checkpoint.load(run_directory(run) / "weights.pt") for run in (ours, theirs))
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-6)


def test_fleets_are_no_larger_than_the_free_memory_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Counting(Fleet):
        def __init__(self, model: ModelConfig, members: list[object], **options: object) -> None:
            sizes.append(len(members))
            super().__init__(model, members, **options)  # type: ignore[arg-type]

    runs = [dataclasses.replace(config(seed=seed), output_root=str(tmp_path)) for seed in range(5)]
    one = memory.training_bytes(runs[0])
    monkeypatch.setattr(building, "Fleet", Counting)
    monkeypatch.setattr(runner, "free_bytes", lambda _: 2.6 * one)
    assert [result.status for result in runner.run(runs)] == ["done"] * 5
    assert sizes == [2, 2, 1]
