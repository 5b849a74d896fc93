"""Timing in turns: each round makes a step of every implementation, so that other load on the machine hits all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

Step: TypeAlias = Callable[[], object]

GPU_STEPS = 10
GPU_TURN_S = 0.25
"""On a GPU, where the host may run ahead, the clock is read after as many steps as take about this long, at most
`GPU_STEPS`; on a CPU it is read after each step."""


def timed(steps: Sequence[Step], rounds: int, device: torch.device) -> np.ndarray[Any, Any]:
    """Return the seconds of each step in each round, (rounds, steps), after one round that does not count."""
    gpu = device.type == "cuda"
    times = np.empty((rounds + 1, len(steps)))
    repeats = [1] * len(steps)
    for number, row in enumerate(times):
        for i, step in enumerate(steps):
            if gpu and number == 0:
                step()  # its set-up says nothing of how many steps fit into a turn
            synchronise(device)
            begin = time.perf_counter()
            for _ in range(repeats[i]):
                step()
            synchronise(device)
            row[i] = (time.perf_counter() - begin) / repeats[i]
            if gpu and number == 0:
                repeats[i] = min(GPU_STEPS, max(1, round(GPU_TURN_S / max(row[i], 1e-9))))
    return times[1:]


def ratio(numerator: np.ndarray[Any, Any], denominator: np.ndarray[Any, Any]) -> float:
    """Return the median over the rounds of the ratio within each round."""
    return float(np.median(numerator / denominator))


def synchronise(device: torch.device) -> None:
    """Wait for the work of a GPU; a CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb() -> float:
    """Return the peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage goes on from the peak of the parent process
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        [line] = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1e3
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
