"""Sweeps end to end, in real processes: what is run, and what one bad job does to the others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SMALL, Answer, run_bsnn
from tests.sweeps import seeds, statuses

FAULTS = """
import os, signal, sys

if "bsnn_cli.runs.job" in sys.orig_argv:
    from bsnn_cli.runs import runner

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


def modified(paths: dict[int, Path]) -> dict[int, int]:
    return {seed: (path / "result.json").stat().st_mtime_ns for seed, path in paths.items() if seed not in REASONS}


def sweep(engine: str, jobs: list[int]) -> list[str]:
    listed = ",".join(str(seed) for seed in [*jobs, jobs[0]])  # one of them twice
    return ["train", "-m", f"hydra/launcher={engine}", *SMALL, f"seed={listed}"]


def bad_jobs_end_alone(engine: str, jobs: list[int], root: Path) -> None:
    """Run a sweep with jobs that go wrong, given by their seeds, and look at what it says and leaves."""
    first = run_bsnn(*sweep(engine, jobs), cwd=root, PYTHONPATH=with_faults(root))
    assert first.returncode == 1, first.stderr
    assert first.stdout.startswith(f"{len(jobs)} runs: {len(jobs)} to run\n")
    assert statuses(root) == {seed: ENDS.get(seed, "done") for seed in jobs}
    directories = seeds(root)
    failed = REASONS.keys() & set(jobs)
    for seed in failed:
        failure = json.loads((directories[seed] / "failed.json").read_text())
        assert failure["error"].startswith(REASONS[seed])
        [line] = [line for line in first.stdout.splitlines() if line.startswith(f"failed: digits selu_gpn {seed}:")]
        assert REASONS[seed] in line
        assert line.endswith(str(directories[seed].relative_to(root) / "log.txt"))
        assert (directories[seed] / "log.txt").exists()
        assert seed != 1 or "in work" in failure["traceback"]
    assert "Traceback" not in first.stderr
    assert f"{len(jobs) - len(failed)} of {len(jobs)} runs are finished" in first.stderr


def only_bad_ones_run_again(engine: str, jobs: list[int], root: Path) -> None:
    """Run the same sweep without the faults."""
    directories = seeds(root)
    before = modified(directories)
    second = run_bsnn(*sweep(engine, jobs), cwd=root)
    assert second.returncode == 0, second.stderr
    failed = len(REASONS.keys() & set(jobs))
    assert second.stdout.startswith(f"{len(jobs)} runs: {len(jobs) - failed} finished, {failed} to run\n")
    assert f"{len(jobs)} runs: {len(jobs) - 1} done, 1 diverged\n" in second.stdout
    assert statuses(root) == {seed: "diverged" if seed == 4 else "done" for seed in jobs}
    assert modified(directories) == before
    assert not list(root.glob("outputs/runs/*/*/*/failed.json"))


def test_bad_jobs_end_alone_and_only_they_are_run_again(tmp_path: Path) -> None:
    bad_jobs_end_alone("basic", [0, 1, 3, 4], tmp_path)
    only_bad_ones_run_again("basic", [0, 1, 3, 4], tmp_path)


@pytest.mark.usefixtures("ray_token")
@pytest.mark.parametrize(("engine", "bad"), [("joblib", 2), ("submitit_local", 3), ("ray", 3)])
def test_a_job_that_exits_or_is_killed_costs_no_launcher_the_others(engine: str, bad: int, tmp_path: Path) -> None:
    bad_jobs_end_alone(engine, [bad, 0], tmp_path)


@pytest.mark.torture
@pytest.mark.usefixtures("ray_token")
@pytest.mark.parametrize("engine", ["basic", "joblib", "submitit_local", "ray"])
def test_twenty_four_jobs_of_which_four_go_wrong(engine: str, tmp_path: Path) -> None:
    bad_jobs_end_alone(engine, [*range(24)], tmp_path)
    only_bad_ones_run_again(engine, [*range(24)], tmp_path)


@pytest.mark.parametrize(
    ("argument", "lines"),
    [
        ("model.depth=3,0,-1", ["model.depth=0", "model.depth=-1"]),
        ("optim.lr=0.1,x", ["optim.lr=x"]),
        ("activation=selu,sellu", ["activation=sellu"]),
        ("optim.batch_size=1,2 model.norm=none,batch", ["optim.batch_size=1"]),
        ("device=cpu,cuda:99", ["device=cuda:99"]),
        ("device=cuda:99 hydra/launcher=fleet", ["device=cuda:99"]),
        ("device=cpu precision=tf32 hydra/launcher=fleet", ["precision=tf32"]),
        ("seed=range(1,", ["seed=range(1,"]),
        ("hydra/launcher=jobib", ["hydra/launcher=jobib"]),
    ],
)
def test_one_invalid_job_rejects_the_sweep_before_anything_runs(
    argument: str, lines: list[str], tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    seeds = [] if argument.startswith("seed=") else ["seed=0,1"]
    result = bsnn("train", "-m", "dataset=digits", *seeds, *argument.split())
    assert result.returncode == 2, result.stderr
    shown = result.stderr.splitlines()
    assert len(shown) == len(lines)
    assert all(line in text for line, text in zip(lines, shown, strict=True)), shown
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_cannot_be_written_is_one_line(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "file").touch()
    answer = bsnn("train", "-m", *SMALL, "seed=0,1", "output_root=file")
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: output_root: cannot write file/sweeps/")
    assert line.endswith(": Not a directory")
