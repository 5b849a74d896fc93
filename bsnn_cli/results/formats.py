"""How tables and figures write numbers, networks and settings for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bsnn_cli.common.table import DASH, Bold
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS

Row = Mapping[Any, Any]
"""A row of a frame of results: its values by the names of the columns."""


def records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of a frame."""
    return list(frame.to_dict("records"))


def dataset_label(name: str) -> str:
    """Return a dataset as tables show it: `mnist` as `MNIST`, an image folder by its own name."""
    return DATASETS[name].label if name in DATASETS else name


def label(row: Row) -> str:
    """Return a network as tables show it, such as `SELU-GPN-d 0.3 + batch norm`."""
    return (
        ACTIVATION_LABELS.get(row["activation"], str(row["activation"]))
        + ("-GPN" if row["gpn"] else "")
        + (f"-d {row['separation']}" if row["separation"] else "")
        + (" + batch norm" if row["batch_norm"] else "")
    )


def setting(row: Row) -> str:
    """Return the dataset, and what sets the protocol apart, such as `MNIST, optim.epochs=1`."""
    name = dataset_label(row["dataset"])
    return f"{name}, {row['setting']}" if row["setting"] else name


@dataclass(frozen=True)
class Notation:
    """How the mean and the spread of a quantity are written.

    Attributes:
        value: writes a mean.
        spread: writes a standard deviation or the half-width of an interval, above 0.
    """

    value: Callable[[float], str]
    spread: Callable[[float], str]


def spread(value: float) -> str:
    """Return a standard deviation or the half width of an interval, above 0, with two decimals or one digit."""
    return f"{value:.2f}" if value >= 0.005 else f"{value:.1g}"


PERCENT = Notation("{:.2f}".format, spread)
"""Accuracies, with two decimals."""


def entry(row: Row | None, notation: Notation = PERCENT, counted: bool | None = None) -> tuple[str, ...]:
    """Return the pieces of a number over seeds, of which the mean is bold where it is the better one.

    It states n if `counted`; if that is None, where there are several runs. Together the pieces read `96.97`,
    `95.54 ± 0.32 [n=3, 95 %: ±0.79, 1 diverged]`, `11.35 [n=3, all equal]`, `diverged`, `3 diverged`,
    `12 ± 3 [n=2, 1 never]` or `–`.
    """
    if row is None:
        return (DASH,)
    n, lost = row["n"], {"diverged": row["diverged"], "never": row.get("unreached", 0)}
    counts = [f"{count} {word}" for word, count in lost.items() if count]
    if n == 0:
        return ((counts[0].removeprefix("1 ") if sum(lost.values()) == 1 else ", ".join(counts)) if counts else DASH,)
    varies = n > 1 and row["std"] > 0
    mean = notation.value(row["mean"]) + (f" ± {notation.spread(row['std'])}" if varies else "")
    notes = [f"n={n}"] if counted or (counted is None and (n > 1 or counts)) else []
    notes += ["all equal"] if n > 1 and not varies else []
    notes += [f"95 %: ±{notation.spread(row['interval'])}"] if varies and not math.isnan(row["interval"]) else []
    notes += counts
    return (Bold(mean) if row.get("better") else mean, *([f" [{', '.join(notes)}]"] if notes else []))


def signed(value: float) -> str:
    """Return a difference with its sign, and a real minus; a dash for NaN."""
    return DASH if pd.isna(value) else f"{value:+.2f}".replace("-", "−")


def number(value: float | None) -> str:
    """Return a number with three digits, such as `0.0231`, `1130` or `5.7e16`; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞"
    rounded = float(f"{value:.3g}")
    text = f"{rounded:g}" if rounded == 0 or 1e-4 <= abs(rounded) < 1e5 else f"{rounded:.3g}"
    return text.replace("e+", "e").replace("e0", "e").replace("e-0", "e-").replace("-", "−")


def value_text(value: object) -> str:
    """Return a value of the configuration as a command line writes it."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return str(value).lower()
    number = float(str(value))
    return str(int(number)) if number.is_integer() else str(number)


def span(row: Row, name: str) -> str:
    """Return the range `low … high` of a quantity."""
    low, high = number(row[f"{name}_low"]), number(row[f"{name}_high"])
    return low if low == high else f"{low} … {high}"
