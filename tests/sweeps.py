"""Looking at what a sweep has left."""

from __future__ import annotations

from pathlib import Path

from bsnn_cli.runs.directory import RunDirectory


def seeds(root: Path) -> dict[int, Path]:
    return {int(path.name.rpartition("-s")[2]): path for path in root.glob("outputs/runs/*/*/*")}


def statuses(root: Path) -> dict[int, str]:
    return {seed: RunDirectory(path).status() for seed, path in seeds(root).items()}
