"""The progress of many runs, of hand-made directories and of real sweeps."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bsnn_cli.runs import watch
from bsnn_cli.runs.watch import Watch
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve
from tests.conftest import SMALL, Answer, run_bsnn, small

RESULT = {
    "status": "done", "train_accuracy": 96.0, "test_accuracy": 95.5, "train_loss": 0.1, "test_loss": 0.2, "epochs": 4,
    "steps": 92, "elapsed_s": 75.0, "activation": "selu", "gpn": True, "root": "upper", "norm": "none",
    "batch_norm": False, "dataset": "digits", "depth": 3, "width": 12, "weights": "unit_rows", "seed": 0,
    "parameters": 1342,
}  # fmt: skip


def runs(root: Path, *lrs: float) -> tuple[list[TrainConfig], list[Path]]:
    configs = []
    for lr in lrs:
        config = TrainConfig(output_root=str(root))
        config.dataset.kind, config.optim.epochs, config.optim.lr = "digits", 4, lr
        configs.append(resolve(config))
    directories = [run_directory(config) for config in configs]
    for directory in directories:
        directory.mkdir(parents=True)
    return configs, directories


def write_epochs(directory: Path, *losses: float) -> None:
    rows = [f"{epoch},{loss}" for epoch, loss in enumerate(losses, 1)]
    (directory / "epochs.csv").write_text("\n".join(["epoch,train_loss", *rows, ""]))


def test_it_counts_and_names_what_is_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    configs, (first, second, third, fourth) = runs(tmp_path, 0.1, 0.2, 0.3, 0.4)
    running = {first, second}
    state = Watch(configs, [first, second, third, fourth], running.__contains__, afresh=True)
    assert state.line().startswith("0/4 done; selu_gpn optim.lr=0.1 s0: epoch 0/4; selu_gpn optim.lr=0.2 s0: epoch 0/4")

    write_epochs(first, 2.1, 1.25)
    (second / "result.json").write_text(json.dumps(RESULT))
    (third / "failed.json").write_text(json.dumps({"error": "no", "traceback": ""}))
    now = 160.0
    assert state.look() == [
        f"1/4 selu_gpn optim.lr=0.2 s0: test 95.50 %, 75 s; {second}",
        f"2/4 selu_gpn optim.lr=0.3 s0: failed; see {third}/log.txt",
    ]
    # 10 epochs have gone in a minute: 2 of the first, and 4 each of those that have ended. 6 are left.
    expected = "1/4 done, 1 failed; selu_gpn optim.lr=0.1 s0: epoch 2/4, loss 1.25; 36 s left"
    assert state.line() == f"{expected}; log: {first}/log.txt"

    diverged = RESULT | {"status": "diverged", "test_accuracy": None, "diverged_epoch": 3, "diverged_step": 60}
    (first / "result.json").write_text(json.dumps(diverged))
    assert state.look() == [f"3/4 selu_gpn optim.lr=0.1 s0: diverged in epoch 3, 75 s; {first}"]
    assert state.line() == "1/4 done, 1 diverged, 1 failed; nothing is running"


def test_what_an_earlier_attempt_has_left_does_not_count(tmp_path: Path) -> None:
    configs, directories = runs(tmp_path, 0.1, 0.2)
    configs[0].force = True
    write_epochs(directories[0], 2.0, 1.0, 0.5, 0.25)
    (directories[0] / "result.json").write_text(json.dumps(RESULT))
    write_epochs(directories[1], 2.0)  # to be resumed
    (directories[1] / "failed.json").write_text(json.dumps({"error": "no", "traceback": ""}))
    afresh = Watch(configs, directories, lambda _: False, afresh=True)
    assert [(state.status, state.epoch) for state in afresh.states] == [("waiting", 0), ("waiting", 1)]
    later = Watch(configs, directories, lambda _: False)
    assert [state.status for state in later.states] == ["done", "failed"]


def test_what_cannot_be_read_stops_no_sweep(tmp_path: Path) -> None:
    configs, (damaged, absent) = runs(tmp_path, 0.1, 0.2)
    state = Watch(configs, [damaged, absent], lambda _: True, afresh=True)
    (damaged / "result.json").write_text("{")
    absent.rmdir()
    [line] = state.look()
    assert line == f"1/2 selu_gpn optim.lr=0.1 s0: cannot be read (JSONDecodeError); see {damaged}"
    assert state.line().startswith("0/2 done, 1 failed; selu_gpn optim.lr=0.2 s0: epoch 0/4")


@pytest.mark.parametrize("engine", ["basic", "fleet", "joblib"])
def test_a_log_of_a_sweep_has_a_line_for_each_run_that_ends(engine: str, tmp_path: Path) -> None:
    sweep = ["train", "-m", f"hydra/launcher={engine}", *small("optim.lr=0.01,1e30")]
    for again in ([], ["force=true"])[: 2 if engine == "fleet" else 1]:
        result = run_bsnn(*sweep, *again, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = sorted(line.split(" ", 1)[1] for line in result.stderr.splitlines())
        done = r"selu_gpn optim.lr=0.01 s0: test \d+\.\d\d %, \d+ s; outputs/runs/digits/selu_gpn/\w+-s0"
        assert re.fullmatch(done, lines[0])
        assert re.fullmatch(r"selu_gpn optim.lr=1e\+30 s0: diverged in epoch 1, .*", lines[1])
        assert [line.split(" ")[0] for line in result.stderr.splitlines()] == ["1/2", "2/2"]


def test_runs_are_watched_from_elsewhere(bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *SMALL).returncode == 0
    assert bsnn("runs", "watch=true", "dataset=digits") == Answer(0, "1/1 done\n", "")
    for argument, told in (
        ("output_root=none", "there is no such run to watch"),
        ("model.depth=7", "no run; there is only 3"),
    ):
        answer = bsnn("runs", "watch=true", argument)
        assert answer == Answer(2, "", f"error: {argument}: {told}\n")


def test_configs_are_told_apart_by_what_is_varied(tmp_path: Path) -> None:
    configs, _ = runs(tmp_path, 0.1, 0.2)
    assert watch.names(configs) == ["selu_gpn optim.lr=0.1 s0", "selu_gpn optim.lr=0.2 s0"]
    assert watch.names(configs[:1]) == ["selu_gpn s0"]
    other = dataclasses.replace(configs[0], dataset=dataclasses.replace(configs[0].dataset, kind="mnist", name="mnist"))
    assert watch.names([configs[0], other]) == ["selu_gpn dataset.name=digits s0", "selu_gpn dataset.name=mnist s0"]
