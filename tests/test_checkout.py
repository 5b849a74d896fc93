"""Which commit a checkout is at, asked under conditions in which git by itself refuses or answers for another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bsnn_cli.common import checkout

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def repository(folder: Path, *files: str) -> str:
    """Make a repository with one commit of these files; return the commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for words in (["init", "-q"], ["add", *files], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The module in a package of its own, outside of any checkout."""
    folder = tmp_path / "copy" / "bsnn_cli" / "common"
    folder.mkdir(parents=True)
    shutil.copy(checkout.__file__, folder)
    return tmp_path / "copy"


def told(copy: Path, **environment: str) -> list[str]:
    """Run the copied module in a process of its own; return the commit and the flag that it prints."""
    script = f"import runpy; print(*runpy.run_path({str(copy / 'bsnn_cli/common/checkout.py')!r})['state']())"
    result = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return result.stdout.split()


def test_a_changed_file_is_told(copy: Path) -> None:
    commit = repository(copy, ".")
    assert told(copy) == [commit, "False"]
    with (copy / "bsnn_cli/common/checkout.py").open("a") as file:
        file.write("# changed\n")
    assert told(copy) == [commit, "True"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_a_checkout_of_another_user_is_named_too(copy: Path) -> None:
    commit = repository(copy, ".")
    for path in [copy, *copy.rglob("*")]:
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "-C", str(copy), "status"], capture_output=True, text=True, check=False)
    assert "dubious ownership" in refused.stderr
    assert told(copy) == [commit, "False"]


def test_a_hook_of_another_repository_does_not_answer_for_this_one(copy: Path, tmp_path: Path) -> None:
    commit = repository(copy, ".")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    assert repository(other, "file") != commit
    assert told(copy, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == [commit, "False"]


def test_a_copy_inside_another_repository_does_not_take_its_commit(copy: Path) -> None:
    (copy / "unrelated").touch()
    repository(copy, "unrelated")
    assert told(copy) == ["None", "None"]
    (copy / "bsnn_cli" / checkout.STAMP).write_text('{"commit": "0123", "dirty": false}')
    assert told(copy) == ["0123", "False"]
    (copy / "bsnn_cli" / checkout.STAMP).write_text("[damaged")
    assert told(copy) == ["None", "None"]
