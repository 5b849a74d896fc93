"""Repeating a finished run from its recorded config, to see whether the result is identical."""

from __future__ import annotations

import csv
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from bsnn_cli.common.files import read_text
from bsnn_cli.errors import BsnnError, RunDirectoryError
from bsnn_cli.runs import checkpoint, runner
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import run_directory

TIMES = ("elapsed_s", "networks")
"""Fields that differ between two runs of the same config."""

ORIGIN = (
    "version", "commit", "python", "torch", "cuda", "device", "instructions", "threads", "trainer", "arithmetic",
)  # fmt: skip
"""Entries of the provenance that can explain a difference."""


class NotIdentical(BsnnError):  # noqa: N818 - a finding, not a failure of the program
    """A run that has been repeated came out differently."""


def repeat(path: Path) -> str:
    """Train a run once more, in a temporary folder, and compare metrics and weights.

    Args:
        path: directory of a finished run.

    Returns:
        One line that says what has been compared.

    Raises:
        RunDirectoryError: the run is not finished.
        NotIdentical: with the differences in the results, and in where they come from.
    """
    before = RunDirectory(path)
    config = before.config()
    if before.result() is None:
        raise RunDirectoryError(f"{path}: is not finished; there is nothing to compare with")
    with tempfile.TemporaryDirectory(prefix="bsnn-rerun-") as folder:
        after = RunDirectory(run_again(config, origin(before), Path(folder)))
        different = differences(before, after)
        if different:
            sources = [
                f"{key}: {a} has become {b}" for key, a, b in changed(origin(before), origin(after)) if key in ORIGIN
            ]
            silent = [] if sources else ["nothing that provenance.json records of both explains it"]
            raise NotIdentical("\n".join([f"{path}: not identical", *different, *sources, *silent]))
    with_weights = "and weights" if (path / "weights.pt").exists() else "(no weights were kept)"
    return f"{path}: identical, metrics {with_weights}"


def run_again(config: TrainConfig, recorded: dict[str, Any], folder: Path) -> Path:
    """Train the run in another folder, with as many threads as before; return its directory."""
    again = dataclasses.replace(
        config,
        output_root=str(folder),
        threads=recorded.get("threads", config.threads),
        force=False,
        dry_run=False,
        logger="none",
        checkpoint=dataclasses.replace(config.checkpoint, keep="weights"),
    )
    again = runner.prepare(again)
    if again.dataset.fingerprint != config.dataset.fingerprint:
        raise RunDirectoryError(f"dataset.root={config.dataset.root}: its content is not what this run was trained on")
    runner.run([again])
    return run_directory(again)


def origin(directory: RunDirectory) -> dict[str, Any]:
    """Return the provenance of a run."""
    return dict(json.loads(read_text(directory.path / "provenance.json")))


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ, with both values."""
    return [(key, before.get(key), after.get(key)) for key in (before | after) if before.get(key) != after.get(key)]


def differences(before: RunDirectory, after: RunDirectory) -> list[str]:
    """Return the differences between two finished runs in results, metrics and weights, one line each."""
    lines = []
    results = [
        dataclasses.asdict(result) for result in (before.result(), after.result()) if isinstance(result, RunResult)
    ]
    for key, a, b in changed(*results):
        if key not in TIMES:
            lines.append(f"{key}: {a} has become {b}")
    for a, b in zip(epochs(before), epochs(after), strict=False):
        if a != b:
            keys = ", ".join(key for key, _, _ in changed(a, b))
            lines.append(f"epochs.csv: differs from epoch {a['epoch']} on, first in {keys}")
            break
    weights = before.path / "weights.pt"
    if weights.exists():
        a, b = checkpoint.load(weights), checkpoint.load(after.path / "weights.pt")
        if checkpoint.digest(a) != checkpoint.digest(b):
            largest = max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())
            lines.append(f"weights: differ by at most {largest:.1e}")
    return lines


def epochs(directory: RunDirectory) -> list[dict[str, str]]:
    """Return the rows of `epochs.csv` without the times."""
    with (directory.path / "epochs.csv").open(encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
