"""Sweeps end to end, in real processes: what is run, what one bad job does to the others, how they are stopped."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from bsnn_cli import job
from bsnn_cli.checkpoint import load
from bsnn_cli.config import DatasetConfig, OptimConfig, TrainConfig
from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.identity import run_directory
from bsnn_cli.job import Orders, supervise
from bsnn_cli.runs import RunDirectory
from bsnn_cli.validation import resolve
from tests.conftest import BSNN, SMALL, run_bsnn

FAULTS = """
import os, signal, sys

if "bsnn_cli.job" in sys.orig_argv:
    from bsnn_cli import runner

    original = runner.work

    def work(session, stop):
        seed = session.configs[0].seed
        if seed == 1:
            raise ValueError("injected")
        if seed == 2:
            sys.exit(3)
        if seed == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 4:
            session.fleet.tensors["input.weight"].fill_(float("inf"))
        original(session, stop)

    runner.work = work
"""
"""A `sitecustomize` that makes jobs of certain seeds raise, exit, be killed and diverge."""

ENDS = {1: "failed", 2: "failed", 3: "failed", 4: "diverged"}
"""What becomes of jobs by their seeds; all others are done."""

REASONS = {1: "ValueError: injected", 2: "exited with code 3", 3: "killed by SIGKILL (out of memory?)"}


def with_faults(folder: Path) -> str:
    (folder / "sitecustomize.py").write_text(FAULTS)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def seeds(root: Path) -> dict[int, Path]:
    return {int(path.name.rpartition("-s")[2]): path for path in root.glob("outputs/runs/*/*/*")}


def statuses(root: Path) -> dict[int, str]:
    return {seed: RunDirectory(path).status() for seed, path in seeds(root).items()}


def modified(paths: dict[int, Path]) -> dict[int, int]:
    return {seed: (path / "result.json").stat().st_mtime_ns for seed, path in paths.items() if seed not in REASONS}


RAY = pytest.param(
    "ray",
    marks=[
        pytest.mark.torture,
        pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is None, reason="needs bsnn[ray]"),
    ],
)


def bad_jobs_end_alone(engine: str, jobs: int, root: Path) -> None:
    """Run a sweep with four jobs that go wrong, look at what it leaves, and run it again without the faults."""
    ends = {seed: ENDS.get(seed, "done") for seed in range(jobs)}
    listed = ",".join(str(seed) for seed in [*ends, 0])  # one of them twice
    sweep = ["train", "-m", f"hydra/launcher={engine}", *SMALL, f"seed={listed}"]
    first = run_bsnn(*sweep, cwd=root, PYTHONPATH=with_faults(root))
    assert first.returncode == 1, first.stderr
    assert first.stdout.startswith(f"{jobs} runs: {jobs} to run\n")
    assert statuses(root) == ends
    directories = seeds(root)
    for seed, reason in REASONS.items():
        failure = json.loads((directories[seed] / "failed.json").read_text())
        assert failure["error"].startswith(reason)
        [line] = [line for line in first.stdout.splitlines() if line.startswith(f"failed: digits selu_gpn {seed}:")]
        assert reason in line
        assert line.endswith(str(directories[seed].relative_to(root) / "log.txt"))
        assert (directories[seed] / "log.txt").exists()
    assert "in work" in json.loads((directories[1] / "failed.json").read_text())["traceback"]
    assert "Traceback" not in first.stderr
    assert f"{jobs - 3} of {jobs} runs are finished" in first.stderr

    before = modified(directories)
    second = run_bsnn(*sweep, cwd=root)
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith(f"{jobs} runs: {jobs - 3} finished, 3 to run\n")
    assert statuses(root) == ends | dict.fromkeys(REASONS, "done")
    assert modified(directories) == before
    assert not list(root.glob("outputs/runs/*/*/*/failed.json"))


@pytest.mark.parametrize("engine", ["basic", "joblib", "submitit_local"])
def test_a_bad_job_ends_alone_and_only_bad_ones_are_run_again(engine: str, tmp_path: Path) -> None:
    bad_jobs_end_alone(engine, 5, tmp_path)


@pytest.mark.torture
@pytest.mark.usefixtures("ray_token")
@pytest.mark.parametrize("engine", ["basic", "joblib", "submitit_local", RAY])
def test_twenty_four_jobs_of_which_four_go_wrong(engine: str, tmp_path: Path) -> None:
    bad_jobs_end_alone(engine, 24, tmp_path)


@pytest.mark.parametrize(
    ("argument", "lines"),
    [
        ("model.depth=3,0,-1", ["model.depth=0", "model.depth=-1"]),
        ("optim.lr=0.1,x", ["optim.lr=x"]),
        ("activation=selu,sellu", ["activation=sellu"]),
        ("optim.batch_size=1,2 model.norm=none,batch", ["optim.batch_size=1"]),
        ("device=cpu,cuda:99", ["device=cuda:99"]),
        ("seed=range(1,", ["no viable alternative at input"]),
        ("hydra/launcher=jobib", ["hydra/launcher=jobib"]),
    ],
)
def test_one_invalid_job_rejects_the_sweep_before_anything_runs(
    argument: str, lines: list[str], tmp_path: Path
) -> None:
    result = run_bsnn("train", "-m", "dataset=digits", "seed=0,1", *argument.split(), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    shown = result.stderr.splitlines()
    assert len(shown) == len(lines)
    assert all(line in text for line, text in zip(lines, shown, strict=True)), shown
    assert list(tmp_path.iterdir()) == []


Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]

LONG = [*SMALL, "optim.epochs=4000", "checkpoint.every_s=3600"]
"""A run that has to be stopped, and saves itself only then."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a sweep, wait until as many of its jobs are at work as asked for, and leave nothing behind."""
    sweeps = []

    def start(*arguments: str, at_work: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(BSNN), "train", "-m", *LONG, *arguments],
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


def steps(directory: Path) -> int:
    return int(load(directory / "checkpoint.pt")["tensors"]["steps"])


@pytest.mark.parametrize(("engine", "jobs"), [("basic", 1), ("joblib", 2), ("submitit_local", 2)])
def test_ctrl_c_saves_what_is_at_work_and_starts_nothing_else(
    engine: str, jobs: int, tmp_path: Path, start: Start
) -> None:
    process = start(f"hydra/launcher={engine}", "seed=0,1,2", at_work=jobs)
    others = family(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the job's own process is in no such group
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped; 0 of 3 runs are finished" in stderr
    assert stdout.count("not finished") == 3
    psutil.wait_procs(others, timeout=10)
    assert not [other for other in others if other.is_running() and "bsnn_cli.job" in other.cmdline()]
    assert len(seeds(tmp_path)) == jobs
    assert all(steps(directory) > 0 for directory in seeds(tmp_path).values())
    assert set(statuses(tmp_path).values()) == {"interrupted"}


@pytest.mark.parametrize(("engine", "jobs"), [("basic", 1), ("joblib", 2), ("submitit_local", 2)])
def test_workers_save_and_die_with_a_driver_that_is_killed(
    engine: str, jobs: int, tmp_path: Path, start: Start
) -> None:
    process = start(f"hydra/launcher={engine}", "seed=0,1", at_work=jobs)
    others = family(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(others, timeout=20)
    assert not [other.cmdline() for other in alive if "resource_tracker" not in " ".join(other.cmdline())]
    assert all(steps(directory) > 0 for directory in seeds(tmp_path).values())


def test_submitit_s_warning_queues_the_job_again_and_it_goes_on(tmp_path: Path, start: Start) -> None:
    process = start("hydra/launcher=submitit_local", "optim.epochs=150", "seed=0", at_work=1)
    [task] = [other for other in family(process) if "submitit.core._submit" in other.cmdline()]
    task.send_signal(signal.SIGUSR2)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert statuses(tmp_path) == {0: "done"}
    log = (seeds(tmp_path)[0] / "log.txt").read_text()
    [line] = [line for line in log.splitlines() if line.startswith("resuming")]
    assert int(line.split("(")[1].split()[0]) > 0


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


@pytest.fixture
def ray_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of its own for the Ray of this test, instead of one in the user's home directory."""
    path = tmp_path / "ray-token.txt"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))


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
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is None, reason="needs bsnn[ray]")
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
    logs = [(directory / "log.txt").read_text() for directory in seeds(tmp_path).values()]
    [resumed] = [line for log in logs for line in log.splitlines() if line.startswith("resuming")]
    assert int(resumed.split("(")[1].split()[0]) > 0
