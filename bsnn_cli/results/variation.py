"""Runs that differ in a number that was varied, such as the learning rate, and are otherwise alike."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bsnn_cli.results import pivot, statistics, tuned
from bsnn_cli.results.formats import records
from bsnn_cli.settings.identity import Protocol

FEWEST = 3
"""Values that a setting has to have in some network, to count as varied where no key is asked for."""

RATE = "optim.lr"

BY_THEMSELVES = (pivot.NO_APPROACH, "bsnn")
"""Approaches whose networks are named after their activation alone."""


def varied(
    runs: pd.DataFrame, groups: tuple[str, ...] = ("optim.", "model.")
) -> tuple[str, dict[Protocol, pd.DataFrame]]:
    """Return the key that was varied, the learning rate first and whole numbers last, and the runs that differ in it.

    There are none if no key has `FEWEST` values in runs of one network that are otherwise alike.

    Args:
        runs: as `statistics.finished` returns them, or empty.
        groups: beginnings of the keys that are looked at.
    """
    kinds = {key: str(entry.type) for key, entry in tuned.OPTIONS.items() if key.startswith(groups)}
    numeric = [key for key, kind in kinds.items() if kind.startswith(("int", "float"))]
    for key in sorted(numeric, key=lambda key: (key != RATE, kinds[key].startswith("int"))):
        if not runs.empty and (sets := alike(runs, key, FEWEST)):
            return key, sets
    return RATE, {}


def numbers(runs: pd.DataFrame, key: str) -> pd.Series:
    """Return the value of each run that has a number there."""
    values = pd.Series(tuned.values_of(runs, key), runs.index, dtype=object)
    numeric = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in values]
    return values[numeric].astype(float)


def alike(runs: pd.DataFrame, key: str, fewest: int) -> dict[Protocol, pd.DataFrame]:
    """Return the runs by what they have in common: those of networks with so many values of a key, or more.

    They have new columns: `setting`, the value; `followed` and `form`, approach and activation as `pivot.axis_values`
    returns them.
    """
    values = numbers(runs, key)
    if values.nunique() < fewest:
        return {}
    runs = runs.loc[values.index]
    runs = runs.assign(
        setting=values,
        followed=pivot.axis_values(runs, "approach", named=False),
        form=pivot.axis_values(runs, "activation", named=key == statistics.SEPARATION),
    )
    common = pd.Series([shared(run, key, "approach") for run in records(runs)], runs.index, dtype=object)
    enough = runs.groupby([common, "followed", "form"])["setting"].transform("nunique") >= fewest
    return {settings: runs[enough & (common == settings)] for settings in sorted(set(common[enough]))}


def shared(run: dict[Any, Any], *keys: str) -> Protocol:
    """Return all settings of a run, but for its seed, that the keys do not cover."""
    covered = pivot.covered_by(keys, run)
    rest = pivot.rest_of(run, covered)
    return statistics.naming_norm(rest) if run["batch_norm"] and "model.norm" not in covered else rest


def tried(runs: pd.DataFrame) -> tuple[str, pd.Series]:
    """Return a number of the optimiser, such as the learning rate, and which runs try values of it for validation.

    A depth or a width that was varied is the subject of a study, and not something to choose.

    Args:
        runs: as `statistics.finished` returns them; not empty.
    """
    key, sets = varied(runs[runs["dataset.validation"] > 0], ("optim.",))
    return key, pd.Series(runs.index.isin([place for part in sets.values() for place in part.index]), runs.index)
