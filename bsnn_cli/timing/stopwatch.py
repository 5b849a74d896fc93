"""Timing in turns: each round makes a step of every implementation, so that what else the machine does meets all."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

Step: TypeAlias = Callable[[], object]

GPU_STEPS = 10
GPU_TURN_S = 0.25
"""Between two looks at the clock on a GPU, where the host may run ahead, lie as many steps as take about that long, but
no more than these; on a CPU it is one."""


class Loop:
    """An implementation that calls its caller: a framework whose own loop makes the steps.

    Args:
        run: makes a step for each item of the iterator that it is given, and returns at its end.
    """

    def __init__(self, run: Callable[[Iterator[None]], object]) -> None:
        self.run = run


def timed(steps: Sequence[Step | Loop], rounds: int, device: torch.device) -> np.ndarray[Any, Any]:
    """Seconds of each step in each round, (rounds, steps), after one round that does not count.

    At most one of the steps is a `Loop`; the others are then made while it waits for its next batch.
    """
    times = np.empty((rounds + 1, len(steps)))
    turns = _turns(steps, times, device)
    loops = [step for step in steps if isinstance(step, Loop)]
    if loops:
        [loop] = loops
        loop.run(turns)
    else:
        deque(turns, maxlen=0)
    return times[1:]


def _turns(steps: Sequence[Step | Loop], times: np.ndarray[Any, Any], device: torch.device) -> Iterator[None]:
    """Fill `times`; yields where it is the loop's turn to make a step."""
    gpu = device.type == "cuda"
    repeats = [1] * len(steps)
    for number, turn in enumerate(times):
        for i, step in enumerate(steps):
            if gpu and number == 0:
                yield from _made(step, 1)  # what a first step sets up says nothing of how many fit into a turn
            synchronise(device)
            begin = time.perf_counter()
            yield from _made(step, repeats[i])
            synchronise(device)
            turn[i] = (time.perf_counter() - begin) / repeats[i]
            if gpu and number == 0:
                repeats[i] = min(GPU_STEPS, max(1, round(GPU_TURN_S / max(turn[i], 1e-9))))


def _made(step: Step | Loop, times: int) -> Iterator[None]:
    """Make some steps; yields where it is a loop's turn to make one."""
    for _ in range(times):
        if isinstance(step, Loop):
            yield
        else:
            step()


def ratio(numerator: np.ndarray[Any, Any], denominator: np.ndarray[Any, Any]) -> float:
    """Median over the rounds of the ratio within each."""
    return float(np.median(numerator / denominator))


def make(step: Step | Loop, times: int) -> None:
    """Make some steps without looking at the clock."""
    if isinstance(step, Loop):
        step.run(iter([None] * times))
    else:
        for _ in range(times):
            step()


def synchronise(device: torch.device) -> None:
    """Wait for the work of a GPU; a CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb() -> float:
    """Most resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage goes on from the peak of the parent process
        [line] = [
            line
            for line in status.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("VmHWM:")
        ]
        return int(line.split()[1]) / 1e3
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
