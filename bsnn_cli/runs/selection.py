"""The runs that a user asks for: `dataset=mnist model.depth=200 seed=0,1` of `bsnn runs`, `table` and `figures`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.runs.directory import RunResult
from bsnn_cli.settings import approaches
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.options import options
from bsnn_cli.settings.suggestions import nearest

BETWEEN = re.compile(r",(?![^\[]*\])")
"""A comma between values, not one in a list."""

LISTED = 12
"""Values that a message lists before it only counts the rest."""


def select(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the runs that have all of these settings.

    Args:
        table: a row for each run, as `loading.load_all` reads them.
        where: settings such as `model.depth=50`, or `seed=0,1` for one of the values, or `model.widths=[12,9,6]` for a
            list; `activation`, `dataset`, `approach`, `optim` and `network` as `with_names` names them.

    Raises:
        ConfigError: there is no such setting or column.
    """
    named = with_names(table)
    for entry in where:
        key, _, values = entry.partition("=")
        wanted = {_comparable(value) for value in BETWEEN.split(values)}
        named = named[[_comparable(value) in wanted for value in column(named, entry, key)]]
    return table.loc[named.index]


def require(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the runs that have all of these settings, as `select` does, and at least one if there are any runs.

    Raises:
        ConfigError: there is no such setting or column, or no run has it, with the values that there are.
    """
    chosen = select(table, where)
    if chosen.empty and not table.empty:
        raise ConfigError(mismatch(table, where))
    return chosen


def mismatch(table: pd.DataFrame, where: Sequence[str]) -> str:
    """Return the first setting that leaves no run, and the values that runs with those before it have.

    It reads `seed=7: no run with dataset=mnist; there are 0, 1, 2`; empty if some run has all of them.
    """
    for place, entry in enumerate(where):
        if select(table, where[: place + 1]).empty:
            before = select(table, where[:place])
            key = entry.partition("=")[0]
            values = sorted({_comparable(value) for value in column(with_names(before), entry, key)}, key=_order)
            texts = [typed(value) for value in values]
            rest = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
            there = f"there {'is only' if len(texts) == 1 else 'are'} {', '.join(texts[:LISTED])}{rest}"
            among = f" with {' '.join(where[:place])}" if place else ""
            return f"{entry}: no run{among}; {there if texts else 'there are no runs'}"
    return ""


def with_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with `activation`, `dataset`, `approach`, `optim` and `network` as a command line names them.

    A network of the user's own has the name of its function as activation. An approach is recognised by the settings of
    the network, whether or not the command line named it.
    """
    if table.empty:
        return table
    tailored = table["activation.separation"].notna().map({True: "_d", False: ""})
    gpn = table["activation.gpn"].map({True: "_gpn", False: ""})
    followed = [approaches.recognised(run) for run in table.to_dict("records")]
    names = table["activation.name"]
    if "network.path" in table:
        names = names.mask(table["network.path"].notna(), table["label"])
    named = table.assign(activation=names + gpn + tailored, dataset=table["dataset.name"])
    named = named.assign(
        **{group: table[f"{group}.kind"] for group in ("optim", "network") if f"{group}.kind" in table}
    )
    return named.assign(approach=pd.Series(followed, table.index, dtype=object))


def column(table: pd.DataFrame, argument: str, key: str) -> pd.Series:
    """Return a column of a frame of runs; an empty one where there are no runs.

    Raises:
        ConfigError: there is no such column, with the argument that names it and the nearest columns.
    """
    known = dict.fromkeys([*table.columns, *(field.name for field in dataclasses.fields(RunResult))])
    known |= dict.fromkeys(name for name, _, _ in options(TrainConfig()))
    if key not in known:
        near = nearest(key, known, n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(f"{argument}: there is no column {key}{hint}")
    return table[key] if key in table else pd.Series(index=table.index, dtype=object)


def _comparable(value: object) -> str | float:
    """Return a value as a number where it is one, else as the command line writes it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    text = str(value)
    try:
        return float(text)
    except ValueError:
        return text.lower() if text.lower() in ("true", "false", "null") else text


def typed(value: object) -> str:
    """Return a value of a setting as a user types it."""
    if isinstance(value, float) and not math.isnan(value):
        return f"{value:.12g}"
    comparable = _comparable(value)
    return comparable if isinstance(comparable, str) else str(value)  # a large seed has more digits than a float


def _order(value: str | float) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")
