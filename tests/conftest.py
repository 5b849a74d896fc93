"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

# Before anything loads torch: in networks as small as those of tests, threads cost ten times what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything loads Triton: without a GPU, NumPy executes its kernels line by line.
if not any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg")):  # the latter where Windows has the GPU
    os.environ["TRITON_INTERPRET"] = "1"

BSNN = Path(sys.executable).with_name("bsnn")
SMALL = ["dataset=digits", "model.depth=3", "model.width=12", "optim.epochs=2", "optim.lr=0.01"]
"""Overrides of a run that takes a moment."""


def given_once(words: Iterable[str]) -> list[str]:
    """Keep only the last word of each key, since the command refuses a key that is given twice."""
    return list({word.partition("=")[0]: word for word in words}.values())


def small(*overrides: str) -> list[str]:
    """`SMALL` with these on top."""
    return given_once([*SMALL, *overrides])


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


class Answer(NamedTuple):
    """What a command line came to."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bsnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command in this process and the test's folder, for what a process of its own adds nothing to but seconds."""
    from bsnn_cli import cli

    monkeypatch.chdir(tmp_path)

    def bsnn(*arguments: str) -> Answer:
        capsys.readouterr()
        code = cli.dispatch(list(arguments))
        return Answer(code, *capsys.readouterr())

    return bsnn


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, in which `bsnn reproduce` composes its steps at little cost and draws in one format."""
    from bsnn_cli import reproduce
    from bsnn_cli.figures import figures
    from tests.reproducing import composer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(reproduce, "Composer", composer)
    monkeypatch.setattr(figures, "FORMATS", ("png",))  # the others are tested with the figures
    return tmp_path


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


@pytest.fixture
def ray_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of its own for the Ray of this test, instead of one in the user's home directory."""
    path = tmp_path / "ray-token.txt"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))


@pytest.fixture
def grey_folder(tmp_path: Path) -> Path:
    """Two classes, three training images and two test images of 2 × 3 grey pixels."""
    from tests.folders import GREY, save

    root = tmp_path / "images"
    save(root / "train/zebra/1.png", GREY)
    save(root / "train/ant/1.png", [[10] * 3] * 2)
    save(root / "train/ant/0.png", [[20] * 3] * 2)
    save(root / "test/ant/0.png", [[30] * 3] * 2)
    save(root / "test/zebra/0.png", [[40] * 3] * 2)
    return root
