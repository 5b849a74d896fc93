"""The progress of many runs, read off their directories: for the terminal of a sweep, and for `bsnn runs watch=true`.

Whatever launcher trains the runs, and on whatever machine, what they have written tells how far they are.
"""

from __future__ import annotations

import contextlib
import csv
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsnn_cli.common.files import read_text
from bsnn_cli.common.terminal import StatusLine, duration, say
from bsnn_cli.runs import plan
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.job import LOG
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label
from bsnn_cli.settings.options import settings

POLL_S = 1.0
"""Seconds between two looks at the directories, at least."""

LOOKING_SHARE = 0.05
"""Share of the time that looking may take, where there are many runs or the file system is slow."""

NAMED = 3
"""At most this many of the runs that are going on are named in the status line."""


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        status: as `RunDirectory.status` has it, or "waiting".
        epoch: completed epochs.
        loss: mean training loss of the last one; NaN if there is none.
        words: outcome of a run that has ended; empty for others.
    """

    status: str
    epoch: int = 0
    loss: float = math.nan
    words: str = ""


class Watch:
    """Follow a set of runs.

    Args:
        configs: resolved.
        directories: of the same runs.
        running: returns of a directory whose run has not ended whether it is going on.
        afresh: whether the runs are about to begin: what ended an earlier attempt at them does not count.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        directories: Sequence[Path],
        running: Callable[[Path], bool],
        afresh: bool = False,
    ) -> None:
        self.configs, self.directories, self._running, self._names = configs, directories, running, names(configs)
        self._began = time.monotonic()
        self._before = [written(directory) if afresh else None for directory in directories]
        self.states = [State("waiting")] * len(configs)
        self.ended: set[int] = set()
        self.look()
        self._left_at_first = self._epochs_left()

    def look(self) -> list[str]:
        """Read the directories again; return a line for each run that has ended since the last time."""
        lines = []
        for place in range(len(self.configs)):
            if place not in self.ended:
                self.states[place] = state = self._state(place)
                if state.words:
                    self.ended.add(place)
                    lines.append(f"{len(self.ended)}/{len(self.configs)} {self._names[place]}: {state.words}")
        return lines

    def _state(self, place: int) -> State:
        path = self.directories[place]
        has_ended = self._before[place] != written(path)
        try:
            result = RunDirectory(path).result() if has_ended else None
        except (OSError, ValueError, TypeError) as error:  # a sweep goes on whatever one of its directories holds
            return State("failed", words=f"cannot be read ({type(error).__name__}); see {path}")
        if result is not None:
            took = duration(result.elapsed_s)
            if result.status == "diverged":
                words = f"diverged in epoch {result.diverged_epoch}, {took}"
            else:
                words = f"test {result.test_accuracy:.2f} %, {took}"
            return State(result.status, result.epochs, words=f"{words}; {path}")
        if has_ended and (path / "failed.json").exists():
            return State("failed", words=f"failed; see {path / LOG}")
        epoch, loss = (0, math.nan) if self.configs[place].force and not has_ended else last_epoch(path)
        return State("running" if self._running(path) else "waiting", epoch, loss)

    def _epochs_left(self) -> int:
        return sum(
            (config.optim.epochs or 0) - state.epoch
            for place, (config, state) in enumerate(zip(self.configs, self.states, strict=True))
            if place not in self.ended
        )

    def line(self) -> str:
        """Return the state of all runs in one line: counts, what is going on, the time left, a log."""
        counts = Counter(state.status for state in self.states)
        bad = [f", {counts[word]} {word}" for word in ("diverged", "failed") if counts[word]]
        parts = [f"{counts['done']}/{len(self.configs)} done{''.join(bad)}"]
        going_on = [place for place, state in enumerate(self.states) if state.status == "running"]
        for place in going_on[:NAMED]:
            state = self.states[place]
            loss = "" if math.isnan(state.loss) else f", loss {state.loss:.3g}"
            parts.append(f"{self._names[place]}: epoch {state.epoch}/{self.configs[place].optim.epochs}{loss}")
        parts += [f"{len(going_on) - NAMED} more"] if len(going_on) > NAMED else []
        left = self._epochs_left()
        made = self._left_at_first - left
        if made > 0 and left > 0 and going_on:
            parts.append(f"{duration(left * (time.monotonic() - self._began) / made)} left")
        parts += [] if going_on or not left else ["nothing is running"]
        parts += [f"log: {self.directories[going_on[0]] / LOG}"] if going_on else []
        return "; ".join(parts)


def names(configs: Sequence[TrainConfig]) -> list[str]:
    """Return what tells runs apart in a line, such as `tanh_gpn optim.lr=0.01 s1`: activation, varied keys, seed."""
    keys = [*plan.varied(configs), *(["dataset.name"] if len({config.dataset.name for config in configs}) > 1 else [])]
    rows = []
    for config in configs:
        values = settings(config)
        stated = [f"{key}={values[key]}" for key in keys if key in values]
        rows.append(" ".join([activation_label(config), *stated, f"s{config.seed}"]))
    return rows


def written(directory: Path) -> list[int]:
    """Return the times at which the files were written that end a run; 0 for one that is absent."""
    times = []
    for file in ("result.json", "failed.json"):
        try:
            times.append((directory / file).stat().st_mtime_ns)
        except OSError:  # another process may remove it at any time
            times.append(0)
    return times


def last_epoch(directory: Path) -> tuple[int, float]:
    """Return the number and the training loss of the last epoch in `epochs.csv`; 0 and NaN if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be replaced while it is read
        *_, row = csv.DictReader(read_text(directory / "epochs.csv").splitlines())
        return int(row["epoch"]), float(row["train_loss"])
    return 0, math.nan


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Print a line for each run that ends while the code inside is at work, and on a terminal a line on all of them."""
    stop, status = threading.Event(), StatusLine()

    def look() -> float:
        """Return the seconds that it took."""
        begin = time.monotonic()
        for line in watch.look():
            say(line)
        status.show(watch.line())
        return time.monotonic() - begin

    def follow() -> None:
        took = 0.0
        while not stop.wait(max(POLL_S, took / LOOKING_SHARE)):
            took = look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
        status.close()


def follow(watch: Watch) -> None:
    """Watch runs until all of them have ended, or Ctrl-C; then print how far they are."""
    with contextlib.suppress(KeyboardInterrupt), watching(watch):
        while len(watch.ended) < len(watch.configs):
            time.sleep(POLL_S)
    print(watch.line())
