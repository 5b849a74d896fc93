"""The package as others install it: a wheel in an environment of its own, used from another directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import SMALL

CHECKOUT = Path(__file__).parents[1]


def call(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bsnn` of a wheel; what it depends on is borrowed from this environment, this checkout is not."""
    pytest.importorskip("setuptools")
    root = tmp_path_factory.mktemp("wheel")
    for name in ("bsnn_cli", "configs"):
        shutil.copytree(CHECKOUT / name, root / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, root / "source")
    git = ["git", "-C", root / "source", "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    call(*git, "init", "-q", cwd=root)
    call(*git, "add", ".", cwd=root)
    call(*git, "commit", "-q", "-m", "all", cwd=root)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, root / "source", cwd=root)
    [wheel] = root.glob("bsnn-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", root / "venv", cwd=root)
    python = root / "venv" / "bin" / "python"
    packages = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root).strip()
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(*pip, "--python", python, "install", "--no-deps", "--ignore-installed", "--no-index", wheel, cwd=root)
    return root / "venv" / "bin" / "bsnn"


def test_an_installed_wheel_trains_resumes_sweeps_and_tabulates(installed: Path, tmp_path: Path) -> None:
    where = call(installed.with_name("python"), "-c", "import bsnn_cli; print(bsnn_cli.__file__)", cwd=tmp_path)
    assert str(installed.parents[1]) in where
    code = "from bsnn_cli.networks import native; print(native.SOURCE)"
    source = call(installed.with_name("python"), "-c", code, cwd=tmp_path)
    assert Path(source.strip()).is_file()  # without it, everything works, but slowly
    assert call(installed, "--version", cwd=tmp_path).startswith("bsnn ")
    assert "2 runs: 2 to run" in call(installed, "train", "-m", *SMALL, "seed=0,1", cwd=tmp_path)
    assert "test" in call(installed, "train", *SMALL, cwd=tmp_path)
    assert len(list(tmp_path.glob("outputs/runs/digits/*/*/result.json"))) == 2
    assert "SELU" in call(installed, "table", cwd=tmp_path)
    assert "index.html" in call(installed, "report", cwd=tmp_path)  # its template is shipped
    provenance = json.loads(next(tmp_path.glob("outputs/runs/digits/*/*/provenance.json")).read_text())
    built_from = call("git", "rev-parse", "HEAD", cwd=installed.parents[2] / "source").strip()
    assert (provenance["commit"], provenance["dirty"]) == (built_from, False)


def test_a_source_archive_hands_its_commit_on(installed: Path, tmp_path: Path) -> None:
    """From a checkout to an archive, and from the archive, without git, to what is built of it."""
    source = installed.parents[2] / "source"
    code = "from setuptools import build_meta; build_meta.build_sdist({!r})"
    call(sys.executable, "-c", code.format(str(tmp_path)), cwd=source)
    [archive] = tmp_path.glob("bsnn-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = archive.with_name(archive.name.removesuffix(".tar.gz"))
    code = "from bsnn_cli.common import checkout; print(*checkout.state())"
    built_from = call("git", "rev-parse", "HEAD", cwd=source).strip()
    assert call(sys.executable, "-c", code, cwd=unpacked).split() == [built_from, "False"]


def test_the_lock_file_has_a_version_of_everything_that_is_asked_for() -> None:
    unlocked = []
    lines = (CHECKOUT / "requirements.lock").read_text().splitlines()[1:]
    locked = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for asked in map(Requirement, distribution("bsnn").requires or []):
        version = locked.get(canonicalize_name(asked.name))
        if asked.name != "setuptools" and (version is None or version not in asked.specifier):
            unlocked.append(str(asked))
    assert not unlocked
