"""The plan of jobs for a SLURM cluster, beside the script that submitit hands to a stub of sbatch."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BSNN, SMALL, Answer

SWEEP = ["train", "-m", *SMALL, "seed=0,1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
MORE = ["hydra.launcher.array_parallelism=2", "hydra.launcher.mem_gb=8", "hydra.launcher.gpus_per_node=null",
        "hydra.launcher.timeout_min=30", "+hydra.launcher.additional_parameters.nice=100"]  # fmt: skip


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment with a cluster that takes jobs, keeps their script, and never runs them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub(folder, "sbatch", f'for script; do :; done; cp "$script" {tmp_path}/script; echo Submitted batch job 7')
    stub(folder, "srun", "exit 0")
    stub(folder, "sacct", "echo 'JobID|State|NodeList'; echo '7_0|PENDING|'")
    stub(folder, "scancel", "exit 0")
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def submitted(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    """The script that a sweep hands to sbatch; the sweep, which would wait for its jobs, is ended then."""
    process = subprocess.Popen(
        [str(BSNN), *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "script").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)  # it is being copied
        return (folder / "script").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("more", [[], MORE])
def test_a_dry_run_tells_what_is_submitted(
    more: list[str], tmp_path: Path, cluster: dict[str, str], bsnn: Callable[..., Answer]
) -> None:
    told = bsnn(*SWEEP, *more, "dry_run=true")
    assert told.returncode == 0, told.stderr
    assert not list(tmp_path.glob("outputs/*"))
    assert "would be submitted to SLURM: an array of 3 jobs\n" in told.stdout
    assert "queued again, at most 100 times" in told.stdout
    options = [line.strip() for line in told.stdout.splitlines() if line.strip().startswith("#SBATCH")]
    script = submitted([*SWEEP, *more], tmp_path, cluster)
    kept = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    # The names of its logs have the time of the sweep in them; submitit adds a key and a mode of its own.
    own = ("#SBATCH --output", "#SBATCH --error", "#SBATCH --open-mode", "#SBATCH --wckey")
    assert sorted(options) == sorted(line for line in kept if not line.startswith(own))
    assert "\nexport OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK\n" in script
    assert "  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK\n" in told.stdout


def test_what_is_finished_is_not_submitted(bsnn: Callable[..., Answer]) -> None:
    sweep = [word for word in SWEEP if not word.startswith(("hydra", "seed"))]
    assert bsnn(*sweep, "seed=0,1").returncode == 0
    assert "an array of 1 jobs" not in bsnn(*SWEEP, "dry_run=true").stdout
    assert "would be submitted to SLURM: one job" in bsnn(*SWEEP, "dry_run=true").stdout
    one = [word for word in SWEEP if not word.startswith("seed")]
    assert "nothing would be submitted to SLURM" in bsnn(*one, "seed=0,1", "dry_run=true").stdout


def test_a_sweep_in_parts_is_several_arrays_and_the_partition_is_asked_for(bsnn: Callable[..., Answer]) -> None:
    words = [word for word in SWEEP if not word.startswith("hydra.launcher.partition")]
    told = bsnn(*words, "hydra.sweeper.max_batch_size=2", "dry_run=true").stdout
    assert "2 arrays of up to 2 jobs, one after the other; hydra.launcher.partition=NAME takes another" in told
    assert "#SBATCH --array=0-1%2" in told
