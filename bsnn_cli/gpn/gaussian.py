"""Compute E[g(h)] under h ~ N(0, 1) in float64, for functions with kinks at unknown places.

The real line is cut into panels with a Gauss-Legendre rule on each. A panel on which the rule and its two halves
disagree is cut in half, again and again, until they agree to rounding: so kinks end up between panels, where they do no
harm, and what cannot be integrated is left over and reported with its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

REACH = 38
"""Half of the interval of integration: further out the density of N(0, 1) is zero in float64."""

FIRST_PANELS = 16
"""Panels to a unit of h at the start; integers and quarters, the most frequent kinks, are edges already."""

ROUNDS = 256
"""Halvings at most: a panel beside 0 can go on shrinking far below 1e-16; sqrt|h|, say, would never end."""

MOST_PANELS = 1 << 14
"""Panels that are cut in one round at most: stops on noise."""

AGREEMENT = 1e-15
"""A panel is left alone when its error is below this share of the integral of |g|."""

CONTINUITY = 1e-10
"""The same for how the change of a function across a panel may differ from the integral of its derivative. Looser:
torch has derivatives with float32 constants in them, and at a jump no cut makes the difference smaller."""

ACCEPTANCE = 1e-10
"""Share of the integral of |g| that the errors of all panels, which are overestimates, may add up to."""

_nodes, _weights = np.polynomial.legendre.leggauss(16)
POINTS, WEIGHTS = torch.from_numpy((1 + _nodes) / 2), torch.from_numpy(_weights / 2)
"""Gauss-Legendre rule on [0, 1], exact for polynomials up to degree 31; float64, shape (16,)."""

JUMP = "continuity of the primitive"
"""Name of its row among those of the functions."""

Integrands = Callable[[Tensor], dict[str, Tensor]]
"""Maps places h of shape (N,) to the values, each (N,), of named functions."""


class IntegrationError(ArithmeticError):
    """An integral that does not exist or that cannot be computed, with the place where it fails."""


def sqrt_density(h: Tensor) -> Tensor:
    """Return the square root of the density of N(0, 1).

    A function is multiplied by it *before* it is squared, so that nothing overflows.
    """
    return torch.exp(h * h / -4) / math.sqrt(math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Rule:
    """A quadrature rule on [-38, 38], fitted to some functions: ∫ g(h) dh = Σ weights · g(nodes).

    Attributes:
        nodes: float64 (N,), strictly inside the panels: never on an edge, where the kinks are.
        weights: float64 (N,), of dh; the density is not part of them.
    """

    nodes: Tensor
    weights: Tensor

    def inner(self, f: Tensor | float, g: Tensor | float) -> float:
        """Return E[f(h) g(h)], h ~ N(0, 1), from values f, g at the nodes."""
        scale = sqrt_density(self.nodes)
        return float((self.weights * (scale * f) * (scale * g)).sum())


def adapt(integrands: Integrands, primitive: Callable[[Tensor], Tensor] | None = None) -> Rule:
    """Fit a rule that integrates all of some functions over the real line, to about 1e-14 of the integral of |g|.

    Features narrower than the spacing of the first nodes (0.003) can be missed, unless `primitive` sees them.

    Args:
        integrands: values of the functions. They are piecewise smooth (the pieces are found) and die out before
            |h| = 38.
        primitive: an antiderivative of the *last* function; checked for being one on every panel. It sees any net
            change, however narrow its place: a steep flank is resolved, and a jump is reported.

    Raises:
        IntegrationError: a function is not finite somewhere, does not die out or does not converge (a pole, an
            infinite moment), or the primitive jumps.
    """
    edges = torch.arange(-REACH * FIRST_PANELS, REACH * FIRST_PANELS + 1, dtype=torch.float64, device="cpu")
    left, right = edges[:-1] / FIRST_PANELS, edges[1:] / FIRST_PANELS
    coarse, names = _integrals(integrands, left, right)
    _require_decay(coarse.abs(), names)
    limits = torch.full_like(coarse[:, 0], AGREEMENT)
    if primitive is not None:
        names.append(JUMP)
        limits = torch.cat((limits, limits.new_tensor([CONTINUITY])))

    panels, errors, settled = [], [], torch.zeros_like(coarse[:, 0])
    for depth in range(ROUNDS + 1):
        ends = torch.stack((left, (left + right) / 2, right))
        halves = torch.stack((ends[:2], ends[1:]))  # (left or right end, which half, panel)
        fine = _integrals(integrands, *halves.flatten(1))[0].view(len(coarse), 2, -1)
        error, size = (fine.sum(1) - coarse).abs(), settled + fine.abs().sum((1, 2))
        if primitive is not None:
            change = _finite(primitive(ends.flatten()).view_as(ends), ends, "the function").diff(dim=0)
            error = torch.cat((error, (change - fine[-1]).abs().amax(0, keepdim=True)))
            size = torch.cat((size, size[-1:]))
        split = (error > (limits * size)[:, None]).any(0) & _have_room(left, right)
        if depth == ROUNDS or split.sum() > MOST_PANELS:
            split = torch.zeros_like(split)
        panels.append(halves[:, :, ~split].flatten(1))
        errors.append(torch.cat((ends[1:2, ~split], error[:, ~split])))
        settled = settled + fine[:, :, ~split].abs().sum((1, 2))
        if not split.any():
            break
        left, right = halves[:, :, split].flatten(1)
        coarse = fine[:, :, split].flatten(1)
    _require_convergence(torch.cat(errors, 1), size, names)
    left, right = torch.cat(panels, 1)
    return Rule(_places(left, right).flatten(), ((right - left)[:, None] * WEIGHTS).flatten())


def moment_rule(function: Callable[[Tensor], Tensor], pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Rule:
    """Fit a rule for all moments up to second order of a function φ and its derivative.

    Args:
        function: φ, from places (N,) to values (N,), float64.
        pair: (φ, φ') likewise.

    Raises:
        IntegrationError: as `adapt`; φ jumps, or φ' is not its derivative.
    """

    def integrands(h: Tensor) -> dict[str, Tensor]:
        value, derivative = pair(h)
        scale = sqrt_density(h)
        u, v = scale * value, scale * derivative
        last = {"E[φ' - hφ]": scale * (v - h * u)}
        return {"E[φ]": scale * u, "E[φ²]": u * u, "E[φ'²]": v * v, "E[hφφ']": h * u * v} | last

    # The density p has p' = −hp, so (φp)' = (φ' − hφ)p: Stein's identity, panel by panel.
    return adapt(integrands, primitive=lambda h: function(h.clone()).detach() * sqrt_density(h) ** 2)


def _places(left: Tensor, right: Tensor) -> Tensor:
    """Return the nodes of panels, (panel, point). Rounding moves none onto an end, where the kinks are."""
    nodes = left[:, None] + (right - left)[:, None] * POINTS
    return nodes.clamp(torch.nextafter(left, right)[:, None], torch.nextafter(right, left)[:, None])


def _integrals(integrands: Integrands, left: Tensor, right: Tensor) -> tuple[Tensor, list[str]]:
    """Integrate each function over each panel: (function, panel), with the names of the functions."""
    h = _places(left, right)
    rows = {name: _finite(values.view_as(h), h, name) for name, values in integrands(h.flatten()).items()}
    return torch.stack(list(rows.values())) @ WEIGHTS * (right - left), list(rows)


def _have_room(left: Tensor, right: Tensor) -> Tensor:
    """Return True for panels that are wider than the spacing of floats."""
    return right - left > 8 * torch.finfo(torch.float64).eps * torch.maximum(left.abs(), right.abs())


def _finite(values: Tensor, h: Tensor, name: str) -> Tensor:
    finite = values.isfinite()
    if not finite.all():
        raise IntegrationError(f"{name} is {float(values[~finite][0])} at h = {_shown(h[~finite][0])}")
    return values


def _require_decay(integrals: Tensor, names: list[str]) -> None:
    """Raise where the first or the last unit of h still counts."""
    for name, row in zip(names, integrals, strict=True):
        if max(row[:FIRST_PANELS].sum(), row[-FIRST_PANELS:].sum()) > ACCEPTANCE * row.sum():
            raise IntegrationError(f"{name} is infinite or out of reach: not negligible beyond |h| = {REACH}")


def _require_convergence(errors: Tensor, size: Tensor, names: list[str]) -> None:
    """Raise where errors add up to too much; `errors` has the place of each panel on top of a row for each function."""
    places, rows = errors[0], errors[1:]
    for name, row, total in zip(names, rows, size, strict=True):
        place = _shown(places[row.argmax()])
        if name == JUMP and row.max() > CONTINUITY * total:
            raise IntegrationError(f"the function jumps at h = {place}, or its derivative is wrong there")
        if name != JUMP and row.sum() > ACCEPTANCE * total:
            raise IntegrationError(f"{name} does not converge at h = {place}")


def _shown(place: Tensor) -> str:
    return f"{round(float(place), 6) + 0.0:g}"
