"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Before anything loads torch: in networks as small as those of tests, threads cost ten times what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

BSNN = Path(sys.executable).with_name("bsnn")
SMALL = ["dataset=digits", "model.depth=3", "model.width=12", "optim.epochs=2", "optim.lr=0.01"]
"""Overrides of a run that takes a moment."""

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def run_bsnn(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own, away from the checkout."""
    return subprocess.run(
        [str(BSNN), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the real MNIST archives."""
    source = SHARED_DATA / "MNIST"
    if not source.is_dir():
        pytest.skip(f"needs the MNIST archives in {source}")
    root = tmp_path_factory.mktemp("data")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for archive in (source / "raw").glob("*.gz"):
        (root / "MNIST" / "raw" / archive.name).write_bytes(archive.read_bytes())
    return root
