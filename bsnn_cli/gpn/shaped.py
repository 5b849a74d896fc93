"""Other activations that are shaped for depth, as f(h) = γ(φ(αh + β) + δ), to be held beside depth-aware GPN.

Deep Kernel Shaping (DKS; Martens et al. 2021, arXiv 2110.01765) and tailored activation transformations (TAT; Zhang,
Botev and Martens 2022, arXiv 2203.08120) ask for values and slopes of the maps of lengths and correlations, Q and C, of
a layer with Gaussian weights: with h ~ N(0, 1),

    Q(1) = E[f²],  Q'(1) = E[hff'],  C(0) = E[f]²,  C'(1) = E[f'²],  C''(1) = E[f''²].

TAT of a smooth φ asks for Q(1) = C'(1) = 1, which is GPN, and besides for Q'(1) = χ = 1. So it is GPN of φ(αh + β),
with α and β such that χ = 1 and C''(1) = τ/L.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.activations import Activation, get, name_of, normalise
from bsnn_cli.gpn.functions import Phi, autograd_pair, evaluating, in_double, second_derivative
from bsnn_cli.gpn.gaussian import POINTS, WEIGHTS, sqrt_density
from bsnn_cli.gpn.kinks import corners, kinks
from bsnn_cli.gpn.tailored import solve

STARTS = (0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)
"""Values of β from which solutions are looked for."""

PANELS = torch.linspace(-10, 10, 41, dtype=torch.float64, device="cpu")
"""Ends of panels on which 16 nodes resolve φ(αh + β), unless it has kinks."""

SOLVED = 1e-8
"""Largest error of a solution, as a share of what C'(1) or C''(1) differs by from a linear f."""


class Shaped(nn.Module):
    """The activation γ(φ(αh + β) + δ), for any network; made by `tat` and `dks`.

    Attributes:
        name: of φ and of the method.
        alpha, beta, gamma, delta: plain numbers; they are not trained.
    """

    def __init__(
        self, name: str, activation: Activation | Phi, alpha: float, beta: float, gamma: float, delta: float
    ) -> None:
        super().__init__()
        self.name, self.activation = name, activation
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta

    def forward(self, h: Tensor) -> Tensor:
        """Map h elementwise; shape and dtype stay. All is computed in at least float32."""
        exact = self.alpha * h.to(torch.promote_types(h.dtype, torch.float32)) + self.beta
        phi = self.activation.phi if isinstance(self.activation, Activation) else self.activation
        return (self.gamma * (phi(exact) + self.delta)).to(h.dtype)

    def extra_repr(self) -> str:
        """Return the name and the constants, for `print`."""
        numbers = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma, "delta": self.delta}
        return ", ".join([self.name, *(f"{key}={value:.10g}" for key, value in numbers.items())])


def tat(activation: str | Activation | Phi, depth: int, tau: float = 0.3, eta: float = 0.9) -> Shaped:
    """Shape an activation by TAT for a plain network.

    A smooth φ gets Q(1) = Q'(1) = C'(1) = 1 and C''(1) = τ/depth. ReLU and leaky ReLU become the leaky ReLU under which
    C has the value η at 0 after all layers.

    Args:
        activation: φ: a name, an `nn.Module` or another elementwise function.
        depth: layers.
        tau: C''(1) of the whole network, above 0.
        eta: cosine after all layers of inputs at right angles, in (0, 1); of leaky ReLU alone.

    Raises:
        ActivationError: φ has a corner and is no leaky ReLU, or no α and β give these values.
    """
    known = _known(activation, depth)
    if not (0 < tau < math.inf and 0 < eta < 1):
        raise ActivationError(f"tau={tau}, eta={eta}: tau must be above 0, such as 0.3, eta in (0, 1), such as 0.9")
    name, phi = f"{name_of(known)}, TAT", _double(known)
    with evaluating(name_of(known)):
        if _is_homogeneous(phi):
            slope = solve(torch.relu, 1 - eta, depth, "share").share
            leaky = functools.partial(nn.functional.leaky_relu, negative_slope=slope)
            return Shaped(name, leaky, 1.0, 0.0, math.sqrt(2 / (1 + slope * slope)), 0.0)
        if corners(lambda h: autograd_pair(phi, h)[1], kinks(phi)):
            raise ActivationError(
                f"activation {name_of(known)}: has a corner, so C''(1) is infinite; give a smooth φ, or a leaky ReLU"
            )

        def conditions(m: Moments, sign: float) -> tuple[float, float]:
            gamma_squared = 1 / m.derivative_second_moment
            curvature = gamma_squared * m.curvature * depth / tau
            offset = sign * math.sqrt(max(m.excess, 0))
            chi = gamma_squared * (m.stretch + offset * m.tilt)
            return (chi - 1) * depth / tau, math.log(curvature)

        alpha, beta, m, sign = _solved(name_of(known), phi, conditions, math.sqrt(tau / depth), signs=(1.0, -1.0))
        gamma, delta = 1 / math.sqrt(m.derivative_second_moment), sign * math.sqrt(max(m.excess, 0)) - m.mean
    return Shaped(name, known, alpha, beta, gamma, delta)


def dks(activation: str | Activation | Phi, depth: int, zeta: float = 1.5) -> Shaped:
    """Shape a smooth activation by DKS for a plain network: Q(1) = Q'(1) = 1, C(0) = 0 and C'(1) = ζ^(1/depth).

    Args:
        activation: φ: a name, an `nn.Module` or another elementwise function.
        depth: layers.
        zeta: C'(1) of the whole network, above 1.

    Raises:
        ActivationError: φ is a leaky ReLU, whose scale α changes nothing, or no α and β give these values.
    """
    known = _known(activation, depth)
    if not 1 < zeta < math.inf:
        raise ActivationError(f"zeta={zeta}: must be above 1, such as 1.5")
    phi, excess = _double(known), math.expm1(math.log(zeta) / depth)
    with evaluating(name_of(known)):
        if _is_homogeneous(phi):
            raise ActivationError(
                f"activation {name_of(known)}: is a line on either side of 0, which leaves too little to shape for"
                " all four values; use bsnn_cli.tat, or a smooth φ"
            )

        def conditions(m: Moments, sign: float) -> tuple[float, float]:  # noqa: ARG001 - there is one δ
            gamma_squared = 1 / m.variance
            return (gamma_squared * m.stretch - 1) / excess, math.log(max(gamma_squared * m.excess, 1e-300) / excess)

        alpha, beta, m, _ = _solved(name_of(known), phi, conditions, math.sqrt(2 * excess), signs=(1.0,))
    return Shaped(f"{name_of(known)}, DKS", known, alpha, beta, 1 / math.sqrt(m.variance), -m.mean)


def _known(activation: str | Activation | Phi, depth: int) -> Activation | Phi:
    """Return the activation of a name; raise for what has no GPN form either, or for a depth that is none."""
    if not isinstance(depth, Integral) or isinstance(depth, bool) or depth < 1:
        raise ActivationError(f"depth={depth}: must be a whole number of layers, at least 1")
    known = get(activation) if isinstance(activation, str) else activation
    normalise(known)
    return known


def _double(activation: Activation | Phi) -> Phi:
    return activation.phi if isinstance(activation, Activation) else in_double(activation)


def _is_homogeneous(phi: Phi) -> bool:
    """Return True for a φ with φ(ch) = cφ(h) at c > 0, but not for a line."""
    h = torch.tensor([-1.0, 1.0], dtype=torch.float64, device="cpu")
    with torch.no_grad():
        value = phi(h)
        lines = all(torch.allclose(phi(c * h), c * value, rtol=1e-12, atol=0) for c in (0.1, 0.5, 3.0))
    return lines and not math.isclose(-value[0], value[1], rel_tol=1e-12)


@dataclass(frozen=True)
class Moments:
    """Moments of g(h) = φ(αh + β), h ~ N(0, 1).

    Attributes:
        mean, variance: E[g], Var[g].
        derivative_second_moment, curvature: E[g'²], E[g''²].
        excess: E[g'²] − Var[g], at least 0, without cancellation.
        stretch, tilt: E[h(g − E[g])g'] and E[hg'].
    """

    mean: float
    variance: float
    derivative_second_moment: float
    curvature: float
    excess: float
    stretch: float
    tilt: float


def _moments(phi: Phi, places: tuple[float, ...], alpha: float, beta: float) -> Moments:
    ends = [*PANELS.tolist(), *((place - beta) / alpha for place in places)]
    edges = torch.tensor(sorted(end for end in ends if abs(end) <= 10), dtype=torch.float64, device="cpu")
    left, widths = edges[:-1, None], edges.diff()[:, None]
    h = (left + widths * POINTS).flatten()
    weights = (widths * WEIGHTS).flatten() * sqrt_density(h) ** 2

    def mean(values: Tensor) -> float:
        return float((weights * values).sum())

    value, slope = autograd_pair(phi, alpha * h + beta)
    slope, second = alpha * slope, alpha**2 * second_derivative(phi, alpha * h + beta)
    average, line = mean(value), mean(slope)
    centred = value - average
    rest, slope_rest = centred - line * h, slope - line  # the best line adds as much to both terms of the excess
    return Moments(
        mean=average,
        variance=mean(centred**2),
        derivative_second_moment=mean(slope**2),
        curvature=mean(second**2),
        excess=mean(slope_rest**2) - mean(rest**2),
        stretch=mean(h * centred * slope),
        tilt=mean(h * slope),
    )


def _solved(
    name: str,
    phi: Phi,
    conditions: Callable[[Moments, float], tuple[float, float]],
    bend: float,
    signs: tuple[float, ...],
) -> tuple[float, float, Moments, float]:
    """Find α, β and a sign that make both conditions 0, with the least |β|; `bend` is the wanted √E[f''²], roughly."""
    from scipy.optimize import root

    places = kinks(phi, 4.0)

    def errors(unknown: np.ndarray, sign: float) -> np.ndarray:
        alpha = math.exp(min(max(float(unknown[0]), -30.0), 5.0))
        return np.array(conditions(_moments(phi, places, alpha, float(unknown[1])), sign))

    solutions = []
    for beta in STARTS:
        here = torch.tensor([beta], dtype=torch.float64, device="cpu")
        first, second = float(autograd_pair(phi, here)[1]), float(second_derivative(phi, here))
        alpha = bend * abs(first / second) if second != 0 else 1.0
        for sign in signs:
            try:
                answer = root(errors, [math.log(min(max(alpha, 1e-6), 3.0)), beta], args=(sign,), tol=1e-13)
            except (ValueError, OverflowError, ZeroDivisionError):  # a trial has left where φ has moments
                continue
            if np.abs(errors(answer.x, sign)).max() < SOLVED:
                solutions.append((math.exp(answer.x[0]), float(answer.x[1]), sign))
    if not solutions:
        raise ActivationError(
            f"activation {name}: no scale α and shift β give these values; try other ones, or GPN with a depth"
        )
    # The nearest to φ as it is; of an odd φ the one with a positive shift.
    alpha, beta, sign = min(solutions, key=lambda solution: (round(abs(solution[1]), 6), solution[1] < 0))
    return alpha, beta, _moments(phi, places, alpha, beta), sign
