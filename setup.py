"""Record the commit in what is built, so that an installed copy can name it. All else is in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

checkout = runpy.run_path(str(Path(__file__).parent / "bsnn_cli" / "common" / "checkout.py"))


class BuildWithCommit(build_py):
    """Build the package with a stamp of its commit."""

    def run(self) -> None:
        """Build, then stamp. An installation that is editable asks git each time instead."""
        super().run()
        if not self.editable_mode:
            checkout["write_stamp"](Path(self.build_lib) / "bsnn_cli")


class SourceWithCommit(sdist):
    """Archive the source with a stamp of its commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files that belong to the archive, then stamp the copy."""
        super().make_release_tree(base_dir, files)
        checkout["write_stamp"](Path(base_dir) / "bsnn_cli")


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SourceWithCommit})
