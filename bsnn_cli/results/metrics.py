"""The quantities that a table shows: accuracy, loss, and the epochs that a run takes to an accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.results.formats import PERCENT, Notation
from bsnn_cli.results.statistics import SPLITS
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import metric_parts
from bsnn_cli.settings.config import METRIC

LOSS = Notation(lambda value: f"{value:#.3g}".rstrip("."), lambda value: f"{value:#.2g}".rstrip("."))
"""Cross-entropies, with three digits, as they run from 2.3 down to 1e-5."""

EPOCHS = Notation(lambda value: f"{value:.1f}".removesuffix(".0"), lambda value: f"{value:.2g}")
"""Numbers of epochs, whole or a mean of whole ones."""


@dataclass(frozen=True)
class Metric:
    """A quantity of a run at the end of its training.

    Attributes:
        name: `accuracy`, `loss` or `epochs_to_P`.
        heading: the quantity of a split with its unit, as a caption names it.
        notation: how its numbers are written.
        lowest: whether the lowest number is the best one.
        target: the accuracy of `epochs_to_P` in percent.
    """

    name: str
    heading: str
    notation: Notation
    lowest: bool = False
    target: float | None = None

    def score(self, means: pd.Series) -> pd.Series:
        """Return numbers that are higher for better means, at the digits that a table shows."""
        shown = means.map(lambda mean: float(self.notation.value(mean)))
        return -shown if self.lowest else shown


ACCURACY = Metric("accuracy", "{split} accuracy (%)", PERCENT)
METRICS = {
    "accuracy": ACCURACY,
    "loss": Metric("loss", "{split} loss (nats)", LOSS, lowest=True),
}


@dataclass(frozen=True)
class Quantity:
    """A metric of a split.

    Attributes:
        metric: of a run at the end of its training.
        split: `test`, `train` or `validation`.
    """

    metric: Metric
    split: str

    @property
    def heading(self) -> str:
        """The quantity with its unit, such as `test accuracy (%)`."""
        return self.metric.heading.format(split={"train": "training"}.get(self.split, self.split))


def parse(metric: str, split: str) -> tuple[Metric, list[str]]:
    """Return a metric and the splits it is asked for, as the keys `metric` and `split` of `bsnn table` give them.

    Raises:
        ConfigError: there is no such metric.
    """
    parts = metric_parts(metric)
    if parts is None:
        raise ConfigError(f"metric={metric}: must be {METRIC.words}")
    name, stated, target = parts
    splits = [stated] if stated is not None else [*SPLITS] if split == "both" else [split]
    if target is None:
        return METRICS[name], splits
    return Metric(f"epochs_to_{target:g}", f"epochs to {target:g} % {{split}} accuracy", EPOCHS, True, target), splits


def values(metric: Metric, split: str, runs: pd.DataFrame, results: Results) -> pd.Series:
    """Return a number of each run: NaN where it has diverged or has none, infinite where it never got to the target.

    Args:
        metric: what is asked for.
        split: `test`, `train` or `validation`.
        runs: as `statistics.finished` returns them.
        results: of which they are; the epochs are read if they are needed.
    """
    done = runs["status"] == "done"
    if metric.target is not None:
        numbers = runs["directory"].map(_epochs_to(metric.target, f"{split}_accuracy", results.epochs))
    else:
        numbers = runs[f"{split}_{metric.name}"]
    return numbers.astype(float).where(done)


def _epochs_to(target: float, column: str, epochs: pd.DataFrame) -> dict[str, float]:
    """Return the first epoch with an accuracy of `target`; of runs whose every epoch has been evaluated."""
    numbers = {}
    for directory, rows in epochs.groupby("directory"):
        accuracies = rows.get(column, pd.Series(dtype=float)).astype(float)
        if len(accuracies) and accuracies.notna().all():
            numbers[str(directory)] = float(rows["epoch"][accuracies >= target].min())
    return {directory: math.inf if math.isnan(first) else first for directory, first in numbers.items()}
