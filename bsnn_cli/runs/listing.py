"""The tables of `bsnn runs`: every run with its progress, why runs failed, and what can be deleted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bsnn_cli.common.files import read_text
from bsnn_cli.errors import ConfigError
from bsnn_cli.runs import loading, selection
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.watch import Watch, follow


def overview(
    output_root: str, status: str | None = None, where: Sequence[str] = (), sort: str | None = None
) -> pd.DataFrame:
    """Return a row for each run, by directory unless sorted: what and how far it is, its last metrics, its directory.

    Where no run is what is asked for, a line on standard error says why.

    Args:
        output_root: folder with the runs.
        status: only these; with `failed` a column says why.
        where: only runs with these settings, such as `model.depth=50` or `seed=0,1`, one of the values.
        sort: a column of `loading.load_all`, or its name after a minus: largest first. It is shown too.

    Raises:
        ConfigError: there is no such setting or column.
    """
    table = loading.load_all(output_root)
    if not len(table):
        return pd.DataFrame()
    last = pd.DataFrame([_last_epoch(Path(directory)) for directory in table["directory"]])
    for metric in ("train_loss", "test_accuracy"):  # of runs that are not finished too
        table[metric] = last.get(metric)
    chosen = selection.with_names(selection.select(table, asked(status, where)))
    if chosen.empty:
        print(selection.mismatch(table, asked(status, where)), file=sys.stderr)
    table = chosen
    if sort is not None:
        table = _sorted(table, sort)
    return _columns(table, status == "failed", None if sort is None else sort.removeprefix("-"))


def asked(status: str | None, where: Sequence[str]) -> list[str]:
    """Return all that is asked of runs as settings, the status first."""
    return [*([] if status is None else [f"status={status}"]), *where]


def watch(output_root: str, status: str | None = None, where: Sequence[str] = ()) -> None:
    """Follow the runs that `overview` lists until all of them have ended; arguments and errors as there.

    Raises:
        ConfigError: there is no such run.
    """
    table = selection.require(loading.load_all(output_root), asked(status, where))
    if not len(table):
        raise ConfigError(f"output_root={output_root}: there is no such run to watch")
    directories = [RunDirectory(Path(directory)) for directory in table["directory"]]
    follow(
        Watch(
            [directory.config() for directory in directories],
            [directory.path for directory in directories],
            lambda path: RunDirectory(path).status() == "running",
        )
    )


def _columns(table: pd.DataFrame, failed: bool, extra: str | None) -> pd.DataFrame:
    """Return the columns that a person wants to see of the rows of `loading.load_all`."""
    progress = [f"{done}/{total}" for done, total in zip(table["epoch"], table["optim.epochs"], strict=True)]
    columns = {
        "dataset": table["dataset"],
        "activation": table["label"],
        "protocol": table["protocol"],
        "seed": table["seed"],
        "status": table["status"],
        "epochs": progress,
        "train_loss": table["train_loss"].astype(float),
        "test_accuracy": table["test_accuracy"].astype(float),
        "train_accuracy": table["train_accuracy"].astype(float),
    }
    if extra is not None and extra not in (*columns, "directory"):
        columns[extra] = table[extra]
    columns["directory"] = table["directory"]
    if failed:
        columns["error"] = [_error(Path(directory)) for directory in table["directory"]]
    return pd.DataFrame(columns).reset_index(drop=True) if len(table) else pd.DataFrame()


def _sorted(table: pd.DataFrame, sort: str) -> pd.DataFrame:
    key = sort.removeprefix("-")
    column = selection.column(table, f"sort={sort}", key)
    return table.loc[column.sort_values(ascending=key == sort, kind="stable", na_position="last").index]


def _last_epoch(directory: Path) -> dict[str, float]:
    path = directory / "epochs.csv"
    epochs = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return dict(epochs.iloc[-1]) if len(epochs) else {}


def _error(directory: Path) -> str:
    return str(json.loads(read_text(directory / "failed.json"))["error"])


def prune(output_root: str, delete: bool) -> str:
    """Delete what no result needs, or say what that would free.

    Checkpoints of finished runs, and what killed processes have left half written, can go; a run that is going on or
    can be resumed keeps its checkpoints.
    """
    lines, total = [], 0
    statuses = Counter[str]()
    for directory in loading.directories(output_root):
        statuses[directory.status()] += 1
        for path in prunable(directory):
            size = path.stat().st_size
            total += size
            lines.append(f"{size / 1e6:10.1f} MB  {path}")
            if delete:
                path.unlink()
    if not lines:
        kept = ", ".join(f"{count} {status}" for status, count in statuses.items())
        why = "finished runs have no checkpoints left, and others need theirs" if kept else "there are no runs"
        return f"nothing to free: {why}" + (f" ({kept})" if kept else "")
    verb = "freed" if delete else "would free"
    hint = "" if delete or not lines else "; yes=true deletes them"
    return "\n".join([*lines, f"{verb} {total / 1e6:.1f} MB in {len(lines)} files{hint}"])


def prunable(directory: RunDirectory) -> list[Path]:
    """Return the files of a run that no result and no resumption needs."""
    if directory.status() == "running":
        return []
    finished = directory.result() is not None
    return sorted([*directory.path.glob(".*.tmp"), *(directory.path.glob("checkpoint.*pt") if finished else ())])
