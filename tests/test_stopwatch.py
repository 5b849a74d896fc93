"""Steps are made in turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bsnn_cli.timing import stopwatch
from bsnn_cli.timing.stopwatch import ratio, timed

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when a step moves it."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_every_round_times_each_step_once_after_one_that_does_not_count(clock: list[float]) -> None:
    made = []

    def step(name: str, seconds: float) -> None:
        clock[0] += seconds * (1 + made.count(name))
        made.append(name)

    steps = [lambda: step("a", 1), lambda: step("b", 10), lambda: step("c", 100)]
    times = timed(steps, 2, CPU)
    assert made == ["a", "b", "c"] * 3
    np.testing.assert_array_equal(times, [[2, 20, 200], [3, 30, 300]])


def test_a_gpu_makes_as_many_steps_as_fill_a_turn(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is read once for all of them; the first, slow step says nothing of how many that are."""
    monkeypatch.setattr(stopwatch, "synchronise", lambda _: None)
    made = []

    def step(name: str, seconds: float) -> None:
        clock[0] += seconds if name in made else 100
        made.append(name)

    steps = [lambda: step("a", 0.001), lambda: step("b", 0.125), lambda: step("c", 3)]
    times = timed(steps, 2, torch.device("cuda"))
    assert made == [*"aabbcc", *[*["a"] * 10, "b", "b", "c"] * 2]
    np.testing.assert_allclose(times, [[0.001, 0.125, 3]] * 2)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio(np.array([2.0, 200.0, 6.0]), np.array([1.0, 100.0, 2.0])) == 2
