"""Runs at the settings that validation chooses, for `bsnn table tune=…`. The test split has no part in the choice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bsnn_cli.common.table import DASH
from bsnn_cli.errors import ConfigError
from bsnn_cli.results import pivot, statistics
from bsnn_cli.results.formats import Row, records, value_text
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import Protocol
from bsnn_cli.settings.options import options
from bsnn_cli.settings.suggestions import nearest

OPTIONS = {
    key: entry
    for key, entry, _ in options(TrainConfig())
    if entry.metadata["result"] and not key.startswith("dataset.")
}
"""Keys of which validation may choose the value; of datasets, accuracies cannot be compared."""

VALIDATION = "dataset.validation=0.1 sets a part of the training split aside"

COVERED = {"activation": [*pivot.AXES["activation"], statistics.TAILORED_DEPTH, statistics.PARAMETER]}
"""Keys that a short name stands for."""

EDGES = {"lowest": "↓", "highest": "↑"}
"""Marks of a choice beyond which no value was tried."""

TRAINS = 2.0
"""Least accuracy of a network that trains, as a multiple of that of chance."""

DIGITS = 9
"""Decimals to which accuracies are compared, so that the order in which seeds are added decides nothing."""


@dataclass(frozen=True)
class Tuned:
    """Runs at the chosen values of some keys.

    Attributes:
        keys: that have been tuned.
        runs: those at the chosen values, as `statistics.finished` returns them; the keys are not in their `protocol`.
        choices: a row for each key and `identity` of these runs: `value` (None where every run diverged), `tried` (how
            many values, with the other keys at theirs), `trained` (at how many of these the mean validation accuracy is
            at least twice that of chance, 100 % over the number of classes), `edge` (`lowest` or `highest` where no
            value was tried beyond, else empty) and `validation_accuracy` (in percent, mean over the seeds).
        left_out: number of finished runs without a validation accuracy.
    """

    keys: Sequence[str]
    runs: pd.DataFrame
    choices: pd.DataFrame
    left_out: int

    def of(self, key: str) -> pd.DataFrame:
        """Return the choices of a key by identity."""
        return self.choices[self.choices["key"] == key].set_index("identity")

    def texts(self, key: str) -> dict[str, str]:
        """Return the chosen values by identity, such as `0.01`, `0.1 ↑`, `0.01 [of 5]` or, where all diverged, `–`."""
        choices = self.of(key)
        varies = choices["tried"].nunique() > 1
        return {
            str(identity): (DASH if row["value"] is None else value_text(row["value"]))
            + (f" {EDGES[row['edge']]}" if row["edge"] else "")
            + (f" [of {row['tried']}]" if varies else "")
            for identity, row in zip(choices.index, records(choices), strict=True)
        }

    def note(self, key: str) -> str:
        """Return what a reader has to know of the texts of a key, such as `of 5 values tried`."""
        choices = self.of(key)
        counts = set(choices["tried"])
        count = f", of {max(counts)} values tried" if len(counts) == 1 else " [of the number of values tried]"
        count = ", the only value tried" if counts == {1} else count
        marks = [mark for edge, mark in EDGES.items() if (choices["edge"] == edge).any()]
        beyond = f"; {' '.join(marks)} at the edge of these: the best may lie beyond" if marks else ""
        lost = f"; {DASH} all runs diverged" if choices["value"].isna().any() else ""
        return f"{key} chosen by validation accuracy{count}{beyond}{lost}"


def choose(runs: pd.DataFrame, keys: Sequence[str]) -> Tuned:
    """Return the runs at the values of keys that have the highest mean validation accuracy at the end of training.

    Runs that are equal in everything but the keys and the seed are one group, and from each a value (of several keys:
    a combination) is chosen, by the mean over the seeds that it has. One at which more runs have diverged is never
    chosen over one with fewer, unless at that one no run is left. Of equal ones it is the smallest, or the first in the
    order of tables.

    Args:
        runs: as `statistics.finished` returns them.
        keys: dotted keys of a network or its training, or `activation`.

    Raises:
        ConfigError: a key that cannot be tuned, or no run with a validation share.
    """
    keys = list(dict.fromkeys(keys))
    check(keys)
    validated = runs["validation_accuracy"].notna() | (runs["status"] == "diverged")
    candidates = runs[validated & (runs["dataset.validation"] > 0)].reset_index(drop=True)
    if candidates.empty:
        raise ConfigError(f"tune={','.join(keys)}: no run has a validation accuracy to choose by; {VALIDATION}")
    values = list(zip(*(values_of(candidates, key) for key in keys), strict=True))
    groups: dict[Protocol, dict[tuple[Any, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(records(candidates)):
        groups[_rest(run, keys)][values[place]].append(place)
    kept, choices = list[int](), list[Row]()
    for group in groups.values():
        ranks = {value: _rank(value, candidates.loc[places]) for value, places in group.items()}
        best = min(ranks, key=ranks.__getitem__)
        kept += group[best]
        choices += _choices(keys, best, {value: candidates.loc[places] for value, places in group.items()})
    chosen = candidates.loc[sorted(kept)].reset_index(drop=True)
    covered = _covered(keys)
    chosen["protocol"] = chosen["protocol"].map(lambda protocol: statistics.without(protocol, *covered))
    return Tuned(keys, chosen, pd.DataFrame(choices, dtype=object), len(runs) - len(candidates))


def check(keys: Sequence[str], argument: str = "tune") -> None:
    """Refuse keys that cannot be tuned.

    Args:
        keys: to be checked.
        argument: of the command line that has named them.

    Raises:
        ConfigError: naming one of them, and the nearest that can.
    """
    known = ["activation", *OPTIONS]
    for key in keys:
        if key not in known and not key.startswith("network.kwargs."):
            near = nearest(key, known, n=3, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            hint = "; accuracies are means over seeds" if key == "seed" else hint
            raise ConfigError(
                f"{argument}={key}: must be activation or a dotted key of a network or its training such as "
                f"optim.lr{hint}"
            )


def _covered(keys: Sequence[str]) -> set[str]:
    return {covered for key in keys for covered in (key, *COVERED.get(key, []))}


def _rest(run: Row, keys: Sequence[str]) -> Protocol:
    """Return everything that can change the result of a run but the keys and the seed."""
    labels = {"dataset": run["dataset"], "activation.name": run["activation"], "activation.gpn": run["gpn"]}
    labels |= {"model.norm": "batch"} if run["batch_norm"] else {}
    return statistics.without(Protocol(tuple((labels | run["settings"].settings).items())), *_covered(keys))


def values_of(runs: pd.DataFrame, key: str) -> list[Any]:
    """Return the value of each run; an absent one is the string `none`, as in the labels of a table."""
    if key != statistics.SEPARATION:
        return list(pivot.axis_values(runs, key, named=False))
    values = runs[key].astype(object)
    return list(values.where(values.notna(), "none"))


def _without(value: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return value[:place] + value[place + 1 :]


def _rank(value: tuple[Any, ...], runs: pd.DataFrame) -> tuple[Any, ...]:
    """Return a sort key of the runs at a value: the best one comes first."""
    mean = runs["validation_accuracy"].astype(float).mean()
    order = [statistics.axis_order(entry) for entry in value]
    none_left = math.isnan(mean)
    return (none_left, (runs["status"] == "diverged").sum(), 0.0 if none_left else -round(mean, DIGITS), order)


def _choices(
    keys: Sequence[str], best: tuple[Any, ...], values: Mapping[tuple[Any, ...], pd.DataFrame]
) -> Iterator[Row]:
    """Yield the rows of `Tuned.choices` of a group, of which the runs at each of the values are given."""
    runs = values[best]
    mean = runs["validation_accuracy"].astype(float).mean()
    for place, key in enumerate(keys):
        beside = {value: runs for value, runs in values.items() if _without(value, place) == _without(best, place)}
        tried = {value[place] for value in beside}
        counts = {"tried": len(tried), "trained": sum(map(_trains, beside.values()))}
        chosen = {"value": None, "edge": ""}
        if not math.isnan(mean):
            chosen = {"value": best[place], "edge": _edge(key, best[place], tried)}
        for identity in runs["identity"].unique():
            yield {"key": key, "identity": identity, "validation_accuracy": mean} | counts | chosen


def _trains(runs: pd.DataFrame) -> bool:
    """Return whether runs are better than chance on average; results that do not name their classes had ten."""
    chance = 100 / runs["classes"].astype(float).fillna(10)
    return bool((runs["validation_accuracy"].astype(float) - TRAINS * chance).mean() >= 0)


def _edge(key: str, value: Any, tried: set[Any]) -> str:
    """Return `lowest` or `highest` where a number is that of those tried, and the key may go beyond it; else empty."""
    numbers = [entry for entry in tried if isinstance(entry, (int, float)) and not isinstance(entry, bool)]
    if value not in numbers or len(numbers) < 2:
        return ""
    rule = OPTIONS[key].metadata["rule"] if key in OPTIONS else None
    for edge, extreme, beyond in (("lowest", min(numbers), -math.inf), ("highest", max(numbers), math.inf)):
        if value == extreme and (rule is None or rule.accepts(math.nextafter(value, beyond))):
            return edge
    return ""
