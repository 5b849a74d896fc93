"""`bsnn train` end to end, in real processes: results, resumption after a kill, signals, skipping, locking."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from bsnn_cli.runs import checkpoint
from tests.conftest import SMALL, Answer, run_bsnn, small

TIMING = {"elapsed_s"}
"""Columns that are allowed to differ between two runs of the same thing."""

LONG = small("optim.epochs=40", "model.norm=batch", "checkpoint.every_s=0.05", "dataset.validation=0.1")
"""A run of a few seconds that saves itself often and whose state includes batch statistics."""

EAGER = """
from bsnn_cli import cli
from bsnn_cli.runs import runner

runner.SAVING_SHARE = float("inf")
cli.main()
"""
"""The program, but a slow disk does not stretch the interval between checkpoints: a run is sure to make several."""


def run_directory(root: Path) -> Path:
    [path] = root.glob("outputs/runs/*/*/*")
    return path


def metrics(directory: Path) -> list[dict[str, str]]:
    with (directory / "epochs.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]


def assert_same_end(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    ours, theirs = checkpoint.load(one / "weights.pt"), checkpoint.load(other / "weights.pt")
    assert checkpoint.digest(ours) == checkpoint.digest(theirs)


Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `bsnn train` in the test's folder and return at once; what is left is killed at the end of the test."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", EAGER, "train", *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def stop_once(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Stop a run once all is there that a test needs; it is looked at while the run cannot change it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        os.kill(process.pid, signal.SIGSTOP)
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert state.si_code == os.CLD_STOPPED, f"the run ended before all was there: {process.communicate()[1]}"
        if there():
            return
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("it has not come to what the test waits for")


def stop_in_mid_epoch(process: subprocess.Popen[str], root: Path) -> None:
    """Stop the run in `root` with a checkpoint of the middle of an epoch after the second, and the one before that."""

    def saved() -> bool:
        for path in root.glob(f"outputs/runs/*/*/*/{checkpoint.CURRENT}"):  # none while one takes the other's place
            state = checkpoint.load(path)
            return state["epoch"] >= 2 and state["batch"] > 0 and path.with_name(checkpoint.PREVIOUS).exists()
        return False

    stop_once(saved, process)


COSINE = ["optim=adamw", "optim.schedule=cosine", "optim.warmup=2.5", "optim.weight_decay=0.01", "optim.clip=1"]
"""An optimiser with two buffers whose learning rate is another one in every step."""


def kill_in_mid_epoch(process: subprocess.Popen[str], root: Path) -> None:
    stop_in_mid_epoch(process, root)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    result = run_bsnn("train", *LONG, cwd=root)
    assert result.returncode == 0, result.stderr
    return run_directory(root)


def test_adamw_with_a_schedule_goes_on_after_a_kill_and_ends_the_same_to_the_byte(start: Start, tmp_path: Path) -> None:
    whole = run_bsnn("train", *LONG, *COSINE, "output_root=whole/outputs", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "PyTorch's operations make the updates of AdamW" in whole.stderr
    kill_in_mid_epoch(start(*LONG, *COSINE), tmp_path)
    resumed = run_bsnn("train", *LONG, *COSINE, cwd=tmp_path)
    assert "resuming after" in resumed.stderr
    assert_same_end(run_directory(tmp_path), run_directory(tmp_path / "whole"))
    weights = checkpoint.load(run_directory(tmp_path) / "weights.pt")
    assert not [name for name in weights if name.startswith(("momentum.", "second_moment."))]
    rates = [float(row["learning_rate"]) for row in metrics(run_directory(tmp_path))]
    steps = int(metrics(run_directory(tmp_path))[0]["step"])
    warmup = round(2.5 * steps)
    last = [epoch * steps - 1 for epoch in range(1, 41)]
    assert rates[:2] == pytest.approx([0.01 * (step + 1) / (warmup + 1) for step in last[:2]])
    falling = [0.005 * (1 + math.cos(math.pi * (step - warmup) / (40 * steps - warmup))) for step in last[2:]]
    assert rates[2:] == pytest.approx(falling)


def test_a_run_leaves_what_the_contract_says(uninterrupted: Path) -> None:
    assert sorted(path.name for path in uninterrupted.iterdir() if path.name != ".lock") == [
        "config.yaml",
        "epochs.csv",
        "provenance.json",
        "result.json",
        "weights.pt",
    ]
    rows = metrics(uninterrupted)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))
    steps = -(-(1442 - 144) // 64)  # a tenth of the training split is set aside
    assert [int(row["step"]) for row in rows] == [steps * epoch for epoch in range(1, 41)]
    assert [row["train_accuracy"] == "" for row in rows] == [True] * 39 + [False]
    assert all(row["validation_accuracy"] for row in rows)
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["status"] == "done"
    for metric in ("test_accuracy", "validation_accuracy", "validation_loss"):
        assert result[metric] == float(rows[-1][metric])
    assert (result["activation"], result["gpn"], result["root"]) == ("selu", True, "upper")
    assert (result["norm"], result["batch_norm"], result["depth"], result["width"]) == ("batch", True, 3, 12)
    assert result["parameters"] == 64 * 12 + 12 + 3 * (12 * 12 + 2 * 12) + 12 * 10 + 10
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    provenance = json.loads((uninterrupted / "provenance.json").read_text())
    assert provenance["torch"] == torch.__version__
    assert provenance["started"] <= provenance["ended"]


def test_killed_in_the_middle_of_an_epoch_it_ends_the_same_to_the_byte(
    uninterrupted: Path, tmp_path: Path, start: Start
) -> None:
    process = start(*LONG)
    kill_in_mid_epoch(process, tmp_path)
    assert not (run_directory(tmp_path) / "result.json").exists()

    second = run_bsnn("train", *LONG, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    [line] = [line for line in second.stderr.splitlines() if line.startswith("resuming")]
    assert int(line.split("(")[1].split()[0]) > 0, line
    assert_same_end(uninterrupted, run_directory(tmp_path))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_saves_at_the_next_step(
    number: int, code: int, uninterrupted: Path, tmp_path: Path, start: Start, bsnn: Callable[..., Answer]
) -> None:
    arguments = [*LONG[:-2], "checkpoint.every_s=3600", "dataset.validation=0.1"]
    process = start(*arguments)
    stop_once(lambda: any(tmp_path.glob("outputs/runs/*/*/*/epochs.csv")), process)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    assert "the same command goes on" in stderr
    listed = bsnn("runs", "status=interrupted", "format=json")
    assert len(json.loads(listed.stdout)) == 1
    second = bsnn("train", *arguments)
    assert second.returncode == 0, second.stderr
    assert "resuming" in second.stderr
    assert_same_end(uninterrupted, run_directory(tmp_path))


def test_a_damaged_checkpoint_costs_only_the_time_since_the_one_before(
    uninterrupted: Path, tmp_path: Path, start: Start, bsnn: Callable[..., Answer]
) -> None:
    process = start(*LONG)
    kill_in_mid_epoch(process, tmp_path)
    newest = run_directory(tmp_path) / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    second = bsnn("train", *LONG)
    assert second.returncode == 0, second.stderr
    assert f"warning: {newest.relative_to(tmp_path)}" in second.stderr
    assert "resuming" in second.stderr
    assert_same_end(uninterrupted, run_directory(tmp_path))


def test_no_usable_checkpoint_ends_with_1_and_force_starts_over(
    tmp_path: Path, start: Start, bsnn: Callable[..., Answer]
) -> None:
    process = start(*LONG)
    kill_in_mid_epoch(process, tmp_path)
    for path in run_directory(tmp_path).glob("checkpoint*"):
        path.write_bytes(b"")
    second = bsnn("train", *LONG)
    assert second.returncode == 1
    assert "force=true" in second.stderr
    assert "force=true" in bsnn("runs", "status=failed").stdout
    third = bsnn("train", *LONG, "force=true")
    assert third.returncode == 0, third.stderr
    assert not (run_directory(tmp_path) / "failed.json").exists()


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back to what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [1, 2])
def test_twice_the_same_is_the_same_and_another_seed_is_another(
    number: int, tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    for root, seed in (("one", 0), ("two", 0), ("other", 1)):
        result = bsnn("train", *SMALL, f"seed={seed}", f"threads={number}", f"output_root={root}/outputs")
        assert result.returncode == 0
    one, two, other = (run_directory(tmp_path / root) for root in ("one", "two", "other"))
    assert (one / "weights.pt").read_bytes() == (two / "weights.pt").read_bytes()
    assert_same_end(one, two)
    assert metrics(one) != metrics(other)


def test_a_finished_run_is_not_run_again_unless_forced(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    first = bsnn("train", *SMALL)
    directory = run_directory(tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    again = bsnn("train", *SMALL)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert again.stdout == first.stdout
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == written
    forced = bsnn("train", *SMALL, "force=true")
    assert forced.returncode == 0
    assert (directory / "result.json").stat().st_mtime_ns != written["result.json"]


def test_two_processes_never_work_on_one_run(tmp_path: Path, start: Start, bsnn: Callable[..., Answer]) -> None:
    process = start(*LONG)
    stop_in_mid_epoch(process, tmp_path)
    try:
        intruder = bsnn("train", *LONG)
        running = bsnn("runs", "format=json")
    finally:
        process.send_signal(signal.SIGCONT)
    assert intruder.returncode == 1
    assert "wait=true" in intruder.stderr
    assert [row["status"] for row in json.loads(running.stdout)] == ["running"]
    process.communicate()
    assert process.returncode == 0


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *SMALL).returncode == 0
    directory = run_directory(tmp_path)
    (directory / "result.json").unlink()
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace("momentum: 0.5", "momentum: 0.9"))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = bsnn("train", *SMALL)
    assert result.returncode == 2
    assert "another configuration" in result.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_divergence_is_a_result(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    arguments = [
        "dataset=digits",
        "model.depth=3",
        "model.width=12",
        "model.weights=free",
        "optim.lr=1e30",
        "optim.epochs=2",
    ]
    result = bsnn("train", *arguments)
    assert result.returncode == 0, result.stderr
    assert "diverged in epoch 1" in result.stdout
    content = json.loads((run_directory(tmp_path) / "result.json").read_text())
    assert (content["status"], content["diverged_epoch"], content["test_accuracy"]) == ("diverged", 1, None)
    assert content["diverged_step"] == content["steps"] + 1
    weights = checkpoint.load(run_directory(tmp_path) / "weights.pt")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert "diverged" in bsnn("table").stdout


def test_a_small_sweep_fills_its_block_of_the_table(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    from bsnn_cli.settings.choices import PAPER_ACTIVATIONS

    names = [f"{name}{suffix}" for name in PAPER_ACTIVATIONS for suffix in ("", "_gpn")]
    sweep = run_bsnn("train", "-m", "hydra/launcher=fleet", f"activation={','.join(names)}", *SMALL, cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert len(list(tmp_path.glob("outputs/runs/digits/*/*/result.json"))) == 12
    table = bsnn("table")
    assert table.returncode == 0, table.stderr
    with (tmp_path / "outputs" / "tables" / "test_accuracy.csv").open() as file:
        cells = {(row["activation"], row["gpn"]): row for row in csv.DictReader(file) if row["dataset"] == "digits"}
    assert len(cells) == 12
    for path in tmp_path.glob("outputs/runs/digits/*/*/result.json"):
        result = json.loads(path.read_text())
        assert float(cells[result["activation"], str(result["gpn"])]["mean"]) == pytest.approx(result["test_accuracy"])
    assert "model.depth=3, model.width=12" in (tmp_path / "outputs" / "tables" / "test_accuracy.md").read_text()


def test_prune_says_what_it_would_free_and_frees_it_with_yes(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *SMALL, "checkpoint.keep=all", "checkpoint.every_s=0").returncode == 0
    checkpoints = list(run_directory(tmp_path).glob("checkpoint*.pt"))
    assert checkpoints
    assert "would free" in bsnn("runs", "prune=true").stdout
    assert all(path.exists() for path in checkpoints)
    assert "freed" in bsnn("runs", "prune=true", "yes=true").stdout
    assert not any(path.exists() for path in checkpoints)
    assert (run_directory(tmp_path) / "weights.pt").exists()
