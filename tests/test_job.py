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
from bsnn_cli.runs.job import Manifest, supervise
from bsnn_cli.settings.config import DatasetConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Of a sweep with one run, in the current directory."""
    monkeypatch.chdir(tmp_path)
    return Manifest.of_this_process(
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
    program: str, error: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(monkeypatch, "print('its last words'); " + program)
    supervise(manifest.configs, manifest)
    directory = RunDirectory(run_directory(manifest.configs[0]))
    assert directory.status() == "failed"
    failure = json.loads((directory.path / "failed.json").read_text())
    assert failure["error"] == error
    assert "its last words" in failure["traceback"]


def test_a_child_that_finds_the_run_taken_has_not_failed(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "raise SystemExit(1)")
    directory = RunDirectory(run_directory(manifest.configs[0]))
    with directory.lock():
        supervise(manifest.configs, manifest)
    assert not (directory.path / "failed.json").exists()


def test_a_directory_of_another_run_is_left_alone(manifest: Manifest) -> None:
    [config] = manifest.configs
    other = resolve(TrainConfig(seed=5))
    directory = RunDirectory(run_directory(config))
    directory.path.mkdir(parents=True)
    directory.claim(other)
    with pytest.raises(RunDirectoryError, match="another configuration"):
        directory.verify(config)


def test_a_stopped_sweep_starts_no_job(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "raise SystemExit(1)")
    manifest.stop(signal.SIGTERM)
    supervise(manifest.configs, manifest)
    assert not (run_directory(manifest.configs[0]) / "failed.json").exists()


def test_an_exception_in_the_parent_ends_the_child(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "import time; time.sleep(60)")

    def handler(*_: object) -> None:
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, handler)  # as submitit's, which is left in place
    monkeypatch.setattr(Manifest, "stopped", lambda _: os.kill(os.getpid(), signal.SIGUSR2) if children() else None)
    try:
        with pytest.raises(SystemExit):
            supervise(manifest.configs, manifest)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not children()


def children() -> list[psutil.Process]:
    """Jobs that run now; helpers of multiprocessing, which other tests have left waiting, are none."""
    return [child for child in psutil.Process().children() if "multiprocessing" not in " ".join(child.cmdline())]


def test_each_gpu_is_given_to_one_job(manifest: Manifest) -> None:
    with manifest.gpu("auto") as one, manifest.gpu("cuda") as other:
        assert [one, other] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "7"}]
        with manifest.gpu("cpu") as none, manifest.gpu("cuda:1") as chosen:
            assert none == chosen == {}
        manifest.stop(signal.SIGTERM)
        with manifest.gpu("auto") as stopped:  # does not wait for ever
            assert stopped == {}


def test_a_job_that_is_started_again_goes_on(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    monkeypatch.setattr(job, "_start", lambda configs, *_: received.append((configs[0].force, configs[0].wait)))
    monkeypatch.setattr(job, "watch", lambda *_: 143)
    config = resolve(TrainConfig(force=True))
    supervise([config], manifest)
    supervise([config], manifest)  # as a queue does after a preemption
    assert received == [(True, False), (False, True)]


def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    manifest.write()
    assert Manifest.read(manifest.folder) == manifest


def test_jobs_without_a_driver_end_unless_they_are_in_a_queue(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocation for interactive work has a SLURM_JOB_ID too, and its jobs are of this machine all the same."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    for changes, driver_has_ended in (({}, True), ({"queued": True}, False), ({"host": "elsewhere"}, False)):
        left = dataclasses.replace(manifest, pid=ended.pid, **changes)
        left.write()
        assert Manifest.read(left.folder).driver_has_ended() == driver_has_ended
    assert not manifest.driver_has_ended()
