"""Find the places where a function φ is not smooth, to the precision of floats, from its slopes alone.

Panels are cut until a Gauss-Legendre rule agrees with its two halves on φ' (`gaussian.adapt`). Beside a corner, where
φ' jumps, they shrink to the spacing of floats. Beside a weaker kink, where φ'' jumps, they stop at about 1e-6. There a
polynomial is put through φ' on either side, and the kink is where φ' leaves the one and begins to follow the other.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.functions import Phi, autograd_pair
from bsnn_cli.gpn.gaussian import POINTS, IntegrationError, Rule, adapt, sqrt_density

SHIFT = 1 / math.pi
"""Moves kinks at round places, which would sit on the ends of panels unseen, to the inside of panels."""

NARROW = 0.01
"""Panels that are narrower than this are near a kink."""

GRADING = 16
"""Around a kink, panels are about as wide as they are far from it; one that is this many times narrower has its own."""

ROOM, DEGREE = 0.04, 8
"""Length of h at most beside a kink on which a polynomial stands for φ', and its degree."""

ROUNDING = 4e-15
"""By which a place may be off."""

DIGITS = 13
"""Decimals at most to which a kink is rounded."""

BESIDE = 1e-9
"""Distance from a kink at which slopes tell a corner from a weaker kink, relative to its place or to 1."""

MOST_KINKS = 512
"""More are refused: integrals over pairs of signals would take minutes."""


def kinks(phi: Phi, gain: float = 1.0) -> tuple[float, ...]:
    """Return the kinks of φ that h = gain · N(0, 1) meets, in increasing order.

    Args:
        phi: elementwise, float64; differentiable by autograd.
        gain: standard deviation of h.

    Raises:
        ActivationError: φ' has no moments that can be computed, or there are more than 512 kinks.
    """

    def slopes(z: Tensor) -> dict[str, Tensor]:
        _, slope = autograd_pair(phi, gain * (z + SHIFT))
        slope = slope * sqrt_density(z)
        return {"E[φ']": slope * sqrt_density(z), "E[φ'²]": slope * slope}

    try:
        rule = adapt(slopes)
    except IntegrationError as error:
        raise ActivationError(f"activation: {error}, so it has no mean-field maps; use a gentler φ") from error
    brackets = [(gain * (low + SHIFT), gain * (high + SHIFT)) for low, high in sorted(_brackets(rule))]
    gaps = [math.inf, *(after[0] - before[1] for before, after in pairwise(brackets)), math.inf]
    rooms = [min(ROOM, *around) / 2 for around in pairwise(gaps)]
    return tuple(_place(phi, low, high, room) for (low, high), room in zip(brackets, rooms, strict=False))


def corners(slope: Phi, places: tuple[float, ...]) -> list[float]:
    """Return those kinks of φ at which φ' itself jumps, from φ'; elsewhere a higher derivative does."""
    found = []
    for place in places:
        step = BESIDE * max(1.0, abs(place))
        beside = torch.tensor([place - step, place + step], dtype=torch.float64, device="cpu")
        left, right = slope(beside).detach().tolist()
        if abs(left - right) > 1e-6 * max(abs(left), abs(right)):
            found.append(place)
    return found


def _brackets(rule: Rule) -> list[tuple[float, float]]:
    """Return the ends of the panels on which the kinks are, in no order."""
    centres = rule.nodes.view(-1, len(POINTS)).mean(1)
    widths = rule.weights.view(-1, len(POINTS)).sum(1)
    left = widths < NARROW
    brackets: list[tuple[float, float]] = []
    while left.any():
        if len(brackets) == MOST_KINKS:
            raise ActivationError(f"activation: has more than {MOST_KINKS} kinks or is too steep; use a gentler φ")
        centres, widths = centres[left], widths[left]
        width, place = float(widths.min()), centres[widths.argmin()]
        distance = (centres - place).abs()
        bracket = centres[(distance < GRADING * width) & (widths < 4 * width)]
        brackets.append((float(bracket.min()) - width, float(bracket.max()) + width))
        left = widths < distance / GRADING
    return brackets


def _place(phi: Phi, low: float, high: float, room: float) -> float:
    """Locate the only kink between two places; there is no other nearer than `room`."""

    def slope(h: np.ndarray) -> np.ndarray:
        values: np.ndarray = autograd_pair(phi, torch.from_numpy(h))[1].numpy()
        return values

    if 1e-13 < high - low < room / GRADING:
        beside = np.linspace(0, room, 2 * DEGREE)
        before, after = (Chebyshev.fit(h, slope(h), DEGREE) for h in (low - beside, high + beside))
        for _ in range(10):
            h = np.linspace(low, high, 33)
            value = slope(h)
            passed = np.abs(before(h) - value) > np.abs(after(h) - value)
            first = int(np.clip(passed.argmax(), 1, 32))
            low, high = float(h[first - 1]), float(h[first])
    return _roundest(low - ROUNDING, high + ROUNDING)


def _roundest(low: float, high: float) -> float:
    """Return the number with the fewest decimals between two: people put kinks at round places."""
    middle = (low + high) / 2
    rounded = (round(middle, digits) + 0.0 for digits in range(DIGITS))
    return next((number for number in rounded if low <= number <= high), middle)
