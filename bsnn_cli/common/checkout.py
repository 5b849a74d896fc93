"""The commit of this program: git names it in a checkout, a stamp made by the build in an installed copy.

Imports nothing but the standard library: `setup.py` runs this file by its path.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

STAMP = "commit.json"
"""File of the installed package with the commit it was built from."""


def state() -> tuple[str | None, bool | None]:
    """Return the commit and whether tracked files differ from it; (None, None) where neither git nor a stamp tells."""
    try:
        git("ls-files", "--error-unmatch", str(Path(__file__)))  # an installed copy may lie inside another checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return read_stamp()


def git(*words: str) -> str:
    """Return what git prints in the folder of the package.

    A checkout of another user is trusted: its code runs already. Nothing is written to it, so it may be read-only.
    Variables that a git hook sets would name another repository and are left out.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, it fails, or it takes 10 seconds.
    """
    options = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(PACKAGE)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", *options, *words], capture_output=True, encoding="utf-8", timeout=10, check=True, env=environment
    ).stdout.strip()


def read_stamp() -> tuple[str | None, bool | None]:
    """Return what the stamp of this package says, or (None, None)."""
    try:
        content = json.loads((PACKAGE / STAMP).read_text(encoding="utf-8"))
        return content["commit"], content["dirty"]
    except (OSError, ValueError, KeyError):
        return None, None


def write_stamp(package: Path) -> None:
    """Write the state of this checkout into another copy of the package, where it is known."""
    commit, dirty = state()
    if commit is not None:
        (package / STAMP).write_text(json.dumps({"commit": commit, "dirty": dirty}) + "\n", encoding="utf-8")
