"""The progress of a run for its user: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bsnn_cli.common.terminal import duration, say
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.networks.training import Tick, Trainer

UNKNOWN_SIZE = {"ncols": 80, "nrows": 24}
"""Size of a terminal that reports no columns, as `script` and some containers do; tqdm would draw nothing in it."""

REFRESH_S = 0.2
"""Seconds between two readings of the loss: each makes the host wait for a GPU."""

LINE_S = 5.0
"""Seconds between two lines of a log, at least; and after which the first estimate of the time left is printed."""


def shown(
    directories: Sequence[Path], fleet: Trainer, done: int, epochs: int, per_epoch: int
) -> ProgressBar | ProgressLog:
    """Return a bar where standard error is a terminal, and lines elsewhere, such as in the log of a cluster's job.

    Args:
        directories: of the runs.
        fleet: that trains them.
        done: steps of earlier sessions.
        epochs: of the whole run.
        per_epoch: steps of an epoch.
    """
    if sys.stderr.isatty():
        return ProgressBar(epochs * per_epoch, done)
    say(f"{introduction(directories, fleet)}; {epochs} epochs of {per_epoch} steps")
    return ProgressLog(len(directories), done, epochs, per_epoch)


def introduction(directories: Sequence[Path], fleet: Trainer) -> str:
    """Return the directories of the runs, the device, and the size of a network."""
    where = str(directories[0]) if len(directories) == 1 else f"{len(directories)} networks, the first {directories[0]}"
    if fleet.device.type == "cuda":
        device = torch.cuda.get_device_name(fleet.device)
    else:
        threads = torch.get_num_threads()
        device = f"{fleet.device}, {threads} thread{'s' if threads > 1 else ''}"
    each = " each" if len(directories) > 1 else ""
    return f"{where}: {device}; {fleet.parameter_count():,} parameters{each}"


class ProgressBar:
    """Show the steps done and left, with the mean loss and accuracy of the members.

    Args:
        total: steps of the whole run.
        done: steps of earlier sessions.
    """

    def __init__(self, total: int, done: int) -> None:
        size = {"dynamic_ncols": True} if _columns() > 0 else UNKNOWN_SIZE
        self._bar = tqdm(total=total, initial=done, unit="step", **size)
        self._shown = 0.0
        self._loss = self._accuracy = ""

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def tick(self, tick: Tick) -> None:
        """Count an update; an evaluated batch only refreshes the display."""
        self._bar.update(tick.loss is not None)
        if time.monotonic() - self._shown > REFRESH_S:
            self._shown = time.monotonic()
            if tick.loss is not None:
                self._loss = f"loss {float(tick.loss.mean()):.3f}"
            self._bar.set_description("evaluating" if tick.loss is None else "training", refresh=False)
            self._show()

    def epoch(self, records: Sequence[EpochRecord]) -> None:
        """Show the mean accuracy after an epoch."""
        self._accuracy = f", test {mean(records, 'test_accuracy'):.2f} % after epoch {records[0].epoch}"
        self._show()

    def _show(self) -> None:
        self._bar.set_postfix_str(self._loss + self._accuracy)


class ProgressLog:
    """Print a line after each epoch, at most one in `LINE_S`, and one more for the first estimate of the time left.

    Args:
        networks: that are trained together.
        done: steps of earlier sessions.
        epochs: of the whole run.
        per_epoch: steps of an epoch.
    """

    def __init__(self, networks: int, done: int, epochs: int, per_epoch: int) -> None:
        self._networks, self._done, self._epochs, self._per_epoch = networks, done, epochs, per_epoch
        self._first = done
        self._begin = self._printed = time.monotonic()
        self._estimated = False

    def close(self) -> None:
        """Leave what is printed."""

    def tick(self, tick: Tick) -> None:
        """Count an update; print the first estimate of the time left in a long first epoch."""
        self._done += tick.loss is not None
        if not self._estimated and tick.loss is not None and time.monotonic() - self._printed >= LINE_S:
            losses = [loss for loss in tick.loss.tolist() if not math.isnan(loss)]
            self._print(f"step {self._done}", f"loss {sum(losses) / len(losses):.3f}" if losses else "loss NaN")

    def epoch(self, records: Sequence[EpochRecord]) -> None:
        """Print the means of an epoch over the members that have not diverged."""
        if time.monotonic() - self._printed < LINE_S:
            return
        values = [f"train loss {mean(records, 'train_loss'):.3f}", f"test loss {mean(records, 'test_loss'):.3f}"]
        values += [
            f"{split} {mean(records, f'{split}_accuracy'):.2f} %"
            for split in ("validation", "train", "test")
            if getattr(records[0], f"{split}_accuracy") is not None
        ]
        lost = self._networks - len(records)
        self._print(f"epoch {records[0].epoch}/{self._epochs}", *values, *([f"{lost} diverged"] if lost else []))

    def _print(self, *parts: str) -> None:
        self._printed = time.monotonic()
        elapsed, steps = self._printed - self._begin, self._done - self._first
        self._estimated = steps > 0
        speed = []
        if steps > 0:  # none where a resumed run begins with the evaluation that it was stopped in
            left = (self._epochs * self._per_epoch - self._done) * elapsed / steps
            end = time.strftime("%H:%M" if left < 86_400 else "%a %d %b, %H:%M", time.localtime(time.time() + left))
            speed = [
                f"{steps / elapsed:.3g} steps/s",
                *([f"about {duration(left)} left, until {end}"] if left > 0 else []),
            ]
        say(", ".join([*parts, *speed]))


def mean(records: Sequence[EpochRecord], field: str) -> float:
    """Return the mean of a field over records."""
    return math.fsum(getattr(record, field) for record in records) / len(records)


def _columns() -> int:
    """Return the columns that the terminal on standard error reports; 0 if there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0
