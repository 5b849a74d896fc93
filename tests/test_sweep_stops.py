"""Sweeps that are stopped, killed, preempted, or lose a machine, in real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from bsnn_cli.runs.checkpoint import load
from tests.conftest import BSNN, given_once, small
from tests.sweeps import seeds, statuses

Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]

TORTURE = pytest.mark.torture

LONG = small("optim.epochs=4000", "checkpoint.every_s=3600")
"""A run that has to be stopped, and saves itself only then."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a sweep, wait until as many of its jobs are at work as asked for, and leave nothing behind."""
    sweeps = []

    def start(*arguments: str, at_work: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(BSNN), "train", "-m", *given_once([*LONG, *arguments])],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        sweeps.append(process)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("outputs/runs/*/*/*/epochs.csv"))) < at_work:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield start
    for process in sweeps:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for other in psutil.process_iter(["cwd"]):
        if other.info["cwd"] == str(tmp_path):
            other.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def resumed_at(log: Path) -> list[int]:
    """Steps after which the processes of a run have gone on."""
    return [int(found) for found in re.findall(r"^resuming after .*\((\d+) steps\)", log.read_text(), re.MULTILINE)]


def steps(directory: Path) -> int:
    return int(load(directory / "checkpoint.pt")["tensors"]["steps"])


@pytest.mark.parametrize(
    ("engine", "jobs"),
    [("basic", 1), pytest.param("joblib", 2, marks=TORTURE), pytest.param("submitit_local", 2, marks=TORTURE)],
)
def test_ctrl_c_saves_what_is_at_work_and_starts_nothing_else(
    engine: str, jobs: int, tmp_path: Path, start: Start
) -> None:
    process = start(f"hydra/launcher={engine}", "seed=0,1,2", at_work=jobs)
    others = family(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the job's own process is in no such group
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "stopped; 0 of 3 runs are finished" in stderr
    assert stdout.endswith("3 runs: 3 not finished\n")
    psutil.wait_procs(others, timeout=60)
    assert not [other for other in others if other.is_running() and "bsnn_cli.runs.job" in other.cmdline()]
    assert len(seeds(tmp_path)) == jobs
    assert all(steps(directory) > 0 for directory in seeds(tmp_path).values())
    assert set(statuses(tmp_path).values()) == {"interrupted"}


@pytest.mark.parametrize(
    ("engine", "jobs"),
    [("basic", 1), pytest.param("joblib", 2, marks=TORTURE), pytest.param("submitit_local", 1, marks=TORTURE)],
)
def test_workers_save_and_die_with_a_driver_that_is_killed(
    engine: str, jobs: int, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of joblib that has no job at that moment ends by itself after its idle time, five minutes."""
    if engine == "joblib":  # as in an allocation for interactive work
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    process = start(f"hydra/launcher={engine}", f"seed=range({jobs})", at_work=jobs)
    others = family(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not [other.cmdline() for other in alive if "resource_tracker" not in " ".join(other.cmdline())]
    assert all(steps(directory) > 0 for directory in seeds(tmp_path).values())


@pytest.mark.torture
def test_submitit_s_warning_queues_the_job_again_and_it_goes_on(tmp_path: Path, start: Start) -> None:
    process = start("hydra/launcher=submitit_local", "seed=0", at_work=1)
    [task] = [other for other in family(process) if "submitit.core._submit" in other.cmdline()]
    task.send_signal(signal.SIGUSR2)
    log = seeds(tmp_path)[0] / "log.txt"
    deadline = time.monotonic() + 120
    while not resumed_at(log):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    assert resumed_at(log)[0] > 0
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert steps(seeds(tmp_path)[0]) >= resumed_at(log)[0]


@pytest.fixture
def cluster(tmp_path: Path, ray_token: None) -> Iterator[tuple[str, psutil.Process]]:  # noqa: ARG001
    """A Ray cluster of two nodes with one processor each; yields its address and the process of the second node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    with (tmp_path / "ray.txt").open("w") as log:
        nodes = [psutil.Popen([*ray, *head], cwd=tmp_path, stdout=log, stderr=log)]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
                break
            time.sleep(0.2)
        nodes.append(psutil.Popen([*ray, f"--address={address}"], cwd=tmp_path, stdout=log, stderr=log))
        yield address, nodes[1]
        for node in nodes:
            kill_tree(node)
            node.wait()


def kill_tree(process: psutil.Process) -> None:
    """End a process and all that descends from it, as the loss of a machine does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.mark.torture
def test_jobs_of_a_lost_ray_node_go_on_elsewhere(
    cluster: tuple[str, psutil.Process], tmp_path: Path, start: Start
) -> None:
    address, node = cluster
    process = start(
        "hydra/launcher=ray",
        f"hydra.launcher.ray.init.address='{address}'",
        "optim.epochs=600",
        "checkpoint.every_s=0",
        "seed=0,1",
        at_work=2,
    )
    while len(list(tmp_path.glob("outputs/runs/*/*/*/checkpoint.pt"))) < 2:
        time.sleep(0.1)
    kill_tree(node)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert statuses(tmp_path) == {0: "done", 1: "done"}
    [resumed] = [at for directory in seeds(tmp_path).values() for at in resumed_at(directory / "log.txt")]
    assert resumed > 0
