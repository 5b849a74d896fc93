"""What `bsnn runs` shows: every run with its progress, why runs failed, and what can be deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bsnn_cli import runs
from bsnn_cli.runs import RunDirectory


def overview(output_root: str, status: str | None) -> pd.DataFrame:
    """One row a run: what it is, how far it is, its last metrics, where it lies.

    Args:
        output_root: folder with the runs.
        status: only these; with `failed` a column says why.
    """
    table = runs.load_all(output_root)
    if status is not None and len(table):
        table = table[table["status"] == status]
    if not len(table):
        return pd.DataFrame()
    last = [_last_epoch(Path(directory)) for directory in table["directory"]]
    columns = {
        "dataset": table["dataset.name"],
        "activation": table["label"],
        "protocol": table["protocol"],
        "seed": table["seed"],
        "status": table["status"],
        "epochs": [f"{done}/{total}" for done, total in zip(table["epoch"], table["optim.epochs"], strict=True)],
        "train_loss": [row.get("train_loss") for row in last],
        "test_accuracy": [row.get("test_accuracy") for row in last],
        "train_accuracy": table["train_accuracy"].astype(float),
        "directory": table["directory"],
    }
    if status == "failed":
        columns["error"] = [_error(Path(directory)) for directory in table["directory"]]
    return pd.DataFrame(columns).reset_index(drop=True)


def _last_epoch(directory: Path) -> dict[str, float]:
    path = directory / "epochs.csv"
    epochs = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return dict(epochs.iloc[-1]) if len(epochs) else {}


def _error(directory: Path) -> str:
    return str(json.loads((directory / "failed.json").read_text())["error"])


def prune(output_root: str, delete: bool) -> str:
    """Delete what no result needs, or say what that would free.

    Checkpoints of finished runs, and what killed processes have left half written, can go; a run that is going on or
    can be resumed keeps its checkpoints.
    """
    lines, total = [], 0
    for directory in runs.directories(output_root):
        for path in prunable(directory):
            size = path.stat().st_size
            total += size
            lines.append(f"{size / 1e6:10.1f} MB  {path}")
            if delete:
                path.unlink()
    verb = "freed" if delete else "would free"
    hint = "" if delete or not lines else "; yes=true deletes them"
    return "\n".join([*lines, f"{verb} {total / 1e6:.1f} MB in {len(lines)} files{hint}"])


def prunable(directory: RunDirectory) -> list[Path]:
    """Files of a run that no result and no resumption needs."""
    if directory.status() == "running":
        return []
    finished = directory.result() is not None
    return sorted([*directory.path.glob(".*.tmp"), *(directory.path.glob("checkpoint.*pt") if finished else ())])
