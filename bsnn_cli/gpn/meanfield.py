"""Predict the length of a signal and the angle between two in infinitely wide orthogonal networks, layer by layer.

Through a Haar-uniform W, two signals of equal length become, for wide layers, jointly Gaussian preactivations. Let
s = (h₁ + h₂)/2 and t = (h₁ − h₂)/2 be their common and their opposed part: independent Gaussians of variances A and B.
After the activation f the two parts are (f(s+t) ± f(s−t))/2, so a layer is the map

    A' = E[((f(s+t) + f(s−t))/2)²],    B' = E[((f(s+t) − f(s−t))/2)²],

and the squared length per unit is q = A + B, the cosine c has 1 − c = 2B/(A+B). No difference of nearly equal numbers
is taken, so 1 − c keeps its digits where the signals are nearly equal. On one signal (B = 0) the map is the variance
map F(q) = E[f(√q z)²]; at q = 1, for a normalised f, it is the correlation map C(c) = E[f(z₁)f(z₂)] (Poole et al. 2016,
Schoenholz et al. 2017, there for Gaussian weights).

At a finite width n the parts fluctuate. `Step` has by how much, `Fate` how that adds up over layers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.activations import Activation, get, normalise
from bsnn_cli.gpn.functions import Phi
from bsnn_cli.gpn.gaussian import POINTS, WEIGHTS, IntegrationError, adapt, sqrt_density
from bsnn_cli.gpn.kinks import DIGITS, kinks

REACH = 10.0
"""Integrals end at this many standard deviations, where the density is 1e-22 of its peak."""

WIDEST = 2.5
"""Panels, in standard deviations, on which 16 nodes resolve the density."""

FINEST = 2.0**-10
"""Grain below which f is refused."""

RESOLVED = 1e-11
"""Relative error of integrals, and of the interpolated map."""

FARTHEST, BASIN_STEPS = 1e6, 128
"""Squared length per unit up to which an unstable one is looked for, and the steps of its logarithm."""

BARELY = 1e-3
"""Logarithm of a length above 1 at which growth tells an unstable 1."""

COLLAPSED = 1e-20
"""A smaller 1 − c counts as 0: float64 can hardly tell such signals apart."""

MOST = 460.0
"""Largest logarithm of a length or of its inverse that is followed; beyond, it counts as infinite or as 0."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """An activation as the integrals need it.

    Attributes:
        f: elementwise, from float64 tensors to float64 tensors that do not require gradients.
        kinks: places where f is not smooth.
        grain: length of h around 0 on which 16 nodes resolve f; 1 for all named activations.
    """

    f: Phi
    kinks: tuple[float, ...] = ()
    grain: float = 1.0


@dataclass(frozen=True)
class Step:
    """One layer of the map, in logarithms of its state, and the noise that a finite width adds to it.

    With J = ∂log(new state)/∂log(state), the covariance Σ of the logarithms at width n obeys Σ' = JΣJᵀ + noise/n, to
    first order in 1/n. Let F_i(w) be what is averaged over the units to give the new state, w the independent standard
    normal variables it depends on. Stein's lemma gives the first, the delta method the second:

        J_ij = E[F_i (w_j² − 1)] / 2E[F_i],    noise_ij = Cov(F_i, F_j)/(E[F_i]E[F_j]) − 2 Σ_k J_ik J_jk.

    The second is the covariance of n independent units, less what their regression on the w_j² − 1 explains: W is
    orthogonal and keeps the lengths of what it rotates, so the mean of w_j² over the units does not fluctuate. A linear
    f has no noise left. For the same reason a unit has lighter tails than a Gaussian: to first order in 1/n the density
    of its k variables is the normal one times 1 − (|w|⁴ − 2(k + 2)|w|² + k(k + 2))/4n, which shifts the means.

    Attributes:
        state: the new variances: (q,), or (A, B).
        jacobian: J, square.
        noise: square; of a single unit.
        shift: of the logarithms of the state, as for a single unit.
    """

    state: np.ndarray
    jacobian: np.ndarray
    noise: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Fate:
    """The predicted course of a positive quantity over depth: entry l − 1 is after layer l.

    Attributes:
        predicted: at infinite width, (depth,).
        deviation: standard deviation of its logarithm in one network of finite width, to first order, (depth,).
        shift: of the mean of its logarithm at this width, by the lighter tails of units on a sphere, (depth,).
    """

    predicted: np.ndarray
    deviation: np.ndarray
    shift: np.ndarray

    def band(self, networks: int, deviations: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the band that the geometric mean over independent networks must lie in: (low, high), each (depth,).

        The half width, in logarithms, is `deviations` standard errors of the mean, plus what does not average out: the
        shift, and deviation², the order of all that first order leaves out (the logarithm of a quantity that keeps its
        mean moves down by half of its variance; the curvature of the map adds as much again). Where a length is
        unstable the band grows to all there is: nothing is predicted.
        """
        half = deviations * self.deviation / math.sqrt(networks) + self.deviation**2 + np.abs(self.shift)
        factor = np.exp(np.where(half < MOST, half, math.inf))
        return self.predicted / factor, self.predicted * factor


def transfer(activation: str | Activation | Phi, gpn: bool = True, root: str = "auto") -> Transfer:
    """Prepare an activation for the integrals.

    Args:
        activation: a name or what `activations.get` gives for it, or an elementwise function of float64 tensors.
        gpn: normalise it first; False takes it as it is.
        root: which solution b.

    Raises:
        ActivationError: as `activations.normalise`; or too steep for integrals over pairs of signals.
    """
    known = get(activation) if isinstance(activation, str) else activation
    return _transfer_of(known, gpn, root) if isinstance(known, Activation) else _of_function(known, known, gpn, root)


@functools.cache
def _transfer_of(activation: Activation, gpn: bool, root: str) -> Transfer:
    return _of_function(activation, activation.phi, gpn, root)


def _of_function(activation: Activation | Phi, phi: Phi, gpn: bool, root: str) -> Transfer:
    if gpn:
        return normalised(activation, phi, kinks(phi), root)

    def squares(h: Tensor) -> dict[str, Tensor]:
        return {"E[φ²]": (phi(h.clone()).detach() * sqrt_density(h)).square()}

    try:
        rule = adapt(squares)
    except IntegrationError as error:
        raise ActivationError(f"activation: {error}, so it has no mean-field maps") from error
    return _prepare(phi, kinks(phi), float((rule.weights * squares(rule.nodes)["E[φ²]"]).sum()))


def normalised(activation: Activation | Phi, phi: Phi, places: tuple[float, ...], root: str = "auto") -> Transfer:
    """Prepare the normalised form of an activation, from its φ, whose kinks are known; errors as in `transfer`."""
    solution = normalise(activation, root)
    return _prepare(lambda h: solution.a * phi(h) + solution.b, places, solution.normalised_second_moment)


def _prepare(function: Phi, places: tuple[float, ...], second_moment: float) -> Transfer:
    """Find the grain of a function from its second moment."""

    def f(h: Tensor) -> Tensor:
        with torch.no_grad():
            return function(h)

    grain = 1.0
    while grain > FINEST:
        candidate = Transfer(f, places, grain)
        if abs(variance_map(candidate, 1.0) - second_moment) < RESOLVED * second_moment:
            return candidate
        grain /= 2
    raise ActivationError("activation: too steep away from h = 0 for integrals over pairs of signals; use a gentler φ")


def _edges(scale: float, grain: float) -> list[float]:
    """Return ends of panels on [0, REACH], in units of `scale`, on each of which 16 nodes resolve f and the density."""
    edges = [0.0]
    while edges[-1] < REACH:
        edges.append(min(edges[-1] + WIDEST, max(grain / scale, 2 * edges[-1]), REACH))
    return edges


def _nodes(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, density of N(0, 1) included, on panels with ends (..., k + 1): both (..., 16k)."""
    left, width = edges[..., :-1, None], edges.diff(dim=-1)[..., None]
    nodes = (left + width * POINTS).flatten(-2)
    return nodes, (width * WEIGHTS).flatten(-2) * sqrt_density(nodes) ** 2


def _step(components: list[Tensor], variables: list[Tensor], weights: Tensor) -> Step:
    """Compute the means, their derivatives and noise; all tensors alike in shape, or broadcastable."""
    means = [float((weights * F).sum()) for F in components]
    relative = [F / mean for F, mean in zip(components, means, strict=True)]
    J = np.array([[float((weights * F * (w * w - 1)).sum()) / 2 for w in variables] for F in relative])
    covariance = np.array([[float((weights * F * G).sum()) - 1 for G in relative] for F in relative])
    k = len(variables)
    squares = sum(w * w for w in variables)
    tails = weights * (squares * (squares - 2 * (k + 2)) + k * (k + 2)) / -4
    return Step(np.array(means), J, covariance - 2 * J @ J.T, np.array([float((tails * F).sum()) for F in relative]))


def _single(f: Transfer, q: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return f², standard normal variable and weights at the nodes for one signal of variance q."""
    scale = math.sqrt(q)
    half = _edges(scale, f.grain)
    kinks = [kink / scale for kink in f.kinks if abs(kink) < REACH * scale]
    edges = sorted({*half, *(-edge for edge in half), *kinks})
    z, weights = _nodes(torch.tensor(edges, dtype=torch.float64))
    return f.f(scale * z) ** 2, z, weights


def variance_map(f: Transfer, q: float) -> float:
    """Return F(q) = E[f(√q z)²]: the squared length per unit after a layer, from q before it."""
    squares, _, weights = _single(f, q)
    return float((squares * weights).sum())


def basin(f: Transfer) -> float:
    """Return the ‖x‖²/n up to which a long input comes back to 1, the fixed point of lengths, under a normalised f.

    It is the least q > 1 with F(q) = q and F > q right above: in wide networks what starts above it grows in every
    layer. χ < 1 says only that 1 is stable, not how far around. Lengths below 1 are not looked at.

    Returns:
        q; 1 if lengths grow from there on (χ > 1); inf if there is no such q below 1e6. ReLU with the upper root, under
        which F(q) = q throughout, has none either: nothing runs away, though nothing comes back.
    """
    from scipy.optimize import brentq  # slow to import

    def growth(logarithm: float) -> float:
        length = variance_map(f, math.exp(logarithm))
        return math.log(length) - logarithm if 0 < length < math.inf else math.inf

    step = math.log(FARTHEST) / BASIN_STEPS
    for k in range(BASIN_STEPS):
        if growth((k + 1) * step) > 10 * RESOLVED:
            low = max(k * step, BARELY)
            return math.exp(brentq(growth, low, (k + 1) * step) if growth(low) < 0 else k * step)
    return math.inf


def variance_step(f: Transfer, q: float) -> Step:
    """Compute `variance_map` with slope and noise; the slope in logarithms is χ at q = 1 if f is normalised."""
    squares, z, weights = _single(f, q)
    return _step([squares], [z], weights)


def _pair(f: Transfer, common: float, opposed: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the squares of common and opposed part, (v, u) standard normal variables and weights, for two signals.

    The integrands are even in v, so only v > 0 is visited. At each v the panels of u end where h₁ or h₂ is on a kink:
    what is left is smooth in u, and in v but where two kinks are hit at once, where panels of v end.
    """
    u_scale, v_scale = math.sqrt(common), math.sqrt(opposed)
    crossings = {round(abs(k - m) / (2 * v_scale), DIGITS) for k in f.kinks for m in f.kinks}  # equal but for rounding
    v_edges = sorted({*_edges(v_scale, f.grain), *(edge for edge in crossings if edge < REACH)})
    v, v_weights = _nodes(torch.tensor(v_edges, dtype=torch.float64))
    v = v[:, None]
    half = _edges(u_scale, f.grain)
    fixed = torch.tensor([*(-edge for edge in half[:0:-1]), *half], dtype=torch.float64)
    kinks = torch.tensor(f.kinks, dtype=torch.float64)
    moving = torch.cat([(kinks - v_scale * v), (kinks + v_scale * v)], 1) / u_scale
    edges = torch.cat([fixed.expand(len(v), -1), moving.clamp(-REACH, REACH)], 1).sort(1).values
    u, u_weights = _nodes(edges)
    s, t = u_scale * u, v_scale * v
    plus, minus = f.f(s + t), f.f(s - t)
    return ((plus + minus) / 2) ** 2, ((plus - minus) / 2) ** 2, u, v, 2 * v_weights[:, None] * u_weights


def pair_step(f: Transfer, common: float, opposed: float) -> Step:
    """Compute a layer's map of (A, B), the variances of common and opposed part of two signals; both positive."""
    common_square, opposed_square, u, v, weights = _pair(f, common, opposed)
    return _step([common_square, opposed_square], [u, v], weights)


def separation_map(f: Transfer, separation: float) -> float:
    """Return 1 − C(c) from 1 − c in (0, 2), for two signals of q = 1 and an f with E[f²] = 1.

    Accurate to 1e-11 of its value, however small. C(c) = E[f(z₁)f(z₂)], z₁ and z₂ standard normal of covariance c.
    """
    _, opposed_square, _, _, weights = _pair(f, 1 - separation / 2, separation / 2)
    return 2 * float((weights * opposed_square).sum())


def separation(
    activation: str | Activation | Phi | Transfer, depth: int, start: float = 1.0, root: str = "auto"
) -> float:
    """Return 1 − c between two signals after `depth` layers of infinite width with a normalised activation.

    The map is interpolated in √(1 − c), in which it is smooth at 0 with or without kinks in f.

    Args:
        activation: as in `transfer`; or a prepared one, which must be normalised.
        depth: layers; 0 returns the start.
        start: 1 − c at the bottom, in (0, 1]; 1 for orthogonal inputs.
        root: which solution b.
    """
    f = activation if isinstance(activation, Transfer) else transfer(activation, root=root)
    polynomial = _interpolant(f)
    for _ in range(depth):
        start *= math.exp(float(chebyshev.chebval(2 * math.sqrt(start) - 1, polynomial)))
    return start


@functools.lru_cache(maxsize=64)
def _interpolant(f: Transfer) -> np.ndarray:
    """Return the Chebyshev coefficients of log((1 − C)/(1 − c)) over √(1 − c) in [0, 1]."""

    def values(x: np.ndarray) -> np.ndarray:
        separations = ((1 + x) / 2) ** 2
        return np.array([math.log(separation_map(f, value) / value) for value in separations.tolist()])

    for degree in (16, 32, 64, 128):
        coefficients: np.ndarray = chebyshev.chebinterpolate(values, degree)
        if np.abs(coefficients[-3:]).max() < RESOLVED:
            break
    return coefficients


def fate_of_length(f: Transfer, depth: int, width: int, start: float = 1.0) -> Fate:
    """Predict the squared length per unit ‖x‖²/n over layers of one width, for an input of exactly `start`."""
    predicted, deviation, shift = np.empty(depth), np.zeros(depth), np.zeros(depth)
    q, finite = start, FiniteWidth(width, 1)
    for layer in range(depth):
        step = variance_step(f, q)
        q = float(step.state[0])
        finite.advance(step)
        if not abs(math.log(q)) < MOST:
            predicted[layer:] = 0 if q < 1 else math.inf
            break
        predicted[layer] = q
        deviation[layer], shift[layer] = finite.along(np.ones(1))
    return Fate(predicted, deviation, shift)


def fate_of_angle(f: Transfer, depth: int, width: int, start: float = 1.0) -> Fate:
    """Predict 1 − c over layers of one width, from two inputs of squared length 1 per unit and this 1 − c, in (0, 2).

    The lengths are followed along, so f need not be normalised.
    """
    predicted, deviation, shift = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    common, opposed, finite = 1 - start / 2, start / 2, FiniteWidth(width, 2)
    for layer in range(depth):
        step = pair_step(f, common, opposed)
        common, opposed = (float(part) for part in step.state)
        finite.advance(step)
        q = common + opposed
        if not (2 * opposed > COLLAPSED * q and abs(math.log(q)) < MOST):
            break
        # log(1 − c) = log 2B − log(A + B), so its gradient in (log A, log B) is A/(A + B) · (−1, 1).
        predicted[layer] = 2 * opposed / q
        deviation[layer], shift[layer] = finite.along(common / q * np.array([-1.0, 1.0]))
    return Fate(predicted, deviation, shift)


class FiniteWidth:
    """Covariance and mean shift of the logarithms of a state of k variances, exact at the start, layer by layer."""

    def __init__(self, width: int, k: int) -> None:
        self.width, self.covariance, self.shift = width, np.zeros((k, k)), np.zeros(k)

    def advance(self, step: Step) -> None:
        """Propagate covariance and shift through a layer, and add those of the layer."""
        J = step.jacobian
        self.covariance = J @ self.covariance @ J.T + step.noise / self.width
        self.shift = J @ self.shift + step.shift / self.width

    def along(self, gradient: np.ndarray) -> tuple[float, float]:
        """Return standard deviation and mean shift of a quantity with this gradient, (k,)."""
        return math.sqrt(max(gradient @ self.covariance @ gradient, 0)), float(gradient @ self.shift)
