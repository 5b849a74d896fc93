"""What is to be done for a set of runs, what it will take, and what came of it: all read off the run directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bsnn_cli.checkpoint import CURRENT, PREVIOUS
from bsnn_cli.config import TrainConfig
from bsnn_cli.identity import activation_label, run_directory
from bsnn_cli.knobs import knobs
from bsnn_cli.runs import RunDirectory

UNNAMED = {"activation.name", "activation.gpn", "dataset.kind", "dataset.name", "seed"}
"""Knobs that have a column of their own, or none, in the table of outcomes."""


def finished(config: TrainConfig) -> bool:
    """Whether a run is done or has diverged."""
    return RunDirectory(run_directory(config)).result() is not None


def resumable(config: TrainConfig) -> bool:
    """Whether a run has left a state to go on from."""
    path = run_directory(config)
    return any((path / name).exists() for name in (CURRENT, PREVIOUS))


def untried(config: TrainConfig) -> bool:
    """Whether nothing is known of how a run has ended, or will end."""
    return RunDirectory(run_directory(config)).status() == "interrupted"


def summary(configs: Sequence[TrainConfig]) -> str:
    """The plan in one line, such as "24 runs: 3 finished, 1 to resume, 20 to run"."""
    words = [intent(config) for config in configs]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("finished", "to resume", "to run") if word in words)
    return f"{len(configs)} {'run' if len(configs) == 1 else 'runs'}: {counts}"


def intent(config: TrainConfig) -> str:
    """What the command that asks for this run will do: `finished` (nothing), `to resume` or `to run`."""
    if config.force:
        return "to run"
    return "finished" if finished(config) else "to resume" if resumable(config) else "to run"


def varied(configs: Sequence[TrainConfig]) -> list[str]:
    """Result-changing knobs that differ between runs, but for those that a table names in any case."""
    values = [{key: value for key, entry, value in knobs(config) if entry.metadata["result"]} for config in configs]
    return [key for key in values[0] if key not in UNNAMED and len({row[key] for row in values}) > 1]


def columns(configs: Sequence[TrainConfig]) -> list[tuple[str, ...]]:
    """What tells runs apart, a header first: dataset, activation, what else is varied, seed."""
    keys = varied(configs)
    rows = [("dataset", "activation", *keys, "seed")]
    for config in configs:
        values = {key: value for key, _, value in knobs(config)}
        label = activation_label(config)
        rows.append((str(config.dataset.name), label, *(str(values[key]) for key in keys), str(config.seed)))
    return rows


def outcome(configs: Sequence[TrainConfig]) -> str:
    """What came of the runs, as a table, followed by the reason and the log of each that has failed."""
    rows = columns(configs)
    table, notes = [(*rows[0], "outcome", "test", "directory")], []
    for config, row in zip(configs, rows[1:], strict=True):
        directory = RunDirectory(run_directory(config))
        result, status = directory.result(), directory.status()
        accuracy = "" if result is None or result.test_accuracy is None else f"{result.test_accuracy:.2f} %"
        word = "not finished" if status == "interrupted" else status
        table.append((*row, word, accuracy, str(directory.path)))
        if status == "failed":
            notes.append(f"failed: {' '.join(row)}: {reason(directory.path)}; see {directory.path / 'log.txt'}")
    return "\n".join([align(table), *notes])


def reason(directory: Path) -> str:
    """Why a run has failed, in one line."""
    lines = str(json.loads((directory / "failed.json").read_text())["error"]).splitlines()
    return lines[0] if lines else ""


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def preview(configs: Sequence[TrainConfig]) -> str:
    """What the command would do, for `dry_run=true`."""
    return summary(configs)
