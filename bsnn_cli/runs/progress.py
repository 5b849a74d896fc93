"""The progress bar of a run, on a terminal only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.networks.training import Tick

UNKNOWN_SIZE = {"ncols": 80, "nrows": 24}
"""Size of a terminal that reports no columns, as `script` and some containers do; tqdm would draw nothing in it."""

REFRESH_S = 0.2
"""Seconds between two readings of the loss: each makes the host wait for a GPU."""


class ProgressBar:
    """Show the steps done and left, with the mean loss and accuracy of the members.

    Args:
        total: steps of the whole run.
        done: steps of earlier sessions.
        wanted: False keeps it quiet; so does a standard error that is not a terminal.
    """

    def __init__(self, total: int, done: int, wanted: bool) -> None:
        size = {"dynamic_ncols": True} if _columns() > 0 else UNKNOWN_SIZE
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None if wanted else True, **size)
        self._shown = 0.0
        self._loss = self._accuracy = ""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def tick(self, tick: Tick) -> None:
        """Count an update; an evaluated batch only refreshes the display."""
        if self._bar.disable:
            return
        self._bar.update(tick.loss is not None)
        if time.monotonic() - self._shown > REFRESH_S:
            self._shown = time.monotonic()
            if tick.loss is not None:
                self._loss = f"loss {float(tick.loss.mean()):.3f}"
            self._bar.set_description("evaluating" if tick.loss is None else "training", refresh=False)
            self._show()

    def epoch(self, records: Sequence[EpochRecord]) -> None:
        """Show the mean accuracy after an epoch."""
        mean = sum(record.test_accuracy for record in records) / len(records)
        self._accuracy = f", test {mean:.2f} % after epoch {records[0].epoch}"
        self._show()

    def _show(self) -> None:
        self._bar.set_postfix_str(self._loss + self._accuracy)


def _columns() -> int:
    """Return the columns that the terminal on standard error reports; 0 if there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0
