"""The tables of `bsnn runs`: every run with its progress, why runs failed, and what can be deleted."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bsnn_cli.common.files import read_text
from bsnn_cli.common.table import Column, Table, render, text_of, to_markdown, to_terminal, to_text
from bsnn_cli.errors import ConfigError
from bsnn_cli.runs import loading, selection
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.watch import Watch, follow
from bsnn_cli.settings.config import RunsConfig, TrainConfig
from bsnn_cli.settings.options import options

SETTINGS = tuple(key for key, _, _ in options(TrainConfig()))


def listing(config: RunsConfig, width: int | None) -> str:
    """Return the runs that are asked for, in the form that is asked for.

    On a terminal, a text has only the settings that differ, says what the runs have in common once above them, and is
    shortened to the width of the terminal. Anywhere else nothing is left out or shortened.

    Args:
        config: of `bsnn runs`.
        width: of the terminal in characters; None if the text goes elsewhere.

    Raises:
        ConfigError: there is no such setting or column.
    """
    table = chosen(config.output_root, config.status, config.where or [], config.sort)
    also = [] if config.sort is None else [config.sort.removeprefix("-")]
    also += ["error"] if config.status == "failed" else []
    everything = shown(table, also, config.columns)
    if config.format in ("csv", "json") or table.empty:
        return render(everything, config.format)
    if config.format == "markdown":
        return to_markdown(for_people(everything))
    if width is None:
        return to_text(for_people(everything))
    common = "" if config.columns else in_common(table)
    frame = everything if config.columns else _with_short_paths(shown(table, also, differing(table)))
    text, gone = to_terminal(for_people(frame, brief=True), width)
    hint = f"not shown, for want of width: {', '.join(gone)}; columns= chooses what is" if gone else ""
    return "\n".join(part for part in (*textwrap.wrap(common, width), text, hint) if part)


def chosen(
    output_root: str, status: str | None = None, where: Sequence[str] = (), sort: str | None = None
) -> pd.DataFrame:
    """Return the rows of `loading.load_all` that are asked for, by directory unless sorted; also with last metrics.

    Where no run is what is asked for, a line on standard error says why.

    Args:
        output_root: folder with the runs.
        status: only these.
        where: only runs with these settings, such as `model.depth=50` or `seed=0,1`, one of the values.
        sort: a column of `loading.load_all`, or its name after a minus: largest first.

    Raises:
        ConfigError: there is no such setting or column.
    """
    table = loading.load_all(output_root)
    if table.empty:
        return table
    last = pd.DataFrame([_last_epoch(Path(directory)) for directory in table["directory"]])
    for metric in ("train_loss", "test_accuracy", "validation_accuracy"):  # of runs that are not finished too
        table[metric] = last.get(metric)
    rows = selection.with_names(selection.select(table, asked(status, where)))
    if rows.empty:
        print(selection.mismatch(table, asked(status, where)), file=sys.stderr)
    return rows if sort is None or rows.empty else _sorted(rows, sort)


def asked(status: str | None, where: Sequence[str]) -> list[str]:
    """Return all that is asked of runs as settings, the status first."""
    return [*([] if status is None else [f"status={status}"]), *where]


def watch(output_root: str, status: str | None = None, where: Sequence[str] = ()) -> None:
    """Follow the runs that `chosen` returns until all of them have ended; arguments and errors as there.

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


def shown(table: pd.DataFrame, also: Sequence[str] = (), columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the columns that a person wants to see of runs, as `chosen` returns them.

    Args:
        table: the runs.
        also: columns that are shown besides.
        columns: those that are shown; None for what is of most interest. `error` says why a run failed.

    Raises:
        ConfigError: there is no such column.
    """
    if table.empty:
        return pd.DataFrame()
    validated = table["validation_accuracy"].astype(float)
    usual = {
        "dataset": table["dataset"],
        "activation": table["label"],
        "protocol": table["protocol"],
        "seed": table["seed"],
        "status": table["status"],
        "epochs": [f"{done}/{total}" for done, total in zip(table["epoch"], table["optim.epochs"], strict=True)],
        "train_loss": table["train_loss"].astype(float),
        "test_accuracy": table["test_accuracy"].astype(float),
        "train_accuracy": table["train_accuracy"].astype(float),
        **({"validation_accuracy": validated} if validated.notna().any() else {}),
        "directory": table["directory"],
    }
    if "error" in (*also, *(columns or ())):
        usual["error"] = [_error(Path(directory)) for directory in table["directory"]]
    if columns is None:  # where a run lies, and why it failed, can be long, and stand at the end
        last = [name for name in usual if name in ("directory", "error")]
        columns = [*(name for name in (*usual, *also) if name not in last), *last]
    named = {
        name: usual[name] if name in usual else selection.column(table, f"columns={name}", name)
        for name in dict.fromkeys([*columns, *also])
    }
    return pd.DataFrame(named, index=table.index).reset_index(drop=True)


def differing(table: pd.DataFrame) -> list[str]:
    """Return the columns of `shown` that tell runs apart, and what became of them; settings by their keys."""
    alike = common(table)
    columns = ["dataset", "activation", *_settings(table), "seed", "status", "epochs"]
    metrics = ("test_accuracy", "train_loss", "train_accuracy", "validation_accuracy")
    columns += [name for name in metrics if table[name].notna().any()]
    return [*(name for name in columns if name not in alike), "directory"]


def common(table: pd.DataFrame) -> dict[str, str]:
    """Return the settings and the status that all runs have in common, as a user types them."""
    columns = ["dataset", "activation", *_settings(table), "seed", "status", "epochs"]
    texts = {name: {selection.typed(value) for value in shown(table, columns=[name])[name]} for name in columns}
    return {name: min(values) for name, values in texts.items() if len(values) == 1}


def in_common(table: pd.DataFrame) -> str:
    """Return a line that counts the runs and says what they have in common."""
    alike = " ".join(f"{key}={value}" for key, value in common(table).items())
    return f"{len(table)} runs, all {alike}" if len(table) > 1 and alike else f"1 run, {alike}" if alike else ""


def _settings(table: pd.DataFrame) -> list[str]:
    """Return the keys that set any run apart from the paper's protocol; epochs are shown with how many are done."""
    apart = {key for protocol in table["settings"] for key in protocol.settings}
    return [key for key in SETTINGS if key in apart and key != "optim.epochs"]


def for_people(frame: pd.DataFrame, brief: bool = False) -> Table:
    """Return a frame of runs as a table: settings as they are typed, metrics with two decimals.

    Args:
        frame: as `shown` returns it.
        brief: whether a heading is only the last part of a key, such as `lr`, where that names no other column.
    """
    ends = Counter(name.rpartition(".")[2] for name in frame.columns)
    columns = [
        Column(
            end if brief and ends[end := name.rpartition(".")[2]] == 1 else name,
            words=not pd.api.types.is_numeric_dtype(frame[name]),
            ends=name == "directory",
        )
        for name in frame.columns
    ]
    texts = [[(selection.typed if name in SETTINGS else text_of)(value) for value in frame[name]] for name in frame]
    return Table(columns, [list(row) for row in zip(*texts, strict=True)])


def _with_short_paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with directories from the folder of the dataset on."""
    return frame.assign(directory=frame["directory"].map(lambda path: "/".join(Path(path).parts[-3:])))


def _sorted(table: pd.DataFrame, sort: str) -> pd.DataFrame:
    key = sort.removeprefix("-")
    column = selection.column(table, f"sort={sort}", key)
    return table.loc[column.sort_values(ascending=key == sort, kind="stable", na_position="last").index]


def _last_epoch(directory: Path) -> dict[str, float]:
    path = directory / "epochs.csv"
    epochs = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return dict(epochs.iloc[-1]) if len(epochs) else {}


def _error(directory: Path) -> str | None:
    path = directory / "failed.json"
    return str(json.loads(read_text(path))["error"]) if path.exists() else None


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
