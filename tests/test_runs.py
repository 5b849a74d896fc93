from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bsnn_cli import load_run
from bsnn_cli.datasets.data import load
from bsnn_cli.errors import Interrupted, RunDirectoryError, RunLockedError
from bsnn_cli.networks import native
from bsnn_cli.networks.training import evaluate, train
from bsnn_cli.runs import checkpoint, runner
from bsnn_cli.runs.directory import RunDirectory, read_config
from bsnn_cli.runs.interruption import StopFlag
from bsnn_cli.runs.listing import chosen, shown
from bsnn_cli.runs.loading import load_all
from bsnn_cli.runs.rerun import repeat
from bsnn_cli.runs.runner import Session, prepare, run
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve


def small(tmp_path: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        dataset=DatasetConfig(kind="digits"),
        model=ModelConfig(depth=2, width=8, norm="batch"),
        optim=OptimConfig(epochs=1, lr=0.05),
        output_root=str(tmp_path),
        device="cpu",
        progress=False,
    )
    return prepare(resolve(dataclasses.replace(config, **changes)))


def test_load_run_gives_the_network_that_was_trained(tmp_path: Path) -> None:
    config = small(tmp_path)
    [result] = run([config])
    network = load_run(run_directory(config))
    assert not network.training
    digits = load(config.dataset, progress=False)
    with torch.no_grad():
        predicted = network(digits.standardise(digits.test.images)).argmax(1)
    accuracy = 100 * (predicted == digits.test.labels).double().mean().item()
    assert accuracy == pytest.approx(result.test_accuracy)


@pytest.mark.parametrize(
    ("activation", "model", "reason"),
    [
        (ActivationConfig(name="gelu_exact"), {}, "the fast kernels have no code for the activation gelu_exact"),
        (ActivationConfig(name="selu"), {"norm": "layer"}, "a fleet does not cover this network"),
        (ActivationConfig(name="selu", gpn=True, separation=0.3), {}, None),
        (ActivationConfig(name="tanh", gpn=True, separation=0.3), {}, None),
    ],
)
def test_a_run_says_once_why_it_is_slow(
    activation: ActivationConfig,
    model: dict[str, str],
    reason: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if shutil.which(native.compiler()) is None:
        pytest.skip("no C compiler on this machine")
    run([small(tmp_path, activation=activation, model=ModelConfig(depth=200, width=4, **model))])
    output = capsys.readouterr().err
    assert output.count("this trains more slowly than usual: ") == (reason is not None)
    assert reason is None or reason in output


def test_load_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"config\.yaml"):
        load_run(tmp_path)
    config = small(tmp_path)
    config.checkpoint.keep = "none"
    run([config])
    with pytest.raises(RunDirectoryError, match=r"weights\.pt"):
        load_run(run_directory(config))


def test_load_all_has_a_row_for_every_run_with_options_and_results(tmp_path: Path) -> None:
    run([small(tmp_path)])
    unfinished = small(tmp_path, seed=1)
    directory = RunDirectory(run_directory(unfinished))
    with directory.lock():
        directory.claim(unfinished)
    table = load_all(tmp_path).set_index("seed")
    assert table.loc[[0, 1], "status"].tolist() == ["done", "interrupted"]
    assert table.loc[0, "model.width"] == 8
    assert table.loc[0, "protocol"] == "model.depth=2, model.width=8, optim.lr=0.05, optim.epochs=1"
    assert table.loc[0, "test_accuracy"] > 10
    assert pd.isna(table.loc[1, "test_accuracy"])
    assert table["epoch"].tolist() == [1, 0]


def test_validation_of_an_older_result_is_that_of_its_last_epoch(tmp_path: Path) -> None:
    dataset, optim = DatasetConfig(kind="digits", validation=0.2), OptimConfig(epochs=2, lr=0.05)
    config = small(tmp_path, dataset=dataset, optim=optim)
    [result] = run([config])
    directory = RunDirectory(run_directory(config))
    epochs = pd.read_csv(directory.path / "epochs.csv")
    accuracy, loss = result.validation_accuracy, result.validation_loss
    assert [accuracy, loss] == list(epochs[["validation_accuracy", "validation_loss"]].iloc[-1])
    assert accuracy != epochs["validation_accuracy"].iloc[0]
    path = directory.path / "result.json"
    older = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("validation")}
    path.write_text(json.dumps(older))
    assert directory.result() == result
    assert repeat(directory.path).endswith("identical, metrics and weights")
    [row] = load_all(tmp_path).to_dict("records")
    assert (row["validation_accuracy"], row["validation_loss"]) == (accuracy, loss)
    listed = shown(chosen(str(tmp_path), sort="-validation_accuracy"))
    assert list(listed["validation_accuracy"]) == [accuracy]
    path.write_text(json.dumps(older | {"status": "diverged"}))
    assert load_all(tmp_path)["validation_accuracy"].isna().all()
    path.unlink()  # a run that is going on is listed with its last epoch
    assert load_all(tmp_path)["validation_accuracy"].isna().all()
    assert list(shown(chosen(str(tmp_path)))["validation_accuracy"]) == [accuracy]
    path.write_text(json.dumps(older))
    (directory.path / "epochs.csv").unlink()
    assert load_all(tmp_path)["validation_accuracy"].isna().all()


def test_an_unreadable_run_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([small(tmp_path)])
    broken = small(tmp_path, seed=1)
    run([broken])
    (run_directory(broken) / "config.yaml").write_text("model: {depth: many}")
    assert load_all(tmp_path)["seed"].tolist() == [0]
    assert str(run_directory(broken)) in capsys.readouterr().err


def test_configs_of_earlier_versions_take_the_defaults_of_new_options(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {depth: 7}\nseed: 3\n")
    config = read_config(path)
    assert (config.model.depth, config.model.width, config.seed) == (7, 500, 3)


def test_status_follows_the_files(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.lock():
        assert directory.status() == "running"
        with pytest.raises(RunLockedError), RunDirectory(tmp_path / "run").lock():
            pass
    assert directory.status() == "interrupted"
    directory.fail("it broke", "trace")
    assert directory.status() == "failed"


def test_a_failure_is_recorded_with_its_traceback_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr("bsnn_cli.runs.runner.train", broken)
        with pytest.raises(RuntimeError):
            run([config])
    content = json.loads((run_directory(config) / "failed.json").read_text())
    assert "no more memory" in content["error"]
    assert "in broken" in content["traceback"]
    assert "no more memory" in shown(chosen(str(tmp_path), "failed"), ["error"])["error"][0]
    run([config])
    assert not (run_directory(config) / "failed.json").exists()
    assert RunDirectory(run_directory(config)).status() == "done"


def test_evaluation_counts_every_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split is larger than a batch of the evaluation and not a multiple of it."""
    from bsnn_cli.networks import building

    config = small(tmp_path)
    digits = load(config.dataset, progress=False)
    fleet = building.trainer([config], digits.shape, digits.classes)

    def result() -> float:
        ticks = evaluate(fleet, digits, digits.train)
        while True:
            try:
                next(ticks)
            except StopIteration as end:
                return end.value[0].loss

    whole = result()
    monkeypatch.setattr("bsnn_cli.networks.training.EVALUATION_BATCH", 97)
    assert result() == pytest.approx(whole, rel=1e-5)


def fleet_of_three(tmp_path: Path) -> list[TrainConfig]:
    """Two that train and, between them, one that diverges in its first epoch."""
    runs = [small(tmp_path, seed=seed) for seed in range(3)]
    for config in runs:
        config.model.weights, config.model.norm, config.optim.epochs = "free", "none", 4
    runs[1].optim.lr = 1e30
    return runs


def test_runs_of_one_fleet_leave_what_each_would_leave_alone(tmp_path: Path) -> None:
    together, alone = fleet_of_three(tmp_path / "together"), fleet_of_three(tmp_path / "alone")
    results = run(together)
    assert [result.status for result in results] == ["done", "diverged", "done"]
    for config, lone, result in zip(together, alone, results, strict=True):
        [expected] = run([lone])
        assert run_directory(config).parts[-3:] == run_directory(lone).parts[-3:]
        assert result.steps == expected.steps
        assert (result.diverged_epoch, result.diverged_step) == (expected.diverged_epoch, expected.diverged_step)
        assert result.test_accuracy == pytest.approx(expected.test_accuracy)
        files = [{path.name for path in run_directory(each).iterdir()} for each in (config, lone)]
        assert files[0] == files[1]


def stop_at(step: int, configs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and send a signal after so many updates and batches of evaluations."""

    def signalled(*arguments: object, **options: object) -> Iterator[object]:
        for tick, event in enumerate(train(*arguments, **options)):  # type: ignore[arg-type]
            if tick == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    with monkeypatch.context() as patch:
        patch.setattr("bsnn_cli.runs.runner.train", signalled)
        with pytest.raises(Interrupted):
            run(configs)


def digests(configs: list[TrainConfig]) -> list[str]:
    """Of the weights of runs."""
    return [checkpoint.digest(checkpoint.load(run_directory(config) / "weights.pt")) for config in configs]


def test_an_interrupted_fleet_goes_on_with_those_that_had_diverged_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, broken = fleet_of_three(tmp_path / "straight"), fleet_of_three(tmp_path / "broken")
    expected = run(straight)
    stop_at(60, broken, monkeypatch)
    assert [RunDirectory(run_directory(config)).status() for config in broken] == ["interrupted"] * 3
    results = run(broken)
    assert "resuming after 2 epochs" in capsys.readouterr().err
    for result, reference in zip(results, expected, strict=True):
        assert dataclasses.replace(result, elapsed_s=0) == dataclasses.replace(reference, elapsed_s=0)
    assert digests(broken) == digests(straight)


def test_runs_that_stand_at_different_steps_go_on_in_fleets_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One has not been begun, two have been stopped after four steps and one after ten."""
    straight, broken = ([small(tmp_path / name, seed=seed) for seed in range(4)] for name in ("straight", "broken"))
    expected = [result for part in (straight[:1], straight[1:3], straight[3:]) for result in run(part)]
    stop_at(3, broken[1:3], monkeypatch)
    stop_at(9, broken[3:], monkeypatch)
    results = run(broken)
    resumed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming")]
    assert [line.partition("(")[2] for line in resumed] == ["4 steps)", "10 steps)"]
    for result, reference in zip(results, expected, strict=True):
        assert dataclasses.replace(result, elapsed_s=0) == dataclasses.replace(reference, elapsed_s=0)
    assert digests(broken) == digests(straight)


def test_a_fleet_that_goes_on_keeps_no_checkpoint_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, work, loaded, kept = checkpoint.load, runner.work, [], []

    def remembered(path: Path) -> dict[str, Any]:
        state = load(path)
        loaded.append(weakref.ref(state["tensors"]["hidden.weight"]))
        return state

    def counted(session: Session, stop: StopFlag) -> None:
        kept.extend(tensor() is not None for tensor in loaded)
        work(session, stop)

    configs = [small(tmp_path, seed=seed) for seed in range(2)]
    stop_at(3, configs, monkeypatch)
    monkeypatch.setattr(checkpoint, "load", remembered)
    monkeypatch.setattr(runner, "work", counted)
    run(configs)
    assert kept == [False, False]


def test_runs_that_cannot_be_begun_are_left_out_of_a_fleet_and_named(tmp_path: Path) -> None:
    """Another process is at one, one directory holds another run, the checkpoint of one is damaged; two are fine."""
    configs = [small(tmp_path, seed=seed) for seed in range(5)]
    free, taken, foreign, damaged, free_too = (RunDirectory(run_directory(config)) for config in configs)
    with foreign.lock(), damaged.lock():
        foreign.claim(dataclasses.replace(configs[2], seed=7))
        (damaged.path / "checkpoint.pt").touch()
    with taken.lock(), pytest.raises(RunLockedError) as raised:
        run(configs)
    lines = str(raised.value).splitlines()
    assert all(each.path.name in line for each, line in zip((taken, foreign, damaged), lines, strict=True))
    assert [each.status() for each in (free, free_too)] == ["done", "done"]
    assert [each.status() for each in (taken, foreign, damaged)] == ["interrupted", "interrupted", "failed"]
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run(configs[2:3])


@pytest.mark.parametrize(("seconds", "until_next"), [(0.5, 60), (3, 150)])
def test_saving_takes_at_most_a_fiftieth_of_the_time(
    seconds: float, until_next: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default a minute lies between two saves, and more where they are slow."""
    now = [1000.0]
    next_saves = []

    def slow(*_: object) -> None:
        now[0] += seconds

    def stop(session: Session, _: object) -> None:
        session.save()
        next_saves.append(session.save_again_at - now[0])
        raise Interrupted(signal.SIGTERM, "enough")

    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "rotate", slow)
    monkeypatch.setattr(runner, "work", stop)
    with pytest.raises(Interrupted):
        run([small(tmp_path)])
    assert next_saves == [until_next]
