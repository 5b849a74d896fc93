"""Find the lengths that layers keep, and from where lengths go to them, in infinitely wide networks.

A layer maps the squared length per unit q to F(σ_w² q + σ_b²), F(v) = E[f(√v z)²]. Its fixed points are looked for
where log F − log q changes sign, or touches 0, over a grid of log q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar

from bsnn_cli.gpn.meanfield import (
    ORTHOGONAL,
    RESOLVED,
    Transfer,
    Weights,
    length_growth,
    variance_map,
    variance_step,
)
from bsnn_cli.theory.fates import MOST

LEAST, LARGEST = math.log(1e-8), math.log(1e8)
"""Logarithms of q between which fixed points are looked for; lower down where biases lead there."""

STEP = 0.1
"""Distance of the points of the grid; q = 1 is one of them."""

KEPT = 10 * RESOLVED
"""A length that a layer changes by less than this factor counts as kept."""

NOTHING = 1e-24
"""A smaller F(σ_b²) counts as 0, which then is a fixed point."""

LAYERS = 2000
"""Through which lengths are followed to see whether they come back."""

Growth = Callable[[float], float]
"""From log q to the change of log q in a layer."""


@dataclass(frozen=True)
class FixedPoint:
    """A length that layers keep, or one of the ends 0 and infinity where lengths go there.

    Attributes:
        q: ‖x‖²/n.
        slope: of log F over log q, the factor by which a layer changes a small relative deviation; of 0 and infinity,
            F/q on the way there.
        stability: "stable"; "unstable"; "half-stable": lengths come from one side and leave on the other; "neutral":
            so is every length around it, as under ReLU-GPN.
        basin_low, basin_high: all lengths in between come to q; NaN if none does. Exact where these are fixed points
            themselves, 0 or infinity, else to a tenth of their value.
    """

    q: float
    slope: float
    stability: str
    basin_low: float = math.nan
    basin_high: float = math.nan

    @property
    def attracts(self) -> bool:
        """Return True if some lengths come to q."""
        return not math.isnan(self.basin_low)


def fixed_points(f: Transfer, weights: Weights = ORTHOGONAL) -> list[FixedPoint]:
    """Return all fixed points between 1e-8 and 1e8 in increasing order, with 0 and infinity where lengths go there."""
    at_zero = length_at_zero(f, weights)
    least = LEAST if at_zero < NOTHING else min(LEAST, math.log(at_zero / 10))
    grid = STEP * np.arange(math.floor(least / STEP), math.ceil(LARGEST / STEP) + 1)

    def growth(logarithm: float) -> float:
        return length_growth(f, logarithm, weights)

    values = np.array([growth(place) for place in grid.tolist()])
    roots = list(_roots(growth, grid, values))
    edges = [(-math.inf, -math.inf), *roots, (math.inf, math.inf)]
    signs = [_sign(growth, grid, values, left, right) for (_, left), (right, _) in pairwise(edges)]
    points = []
    if signs[0] < 0:
        points.append(FixedPoint(0.0, math.exp(values[0]), "stable", 0.0, _exp(edges[1][0])))
    for k, (low, high) in enumerate(roots):
        q = min(max(1.0, _exp(low)), _exp(high))  # the root, or of many the one that is nearest to 1
        slope = float(variance_step(f, q, weights).jacobian[0, 0])
        from_below, from_above = signs[k] > 0, signs[k + 1] < 0
        stability = _stability(low < high, from_below, from_above, slope)
        if stability == "unstable":
            points.append(FixedPoint(q, slope, stability))
        else:
            bottom, top = edges[k][1] if from_below else low, edges[k + 2][0] if from_above else high
            ends = _returning(grid, grid + values, (low, high), bottom, top)
            points.append(FixedPoint(q, slope, stability, *(_exp(end) for end in ends)))
    if signs[-1] > 0:
        points.append(FixedPoint(math.inf, _exp(values[-1]), "stable", _exp(edges[-2][1]), math.inf))
    return points


def length_at_zero(f: Transfer, weights: Weights) -> float:
    """Return what a layer makes of q = 0."""
    if weights.sigma_b > 0:
        return variance_map(f, weights.variance(0.0))
    return float(f.f(torch.zeros(1, dtype=torch.float64)).square())


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < MOST else math.inf


def _stability(neutral: bool, from_below: bool, from_above: bool, slope: float) -> str:
    if neutral:
        return "neutral"
    if from_below and from_above and slope > -1:  # below -1 lengths jump to and fro, ever further
        return "stable"
    return "half-stable" if from_below != from_above else "unstable"


def _roots(growth: Growth, grid: np.ndarray, values: np.ndarray) -> Iterator[tuple[float, float]]:
    """Yield the ends of what is kept, equal but where all lengths of an interval are.

    A growth that fades away towards the last place is none: √2·ReLU with biases adds the same to every length.
    """
    moving = np.flatnonzero(np.abs(values) > KEPT)
    if len(moving) == 0:
        yield -math.inf, math.inf
        return
    if moving[0] > 0:
        yield -math.inf, float(grid[moving[0] - 1])
    for left, right in pairwise(moving.tolist()):
        low, high = float(grid[left]), float(grid[right])
        if right - left > 2:
            yield float(grid[left + 1]), float(grid[right - 1])
        elif values[left] * values[right] < 0:
            root = float(brentq(growth, low, high, xtol=1e-13)) if np.isfinite(values[[left, right]]).all() else low
            yield root, root
        elif right - left == 2:
            yield float(grid[left + 1]), float(grid[left + 1])
        elif _may_touch(values, left, right):
            touching = minimize_scalar(lambda x: abs(growth(x)), bounds=(low - STEP, high + STEP), method="bounded")
            if touching.fun < KEPT and low < touching.x <= high:
                yield float(touching.x), float(touching.x)


def _may_touch(values: np.ndarray, left: int, right: int) -> bool:
    """Return True if |growth| has a small least value within a panel or in one beside it."""
    around = np.abs(values[max(left - 1, 0) : right + 2])
    return bool(len(around) == 4 and around[1:3].min() < min(around[0], around[3]) and around[1:3].min() < STEP**2)


def _sign(growth: Growth, grid: np.ndarray, values: np.ndarray, low: float, high: float) -> float:
    """Return the sign of the change of lengths between two neighbouring roots; 0 where nothing is between."""
    between = values[(low < grid) & (grid < high) & (np.abs(values) > KEPT)]
    if len(between) > 0:
        return float(np.sign(between[0]))
    return 0.0 if math.isinf(low) or math.isinf(high) else float(np.sign(growth((low + high) / 2)))


def _returning(
    grid: np.ndarray, mapped: np.ndarray, root: tuple[float, float], bottom: float, top: float
) -> tuple[float, float]:
    """Cut off from (bottom, top), on both sides of a root, what layers throw out and do not bring back."""
    places = grid.copy()
    for _ in range(LAYERS):
        places = np.interp(places, grid, mapped)
    back = (bottom <= places) & (places <= top)
    lost = grid[~back & (bottom < grid) & (grid < top)]
    below, above = lost[lost < root[0]], lost[lost > root[1]]
    return float(below.max()) if len(below) else bottom, float(above.min()) if len(above) else top
