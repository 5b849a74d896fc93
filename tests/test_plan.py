from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bsnn_cli.common.files import write_json
from bsnn_cli.common.terminal import duration
from bsnn_cli.runs import checkpoint, estimate, plan
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.estimate import Estimate, Estimator
from bsnn_cli.settings.config import DatasetConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve
from tests.conftest import SMALL, Answer, small


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Three runs: the first of them is finished as far as the plan can see, the second has done 3 of 4 epochs."""
    monkeypatch.chdir(tmp_path)
    runs = [
        resolve(
            TrainConfig(
                dataset=DatasetConfig(kind="digits", root="data"),
                model=ModelConfig(depth=2, width=10),
                optim=OptimConfig(epochs=4),
                seed=seed,
            )
        )
        for seed in range(3)
    ]
    for config in runs:
        run_directory(config).mkdir(parents=True)
    checkpoint.rotate(run_directory(runs[1]), {"epoch": 2})
    checkpoint.rotate(run_directory(runs[1]), {"epoch": 3})
    monkeypatch.setattr(RunDirectory, "result", lambda self: True if self.path.name.endswith("s0") else None)
    monkeypatch.setattr(
        RunDirectory, "status", lambda self: "failed" if self.path.name.endswith("s2") else "interrupted"
    )
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(1.0, 0.5, 2.0))
    return runs


def test_the_plan_tells_what_is_done_from_what_is_not(configs: list[TrainConfig]) -> None:
    assert plan.summary(configs) == "3 runs: 1 finished, 1 to resume, 1 to run"
    table, total = plan.preview(configs).split("3 runs: ")
    finished, resumed, missing = [line.split() for line in table.splitlines()[1:]]
    assert finished[3:] == ["finished", str(run_directory(configs[0]))]
    assert resumed[3:7] == ["resume", "at", "epoch", "4"]
    whole = (4 * 1442 + (4 * 355 + 1442) / 3) / 64  # steps of one second
    assert missing[3:7] == ["to", "run", *duration(whole).split()]
    assert resumed[7:9] == duration(whole / 4).split()
    spread = f"({duration(0.625 * whole)} to {duration(2.5 * whole)})"
    assert f"time: about {duration(1.25 * whole)} {spread} of training, one after the other on this machine" in total
    assert "; from a few steps timed now" in total


def test_forced_runs_are_all_run_again(configs: list[TrainConfig]) -> None:
    for config in configs:
        config.force = True
    assert plan.summary(configs) == "3 runs: 3 to run"


def test_evaluations_count_by_the_products_they_take() -> None:
    config = resolve(
        TrainConfig(
            dataset=DatasetConfig(kind="mnist", validation=0.1),
            optim=OptimConfig(epochs=6, batch_size=100),
            eval=EvalConfig(train_every=2),
        )
    )
    trained, evaluated = 6 * 54_000, 6 * (10_000 + 6_000) + 3 * 54_000
    assert estimate.steps_equivalent(config) == pytest.approx((trained + evaluated / 3) / 100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (119, "119 s"), (150, "2.5 min"), (3_000, "50 min"), (9_000, "2.5 h"), (864_000, "10 days")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_network_too_wide_for_the_memory_is_timed_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_WIDTH", 20)
    config = TrainConfig(model=ModelConfig(depth=3, width=2_000_000))
    assert estimate.timed(resolve(config)).low > 1e3


def test_the_table_of_outcomes_names_what_is_varied_and_why_a_run_failed(
    configs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs[2].optim.lr = 0.5
    path = run_directory(configs[2])
    path.mkdir(parents=True)
    write_json(path / "failed.json", {"error": "ValueError: no\nmore", "traceback": ""})
    configs[1].seed = 7
    monkeypatch.setattr(RunDirectory, "result", lambda _: None)
    lines = plan.outcome(configs).splitlines()
    assert lines[0].split() == ["dataset", "activation", "optim.lr", "seed", "outcome", "test", "directory"]
    assert lines[2].split()[2:6] == ["0.0001", "7", "not", "finished"]
    assert lines[4] == "3 runs: 1 failed, 2 not finished"
    assert lines[5] == f"failed: digits selu_gpn 0.5 2: ValueError: no; see {path / 'log.txt'}"


def test_an_experiment_is_a_sweep_whose_values_the_command_line_goes_before(bsnn: Callable[..., Answer]) -> None:
    small = ["dataset=digits", "model.depth=3,4", "model.width=6", "activation.separation=0.95", "dry_run=true"]
    answer = bsnn("train", "experiment=depth_aware", *small)
    assert answer.returncode == 0, answer.stderr
    assert "8 runs: 8 to run" in answer.stdout  # the experiment's four activations, at two depths
    assert answer.stdout.count("lrelu_gpn_d") == 4  # in the table, and in the directory
    assert " 4 " in answer.stdout
    assert " 200 " not in answer.stdout
    unknown = bsnn("train", "experiment=depth_unaware", "dry_run=true")
    assert unknown.returncode == 2
    assert "experiment=depth_unaware: must be one of approaches, depth_aware" in unknown.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    one = bsnn("train", *SMALL, "dry_run=true")
    many = bsnn("train", "-m", *SMALL, "seed=0,1", "dry_run=true")
    assert one.returncode == many.returncode == 0, one.stderr + many.stderr
    assert "1 run: 1 to run" in one.stdout
    assert "2 runs: 2 to run" in many.stdout
    assert "time: about" in many.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_comes_from_stored_runs_of_the_same_shape(bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *SMALL).returncode == 0
    assert bsnn("train", *SMALL, "seed=1").returncode == 0
    runs = list(Path("outputs/runs").glob("*/*/*/result.json"))
    for seconds, path in zip((2.0, 4.0), runs, strict=True):
        write_json(path, json.loads(path.read_text()) | {"elapsed_s": seconds})
    again = bsnn("train", *SMALL, "seed=2", "activation=tanh", "dry_run=true")
    assert "time: about 3 s (2 s to 4 s) of training" in again.stdout
    assert "; from 2 stored runs" in again.stdout
    other = bsnn("train", *small("model.depth=4"), "dry_run=true")
    assert "; from a few steps timed now" in other.stdout


def test_a_damaged_run_tells_nothing_about_times(bsnn: Callable[..., Answer]) -> None:
    for seed in (0, 1):
        assert bsnn("train", *SMALL, f"seed={seed}").returncode == 0
    first, second = sorted(Path("outputs/runs").glob("*/*/*"))
    (first / "config.yaml").write_text("model: [")
    (second / "provenance.json").write_text("{")
    plan_of_it = bsnn("train", *SMALL, "seed=2", "dry_run=true")
    assert plan_of_it.returncode == 0, plan_of_it.stderr
    assert "timed now" in plan_of_it.stdout
    listed = bsnn("runs")
    assert listed.returncode == 0, listed.stderr
    assert f"warning: {first} is left out: {first}/config.yaml: cannot be read as a configuration" in listed.stderr


def test_a_fleet_s_time_is_divided_and_what_was_resumed_tells_nothing(bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *SMALL).returncode == 0
    [path] = Path("outputs/runs").glob("*/*/*/result.json")
    result = json.loads(path.read_text())
    write_json(path, result | {"elapsed_s": 24.0, "networks": 12})
    assert "about 2 s of training" in bsnn("train", *SMALL, "seed=2", "dry_run=true").stdout
    origin = path.with_name("provenance.json")
    write_json(origin, json.loads(origin.read_text()) | {"earlier_sessions": [{}]})
    assert "timed now" in bsnn("train", *SMALL, "seed=2", "dry_run=true").stdout


def test_a_deep_network_s_time_lies_on_the_line_through_two_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {8: (0.9, 1.8, 3.6), 24: (2.5, 5.0, 10.0)}
    monkeypatch.setattr(estimate, "probe", lambda _config, model: seconds[model.depth])
    whole = estimate.timed(resolve(TrainConfig(model=ModelConfig(depth=200))))
    assert (whole.typical, whole.low, whole.high) == pytest.approx((40.2, 20.1, 80.4))
    monkeypatch.setattr(estimate.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(estimate, "stored", lambda _: {})
    estimator = Estimator()
    estimator.step(resolve(TrainConfig(model=ModelConfig(depth=200))))
    assert estimator.source().startswith("from a few steps timed now; this machine is busy (load 99.0 on ")
