"""Everything that is stored under an output folder, read once: runs, epochs, measurements, theory, speed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.measuring import propagation_store
from bsnn_cli.results import comparisons, statistics
from bsnn_cli.runs import loading, selection


class Results:
    """The stored results under an output folder; nothing is read before it is asked for.

    Args:
        output_root: folder with the results.
        where: only runs with these settings, as `selection.select` takes them, and measurements of their networks.
            Measurements of fresh networks are all there.
    """

    def __init__(self, output_root: str | Path, where: Sequence[str] = ()) -> None:
        self.root = Path(output_root)
        self.where = where

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """The run directories that are asked for, a row each.

        Raises:
            ConfigError: an unknown setting, or one that no run has.
        """
        return selection.require(loading.load_all(self.root), self.where)

    @functools.cached_property
    def finished(self) -> pd.DataFrame:
        """The runs that count, with the axes of the paper's tables; empty if there are none."""
        if self.runs.empty or not self.runs["status"].isin(statistics.FINISHED).any():
            return pd.DataFrame()
        return statistics.finished(self.runs)

    @functools.cached_property
    def epochs(self) -> pd.DataFrame:
        """The epochs of the finished runs; empty if there are none."""
        return pd.DataFrame() if self.finished.empty else loading.load_epochs(self.finished)

    @functools.cached_property
    def summaries(self) -> list[dict[str, Any]]:
        """Summaries of measurements: of fresh networks, and of the runs that are asked for."""
        summaries = propagation_store.load_all(self.root)
        if not self.where:
            return summaries
        directories = {None} if self.runs.empty else {None, *self.runs["directory"]}
        return [summary for summary in summaries if summary["trained"] in directories]

    @functools.cached_property
    def measured(self) -> list[dict[str, Any]]:
        """Summaries of all measurements of networks of one width that activation and model describe."""
        return [summary for summary in self.summaries if _of_one_width(summary)]

    @functools.cached_property
    def networks(self) -> list[dict[str, Any]]:
        """Summaries of all other measurements: of networks of another kind, of a user's own, of changing widths."""
        return [summary for summary in self.summaries if not _of_one_width(summary)]

    @functools.cached_property
    def theory(self) -> pd.DataFrame | None:
        """`theory.csv`."""
        return self._table("theory")

    @functools.cached_property
    def bench(self) -> pd.DataFrame | None:
        """`bench.csv`."""
        return self._table("bench")

    def _table(self, name: str) -> pd.DataFrame | None:
        """`<name>/<name>.csv`; None if there is none."""
        path = self.root / name / f"{name}.csv"
        return pd.read_csv(path) if path.exists() else None

    @functools.cached_property
    def constraint(self) -> pd.DataFrame:
        """`comparisons.constraint`; empty if there is nothing to compare."""
        if self.finished.empty:
            return pd.DataFrame()
        return comparisons.constraint(self.finished, self.epochs, self.measured, self.bench)

    @functools.cached_property
    def roots(self) -> pd.DataFrame:
        """`comparisons.roots`; empty if there is nothing to compare."""
        return pd.DataFrame() if self.finished.empty else comparisons.roots(self.finished)

    @functools.cached_property
    def root_signals(self) -> pd.DataFrame:
        """`comparisons.root_signals`; empty if there is nothing to compare."""
        return comparisons.root_signals(self.measured, self.theory)


def _of_one_width(summary: dict[str, Any]) -> bool:
    return summary.get("network") is None and "widths" not in summary
