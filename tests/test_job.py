"""The process of a job, from its parent's side: however it ends is written down, and a stop reaches it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.runs import job
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.job import Orders, supervise
from bsnn_cli.settings.config import DatasetConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orders:
    """Of a sweep with one run, in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Orders.here(
        tmp_path, ["0", "7"], [resolve(TrainConfig(dataset=DatasetConfig(root="data"), optim=OptimConfig(epochs=3)))]
    )


def as_child(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a small program stand in for the job."""
    start = subprocess.Popen

    def popen(_command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-S", "-c", program], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(job.subprocess, "Popen", popen)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import sys; sys.exit(0)", "exited with code 0 before the end of the run"),
        ("import sys; sys.exit(7)", "exited with code 7 before the end of the run"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL (out of memory?)"),
        ("print('error: dataset.root=x: is absent'); raise SystemExit(2)", "dataset.root=x: is absent"),
    ],
)
def test_however_a_child_ends_it_is_written_down(
    program: str, error: str, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(monkeypatch, "print('its last words'); " + program)
    supervise(orders.configs, orders)
    directory = RunDirectory(run_directory(orders.configs[0]))
    assert directory.status() == "failed"
    failure = json.loads((directory.path / "failed.json").read_text())
    assert failure["error"] == error
    assert "its last words" in failure["traceback"]


def test_a_child_that_finds_the_run_taken_has_not_failed(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "raise SystemExit(1)")
    directory = RunDirectory(run_directory(orders.configs[0]))
    with directory.lock():
        supervise(orders.configs, orders)
    assert not (directory.path / "failed.json").exists()


def test_a_directory_of_another_run_is_left_alone(orders: Orders) -> None:
    [config] = orders.configs
    other = resolve(TrainConfig(seed=5))
    directory = RunDirectory(run_directory(config))
    directory.path.mkdir(parents=True)
    directory.claim(other)
    with pytest.raises(RunDirectoryError, match="another configuration"):
        directory.verify(config)


def test_a_stopped_sweep_starts_no_job(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "raise SystemExit(1)")
    orders.stop(signal.SIGTERM)
    supervise(orders.configs, orders)
    assert not (run_directory(orders.configs[0]) / "failed.json").exists()


def test_an_exception_in_the_parent_ends_the_child(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "import time; time.sleep(60)")

    def handler(*_: object) -> None:
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, handler)  # as submitit's, which is left in place
    monkeypatch.setattr(Orders, "stopped", lambda _: os.kill(os.getpid(), signal.SIGUSR2) if children() else None)
    try:
        with pytest.raises(SystemExit):
            supervise(orders.configs, orders)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not children()


def children() -> list[psutil.Process]:
    """Jobs that run now; helpers of multiprocessing, which other tests have left waiting, are none."""
    return [child for child in psutil.Process().children() if "multiprocessing" not in " ".join(child.cmdline())]


def test_each_gpu_is_given_to_one_job(orders: Orders) -> None:
    with orders.gpu("auto") as one, orders.gpu("cuda") as other:
        assert [one, other] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "7"}]
        with orders.gpu("cpu") as none, orders.gpu("cuda:1") as chosen:
            assert none == chosen == {}
        orders.stop(signal.SIGTERM)
        with orders.gpu("auto") as stopped:  # does not wait for ever
            assert stopped == {}


def test_a_job_that_is_started_again_goes_on(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    monkeypatch.setattr(job, "_start", lambda configs, *_: received.append((configs[0].force, configs[0].wait)))
    monkeypatch.setattr(job, "watch", lambda *_: 143)
    config = resolve(TrainConfig(force=True))
    supervise([config], orders)
    supervise([config], orders)  # as a queue does after a preemption
    assert received == [(True, False), (False, True)]


def test_orders_come_back_as_they_were(orders: Orders) -> None:
    orders.write()
    assert Orders.read(orders.folder) == orders


def test_jobs_without_a_driver_end_unless_they_are_in_a_queue(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation for interactive work has a SLURM_JOB_ID too, and its jobs are of this machine all the same."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    for changes, orphaned in (({}, True), ({"queued": True}, False), ({"host": "elsewhere"}, False)):
        left = dataclasses.replace(orders, pid=ended.pid, **changes)
        left.write()
        assert Orders.read(left.folder).orphaned() == orphaned
    assert not orders.orphaned()
