"""Predict the length of a signal and the angle between two in infinitely wide orthogonal networks, layer by layer.

Through a Haar-uniform W, two signals of equal length become, for wide layers, jointly Gaussian preactivations. Let
s = (h₁ + h₂)/2 and t = (h₁ − h₂)/2 be their common and their opposed part: independent Gaussians of variances A and B.
After the activation f the two parts are (f(s+t) ± f(s−t))/2, so a layer is the map

    A' = E[((f(s+t) + f(s−t))/2)²],    B' = E[((f(s+t) − f(s−t))/2)²],

and the squared length per unit is q = A + B, the cosine c has 1 − c = 2B/(A+B). No difference of nearly equal numbers
is taken, so 1 − c keeps its digits where the signals are nearly equal. On one signal (B = 0) the map is the variance
map F(q) = E[f(√q z)²]; at q = 1, for a normalised f, it is the correlation map C(c) = E[f(z₁)f(z₂)] (Poole et al. 2016,
Schoenholz et al. 2017, there for Gaussian weights). `Weights` has other scales, biases, and Gaussian weights.

At a finite width n the parts fluctuate. `Step` has by how much; `theory.fates` adds that up over layers. Backwards, the
squared norm of a gradient is multiplied by E[f'(√v z)²] in a layer with preactivations of variance v.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.activations import Activation, get, normalise
from bsnn_cli.gpn.functions import Phi, autograd_pair
from bsnn_cli.gpn.gaussian import POINTS, WEIGHTS, IntegrationError, adapt, sqrt_density
from bsnn_cli.gpn.kinks import DIGITS, kinks
from bsnn_cli.settings.choices import WEIGHTS_KINDS
from bsnn_cli.settings.options import complaint

REACH = 10.0
"""Integrals end at this many standard deviations, where the density is 1e-22 of its peak."""

WIDEST = 2.5
"""Panels, in standard deviations, on which 16 nodes resolve the density."""

NARROWEST = 1e-8
"""Panels, in standard deviations, that need not be cut: so few units are there that nothing depends on them."""

FINEST = 2.0**-10
"""Grain below which f is refused."""

RESOLVED = 1e-11
"""Relative error of integrals, and of the interpolated map."""

FARTHEST, BASIN_STEPS = 1e6, 128
"""Squared length per unit up to which an unstable one is looked for, and the steps of its logarithm."""

BARELY = 1e-3
"""Logarithm of a length above 1 at which growth tells an unstable 1."""


@dataclass(frozen=True)
class Weights:
    """The law of weights and biases at the start of training: h = Wx + b, so v = σ_w² q + σ_b² of h from q of x.

    Attributes:
        kind: "orthogonal": σ_w times a Haar-uniform orthogonal matrix; "gaussian": entries N(0, σ_w²/n).
        sigma_w: σ_w, above 0.
        sigma_b: σ_b, of biases N(0, σ_b²); two signals share them.

    Raises:
        ConfigError: an unknown kind or a scale out of range.
    """

    kind: str = "orthogonal"
    sigma_w: float = 1.0
    sigma_b: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in WEIGHTS_KINDS:
            raise ConfigError(complaint("weights", self.kind, "one of " + ", ".join(WEIGHTS_KINDS), WEIGHTS_KINDS))
        if not 0 < self.sigma_w < math.inf:
            raise ConfigError(f"sigma_w={self.sigma_w}: must be a number above 0, such as 1.0")
        if not 0 <= self.sigma_b < math.inf:
            raise ConfigError(f"sigma_b={self.sigma_b}: must be a number at least 0, such as 0.1")

    @property
    def orthogonal(self) -> bool:
        """Return True if W keeps lengths, but for σ_w."""
        return self.kind == "orthogonal"

    def variance(self, q: float) -> float:
        """Return the variance v of preactivations, from the squared length per unit q of what enters."""
        return self.sigma_w**2 * q + self.sigma_b**2

    def share(self, q: float) -> float:
        """Return the share σ_w² q/v of this variance that comes through W; it is also d log v/d log q."""
        return self.sigma_w**2 * q / self.variance(q)


ORTHOGONAL = Weights()


@dataclass(frozen=True, eq=False)
class Transfer:
    """An activation as the integrals need it.

    Attributes:
        f: elementwise, from float64 tensors to float64 tensors that do not require gradients.
        kinks: places where f is not smooth.
        grain: length of h around 0 on which 16 nodes resolve f; 1 for all named activations.
        slope: f', likewise; only gradients need it.
    """

    f: Phi
    kinks: tuple[float, ...] = ()
    grain: float = 1.0
    slope: Phi | None = None


@dataclass(frozen=True)
class Step:
    """One layer of the map, in logarithms of its state, and the noise that a finite width adds to it.

    With J = ∂log(new state)/∂log(state), the covariance Σ of the logarithms at width n obeys Σ' = JΣJᵀ + noise/n, to
    first order in 1/n. Let F_i(w) be what is averaged over the units to give the new state, w the independent standard
    normal variables it depends on: preactivations over their √v_k. Stein's lemma gives the derivative in log v_k, the
    delta method the noise:

        V_ik = E[F_i (w_k² − 1)] / 2E[F_i],    J_ik = V_ik ∂log v_k/∂log(state)_k,
        noise_ij = Cov(F_i, F_j)/(E[F_i]E[F_j]) − 2 Σ_k ρ_k² V_ik V_jk.

    The last is the covariance of n independent units, less what their regression on the w_k² − 1 explains: an
    orthogonal W keeps the lengths of what it rotates, so the part of w_k² that comes through W, with the share ρ_k of
    the variance, does not fluctuate in the mean over the units. For Gaussian weights ρ_k = 0. Under orthogonal weights
    without biases a linear f has no noise left. For the same reason a unit has lighter tails than a Gaussian: to first
    order in 1/n the density of its k variables is the normal one times 1 − (|w|⁴ − 2(k + 2)|w|² + k(k + 2))/4n at
    ρ_k = 1, which shifts the means. In Hermite polynomials this is Σ_k He₄(w_k) + 2 Σ_{j<k} He₂(w_j) He₂(w_k), whose
    terms take factors ρ_k² and ρ_j ρ_k.

    Attributes:
        state: the new variances: (q,), or (A, B); for gradients (q, E[f'²]).
        jacobian: J, a row for each entry of the new state, a column for each of the old one.
        noise: square; of a single unit.
        shift: of the logarithms of the state, as for a single unit.
    """

    state: np.ndarray
    jacobian: np.ndarray
    noise: np.ndarray
    shift: np.ndarray


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
    return prepared(phi, slope_of(activation, phi))


def prepared(phi: Phi, slope: Phi) -> Transfer:
    """Prepare a function as it is, from it and its derivative, both of float64 tensors; errors as in `transfer`."""

    def squares(h: Tensor) -> dict[str, Tensor]:
        return {"E[φ²]": (phi(h.clone()).detach() * sqrt_density(h)).square()}

    try:
        rule = adapt(squares)
    except IntegrationError as error:
        raise ActivationError(f"activation: {error}, so it has no mean-field maps") from error
    second_moment = float((rule.weights * squares(rule.nodes)["E[φ²]"]).sum())
    return _prepare(phi, slope, kinks(phi), second_moment)


def normalised(activation: Activation | Phi, phi: Phi, places: tuple[float, ...], root: str = "auto") -> Transfer:
    """Prepare the normalised form of an activation, from its φ, whose kinks are known; errors as in `transfer`."""
    solution, slope = normalise(activation, root), slope_of(activation, phi)
    return _prepare(
        lambda h: solution.a * phi(h) + solution.b,
        lambda h: solution.a * slope(h),
        places,
        solution.normalised_second_moment,
    )


def slope_of(activation: Activation | Phi, phi: Phi) -> Phi:
    """Return φ', of a known activation the one that is stated, of another function by autograd."""
    return activation.derivative if isinstance(activation, Activation) else lambda h: autograd_pair(phi, h)[1]


def _prepare(function: Phi, slope: Phi, places: tuple[float, ...], second_moment: float) -> Transfer:
    """Find the grain of a function from its second moment."""

    def f(h: Tensor) -> Tensor:
        with torch.no_grad():
            return function(h)

    grain = 1.0
    while grain > FINEST:
        candidate = Transfer(f, places, grain, slope)
        if abs(variance_map(candidate, 1.0) - second_moment) < RESOLVED * second_moment:
            return candidate
        grain /= 2
    raise ActivationError("activation: too steep away from h = 0 for integrals over pairs of signals; use a gentler φ")


def _edges(scale: float, grain: float) -> list[float]:
    """Return ends of panels on [0, REACH], in units of `scale`, on each of which 16 nodes resolve f and the density."""
    edges = [0.0]
    while edges[-1] < REACH:
        edges.append(min(edges[-1] + WIDEST, max(grain / scale, NARROWEST, 2 * edges[-1]), REACH))
    return edges


def _nodes(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, density of N(0, 1) included, on panels with ends (..., k + 1): both (..., 16k)."""
    left, width = edges[..., :-1, None], edges.diff(dim=-1)[..., None]
    nodes = (left + width * POINTS).flatten(-2)
    return nodes, (width * WEIGHTS).flatten(-2) * sqrt_density(nodes) ** 2


def _step(
    components: list[Tensor], variables: list[Tensor], weights: Tensor, shares: list[float], orthogonal: bool
) -> Step:
    """Compute the means, their derivatives and noise; all tensors alike in shape, or broadcastable.

    Args:
        components: what is averaged, F_i.
        variables: w_k.
        weights: of the quadrature.
        shares: of the variance of w_k that comes through W.
        orthogonal: whether that part keeps its length.
    """
    means = [float((weights * F).sum()) for F in components]
    relative = [F / mean for F, mean in zip(components, means, strict=True)]
    J = np.array([[float((weights * F * (w * w - 1)).sum()) / 2 for w in variables] for F in relative])
    covariance = np.array([[float((weights * F * G).sum()) - 1 for G in relative] for F in relative])
    rotated = shares if orthogonal else [0.0] * len(shares)
    V, k = J * rotated, sum(rotated)
    squares = sum(share * (w * w) for share, w in zip(rotated, variables, strict=True))
    rest = sum(share * (1 - share) * (4 * (w * w) - 2) for share, w in zip(rotated, variables, strict=True))
    tails = weights * (squares * (squares - 2 * (k + 2)) + k * (k + 2) + rest) / -4
    shift = np.array([float((tails * F).sum()) for F in relative])
    return Step(np.array(means), J * shares, covariance - 2 * V @ V.T, shift)


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


def length_growth(f: Transfer, logarithm: float, weights: Weights = ORTHOGONAL) -> float:
    """Return by what a layer changes log q, from log q; -inf if the new length is 0, inf if it is beyond floats."""
    length = variance_map(f, weights.variance(math.exp(logarithm)))
    if length == 0:
        return -math.inf
    return math.log(length) - logarithm if length < math.inf else math.inf


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
        return length_growth(f, logarithm)

    step = math.log(FARTHEST) / BASIN_STEPS
    for k in range(BASIN_STEPS):
        if growth((k + 1) * step) > 10 * RESOLVED:
            low = max(k * step, BARELY)
            return math.exp(brentq(growth, low, (k + 1) * step) if growth(low) < 0 else k * step)
    return math.inf


def variance_step(f: Transfer, q: float, weights: Weights = ORTHOGONAL) -> Step:
    """Compute `variance_map` with slope and noise; the slope in logarithms is χ at q = 1 if f is normalised."""
    squares, z, densities = _single(f, weights.variance(q))
    return _step([squares], [z], densities, [weights.share(q)], weights.orthogonal)


def slopes(f: Transfer, v: float) -> tuple[Tensor, Tensor]:
    """Return f'(h)² and the weights, which sum to 1, at the nodes for preactivations of variance v."""
    if f.slope is None:
        raise TypeError("this Transfer has no slope, which gradients need")
    _, z, weights = _single(f, v)
    return f.slope(math.sqrt(v) * z).detach() ** 2, weights


def gradient_step(f: Transfer, q: float, weights: Weights = ORTHOGONAL) -> Step:
    """Compute the map from q to (F, m): m = E[f'(√v z)²] multiplies the squared norm of a gradient through f.

    A gradient y of random direction fluctuates by itself: ‖Dy‖²/‖y‖² is the mean of F = f'(h)²w² over the units, w
    standard normal and of fixed mean square. By the formulas of `Step` this adds 2 Var(f'²)/m² to the noise of m.
    """
    v = weights.variance(q)
    squares, z, densities = _single(f, v)
    d, _ = slopes(f, v)
    step = _step([squares, d], [z], densities, [weights.share(q)], weights.orthogonal)
    step.noise[1, 1] += 2 * (float((densities * (d / step.state[1]) ** 2).sum()) - 1)
    return step


def _pair_nodes(f: Transfer, common: float, opposed: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (v, u), standard normal variables, and weights, for two signals √A u ± √B v.

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
    return v, u, 2 * v_weights[:, None] * u_weights


def _pair(f: Transfer, common: float, opposed: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the squares of common and opposed part, (u, v) standard normal variables and weights, for two signals."""
    v, u, weights = _pair_nodes(f, common, opposed)
    s, t = math.sqrt(common) * u, math.sqrt(opposed) * v
    plus, minus = f.f(s + t), f.f(s - t)
    return ((plus + minus) / 2) ** 2, ((plus - minus) / 2) ** 2, u, v, weights


def slope_product(f: Transfer, variance: float, covariance: float) -> float:
    """Return E[f'(h₁) f'(h₂)] for Gaussian h₁, h₂ of this variance, and a covariance of a smaller absolute value."""
    if f.slope is None:
        raise TypeError("this Transfer has no slope, which gradients need")
    common, opposed = (variance + covariance) / 2, (variance - covariance) / 2
    v, u, weights = _pair_nodes(f, common, opposed)
    s, t = math.sqrt(common) * u, math.sqrt(opposed) * v
    return float((weights * (f.slope(s + t) * f.slope(s - t)).detach()).sum())


def pair_step(f: Transfer, common: float, opposed: float, weights: Weights = ORTHOGONAL) -> Step:
    """Compute a layer's map of (A, B), the variances of common and opposed part of two signals; both positive.

    Both signals have the same bias, so it adds to the common part alone.
    """
    common_square, opposed_square, u, v, densities = _pair(f, weights.variance(common), weights.sigma_w**2 * opposed)
    shares = [weights.share(common), 1.0]
    return _step([common_square, opposed_square], [u, v], densities, shares, weights.orthogonal)


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
