"""Metrics that a training records in every epoch, as a figure shows them: names, axes, and spread over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures.figure import Axis, finite
from bsnn_cli.settings.choices import METRICS

NAMES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "validation_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "learning_rate": "learning rate",
    "orthogonality_error": "largest |WᵀW − I|",
    "elapsed_s": "wall time",
}
"""The metrics of `choices.METRICS` in words."""

UNITS = {"loss": "nats", "accuracy": "%", "s": "s"}
"""By the last word of a metric."""

SPANNING = 10.0
"""A positive metric whose largest value is more than this multiple of its smallest has a logarithmic axis, unless it is
an accuracy or a time."""

FEW_DECADES = 2.5
"""Up to so many, 2 and 5 times each power of ten have a label too."""

ROOM = 0.05
"""Left free above and below the curves, as a share of what they span."""

POINTS = 12
"""A curve of so many epochs or fewer has a dot at each."""

MEASURED_BY = {
    "validation": "dataset.validation=0.1 sets samples aside",
    "train": "eval.train_every=1 measures it in every epoch",
}
"""The setting that makes a run measure a metric, by the first word of its name."""

DIVERGED = " (runs that diverged as far as they came)"
"""Note in a caption where curves are means that include runs which diverged."""


def require(metric: str, epochs: pd.DataFrame) -> None:
    """Refuse a metric that no run has measured, or once only.

    Args:
        metric: one of `choices.METRICS`.
        epochs: as `loading.load_epochs` reads them; files of before a metric was recorded do without it.

    Raises:
        ConfigError: no run has it, or no run more than once though it has several epochs.
    """
    remedy = MEASURED_BY.get(metric.partition("_")[0], "train again with force=true")
    if metric not in epochs or epochs[metric].isna().all():
        there = [name for name in METRICS if name in epochs and epochs[name].notna().any()]
        raise ConfigError(f"metric={metric}: no run has measured it ({remedy}); there are {', '.join(there)}")
    times = epochs[epochs[metric].notna()].groupby("directory").size()
    if times.max() < 2 <= epochs["epoch"].max():
        raise ConfigError(f"metric={metric}: measured once in each run, which makes no curve ({remedy})")


def epochs(last: int) -> Axis:
    """Return the axis of the epochs, with room for the dots of a short training."""
    room = 0.03 * (last - 1) if last <= POINTS else 0.0
    return Axis("epoch", limits=(1 - room, max(last, 2) + room), whole=True)


def axis(metric: str, tables: Iterable[pd.DataFrame]) -> Axis:
    """Return the axis of a metric with room for all curves and their bands.

    Args:
        metric: one of `choices.METRICS`.
        tables: rows of `statistics.curves`.
    """
    rows = pd.concat(list(tables))
    kind = metric.rpartition("_")[2]
    label = NAMES[metric] + (f" ({UNITS[kind]})" if kind in UNITS else "")
    means = finite(rows["mean"])
    if not means:
        return Axis(label)
    log = kind not in ("accuracy", "s") and min(means) > 0 and max(means) > SPANNING * min(means)
    ends = finite(np.concatenate([means, *band(rows, log)]))
    if log:
        room = (max(ends) / min(ends)) ** ROOM
        limits = min(ends) / room, max(ends) * room
        return Axis(label, log=True, limits=limits, ticks=ticks(*limits))
    room = ROOM * ((max(ends) - min(ends)) or 1.0)
    low, high = min(ends) - room, max(ends) + room
    if kind == "accuracy":
        low, high = max(low, -1.0), min(high, 101.0)
    return Axis(label, limits=(low if min(ends) < 0 or kind == "accuracy" else max(low, 0.0), high))


def band(rows: pd.DataFrame, log: bool) -> tuple[pd.Series, pd.Series]:
    """Return the ends of one sample standard deviation around each mean; on a logarithmic axis it is a factor.

    The factor is 1 + std / mean on both sides: mean − std may be negative, where a logarithmic axis has no place.
    """
    if log:
        factor = 1 + rows["std"] / rows["mean"]
        return rows["mean"] / factor, rows["mean"] * factor
    return rows["mean"] - rows["std"], rows["mean"] + rows["std"]


def curve(rows: pd.DataFrame, y: Axis) -> dict[str, Any]:
    """Return the numbers of a `Series` of rows of `statistics.curves`: with a band where there are several seeds."""
    numbers: dict[str, Any] = {"x": rows["epoch"], "y": rows["mean"], "marker": "o" if len(rows) <= POINTS else ""}
    if rows["std"].notna().any():
        numbers["low"], numbers["high"] = band(rows, y.log)
    return numbers


def ticks(low: float, high: float) -> tuple[float, ...]:
    """Return labels 1, 2, 5, 10, … between two ends; none over many decades, where the library chooses."""
    if math.log10(high / low) > FEW_DECADES:
        return ()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = (digit * 10.0**power for power in powers for digit in (1, 2, 5))
    return tuple(place for place in places if low <= place <= high)


def spread_in_words(axes: Iterable[Axis]) -> str:
    """Return what a band is, for the caption of a figure with these axes."""
    logs = {axis.log for axis in axes}
    factor = {frozenset({True}): ", as a factor", frozenset({False}): ""}
    return "band ± one sample standard deviation" + factor.get(frozenset(logs), ", on logarithmic axes as a factor")
