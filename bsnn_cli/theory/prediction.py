"""Predict what a deep random network does to signals and gradients, for any activation, and measure it beside that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import pandas as pd
from torch import Tensor

from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.functions import Phi
from bsnn_cli.gpn.meanfield import (
    Transfer,
    Weights,
    length_growth,
    slope_product,
    slopes,
    variance_step,
)
from bsnn_cli.theory.activation import Given, computing, given
from bsnn_cli.theory.fates import Fate, fate_of_angle, fate_of_gradient, fate_of_length
from bsnn_cli.theory.fixed_points import KEPT, LARGEST, LEAST, FixedPoint, fixed_points
from bsnn_cli.theory.moments import gaussian_moments
from bsnn_cli.theory.simulation import Signals, simulate
from bsnn_cli.theory.spectrum import spectrum

DEVIATIONS = 4.0
"""Half the width of the band around a prediction, in standard errors."""

QUANTITIES = ("length", "one_minus_cosine", "gradient")
"""Columns of `Prediction.layers` that have a band, and are measured."""

ON_THE_EDGE = 1e-6
"""A slope of the correlation map that differs from 1 by less counts as 1."""

SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Layers that `print` shows, with the last one."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The course of signals, gradients and the Jacobian through random networks of an activation f.

    Attributes:
        name: of f.
        base: the name of φ where f is a known one or made of it, for its colour; else "".
        depth, width, weights, start, networks: as they were asked for.
        layers: a row for each layer l from 1; every quantity X at infinite width, with X_low and X_high around it.
            `length`: ‖x‖²/n after the layer. `one_minus_cosine`: of two inputs that start at right angles.
            `gradient`: ‖∂E/∂h‖² at the preactivations h of the layer, relative to ‖∂E/∂x‖² at what leaves the last
            one; that is `backward_norm` of `layers.csv`, for a gradient of random direction at the top.
            `jacobian_mean`, `jacobian_variance`, `jacobian_largest`: of ∂x/∂input after the layer, the mean of the
            squared singular values, their variance over mean², and the largest singular value.
            With networks: X_measured is the geometric mean over them, X_measured_low and X_measured_high the least and
            the largest.
            X_low and X_high are where the geometric mean over `networks` (or one network, where there are none) lies:
            ± 4 standard errors of its logarithm to first order in 1/width, and beside that what does not average out
            (`fates.Fate.band`). If the logarithm is Gaussian, 6 in 100,000 are outside. Means over 16 networks keep
            to it; the logarithm of a single network has a longer tail, and of 100 units 5 in 10,000 were outside, of
            300 units 1 in 10,000.
        fixed_points: a row for each, with the columns of `FixedPoint`.
        length: the one of them that `start` goes to, q*.
        chi: slope of log F over log q at q*, the factor by which a layer changes a small relative deviation of a
            length; χ of GPN. Of 0 and infinity, F/q.
        correlation_slope_at_1: σ_w² E[f'(√v z)²] at q*, the slope of the correlation map at equal signals, and the
            factor of gradients in a layer; the literature's χ₁.
        correlation_slope_at_0: its slope at signals at right angles.
        phase: "ordered" (χ₁ < 1), "chaotic" (χ₁ > 1) or "edge" (Poole et al. 2016, arXiv 1606.05340).
        moments: of f at the variance of the first preactivations, as `gaussian_moments` names them.
    """

    name: str
    base: str
    depth: int
    width: int
    weights: Weights
    start: float
    networks: int
    layers: pd.DataFrame
    fixed_points: pd.DataFrame
    length: float
    chi: float
    correlation_slope_at_1: float
    correlation_slope_at_0: float
    phase: str
    moments: dict[str, float]

    def __str__(self) -> str:
        return describe(self)


def predict(
    activation: str | Phi | Given,
    depth: int = 200,
    width: int = 500,
    weights: str = "orthogonal",
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    start: float = 1.0,
    networks: int = 0,
    seed: int = 0,
) -> Prediction:
    """Predict lengths, angles, gradients and the Jacobian of random networks x ← f(Wx + b), layer by layer.

    >>> print(predict("tanh_gpn", depth=3).phase)
    edge

    Args:
        activation: f as it is used in the network: a name as on the command line, such as "tanh", "tanh_gpn" or
            "tanh_gpn_d"; an `nn.Module`, such as `GPN("tanh")` or `nn.SiLU()`; or an elementwise function of tensors.
        depth: layers; "_gpn_d" is tailored to them.
        width: units n of every layer, at least 2.
        weights: "orthogonal": W is σ_w times a random orthogonal matrix; "gaussian": its entries are N(0, σ_w²/n).
        sigma_w: σ_w, above 0.
        sigma_b: σ_b of biases N(0, σ_b²); 0 for none.
        start: ‖x‖²/n of the inputs.
        networks: how many random networks of this width are simulated beside the prediction. Their weights are
            Haar-uniform or Gaussian exactly, though none is drawn (`simulation`).
        seed: of these.

    Raises:
        ActivationError: f is no elementwise function, or has no Gaussian moments, with the reason.
        ConfigError: a number is out of range.
    """
    _check(depth, width, start, networks, seed)
    return prediction(given(activation, depth), depth, width, Weights(weights, sigma_w, sigma_b), start, networks, seed)


def prediction(
    f: Given, depth: int, width: int, weights: Weights, start: float = 1.0, networks: int = 0, seed: int = 0
) -> Prediction:
    """Predict from an activation and the law of weights that are known to be sound; see `predict`."""
    moments = gaussian_moments(f, weights.variance(start))
    if moments["E[f²]"] == 0:
        raise ActivationError(f"activation {f.name}: is 0 for all preactivations, so no signal is left to follow")
    with computing():
        maps = f.transfer()
        points = fixed_points(maps, weights)
        arrived = destination(points, start, length_growth(maps, math.log(start), weights))
        at_length = min(max(arrived.q, math.exp(LEAST)), math.exp(LARGEST))
        chi_1, chi_0 = correlation_slopes(maps, at_length, weights)
        layers = over_layers(maps, depth, width, weights, start, networks, seed)
        chi = _slope(maps, at_length, weights) if math.isnan(arrived.slope) else arrived.slope
    return Prediction(
        name=f.name,
        base=f.base,
        depth=depth,
        width=width,
        weights=weights,
        start=start,
        networks=networks,
        layers=layers,
        fixed_points=pd.DataFrame(points, columns=list(FixedPoint.__dataclass_fields__)),
        length=arrived.q,
        chi=chi,
        correlation_slope_at_1=chi_1,
        correlation_slope_at_0=chi_0,
        phase="edge" if abs(chi_1 - 1) < ON_THE_EDGE else "ordered" if chi_1 < 1 else "chaotic",
        moments=moments,
    )


def _check(depth: int, width: int, start: float, networks: int, seed: int) -> None:
    """Raise `ConfigError` for a number that is out of range."""
    for name, value, least in (("depth", depth, 1), ("width", width, 2), ("networks", networks, 0), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r}: must be a whole number at least {least}")
    if not isinstance(start, Real) or not 0 < start < math.inf:
        raise ConfigError(f"start={start!r}: must be a number above 0, the ‖x‖²/n of the inputs, such as 1.0")


def _slope(f: Transfer, q: float, weights: Weights) -> float:
    return float(variance_step(f, q, weights).jacobian[0, 0])


def destination(points: list[FixedPoint], start: float, growth: float) -> FixedPoint:
    """Return the fixed point that a length goes to in infinitely wide networks, from what a layer changes its log by.

    A length that layers keep, and one that goes nowhere (a cycle), counts as a fixed point itself.
    """
    for point in points:
        if abs(point.q - start) < 1e-9 * start:
            return point
    for point in points:
        if abs(growth) > KEPT and point.basin_low <= start <= point.basin_high:
            return point
    return FixedPoint(start, math.nan, "neutral")


def correlation_slopes(f: Transfer, q: float, weights: Weights) -> tuple[float, float]:
    """Return the slopes of the correlation map at 1 and at 0, of signals of squared length q per unit.

    The cosine c of two signals gives their preactivations the covariance σ_w² q c + σ_b², so the slope of E[f(h₁)f(h₂)]
    over c q is σ_w² E[f'(h₁)f'(h₂)].
    """
    d, densities = slopes(f, weights.variance(q))
    scale = weights.sigma_w**2
    return scale * float((d * densities).sum()), scale * slope_product(f, weights.variance(q), weights.sigma_b**2)


def over_layers(
    f: Transfer, depth: int, width: int, weights: Weights, start: float, networks: int, seed: int
) -> pd.DataFrame:
    """Return `Prediction.layers`."""
    fates = {
        "length": fate_of_length(f, depth, width, start, weights),
        "one_minus_cosine": fate_of_angle(f, depth, width, 1.0, weights, start),
        "gradient": fate_of_gradient(f, depth, width, start, weights),
    }
    columns: dict[str, np.ndarray] = {"layer": np.arange(1, depth + 1)}
    for name, fate in fates.items():
        columns |= _with_band(name, fate, max(networks, 1))
    values = spectrum(f, depth, start, weights)
    columns |= {
        "jacobian_mean": values.mean,
        "jacobian_variance": values.variance,
        "jacobian_largest": values.largest,
    }
    if networks > 0:
        columns |= _measured(simulate(f, width, depth, networks, seed, (start,), weights=weights))
    return pd.DataFrame(columns)


def _with_band(name: str, fate: Fate, networks: int) -> dict[str, np.ndarray]:
    low, high = fate.band(networks, DEVIATIONS)
    return {name: fate.predicted, f"{name}_low": low, f"{name}_high": high}


def _measured(signals: Signals) -> dict[str, np.ndarray]:
    values = (signals.lengths[0], signals.separations, signals.gradients)
    columns: dict[str, np.ndarray] = {}
    for name, measured in zip(QUANTITIES, values, strict=True):
        columns[f"{name}_measured"] = geometric_mean(measured).numpy()
        columns[f"{name}_measured_low"] = measured.amin(1).numpy()
        columns[f"{name}_measured_high"] = measured.amax(1).numpy()
    return columns


def geometric_mean(values: Tensor) -> Tensor:
    """Return the geometric mean over networks: (layer, network) → (layer,)."""
    return values.log().mean(1).exp()


def inside(layers: pd.DataFrame, quantity: str) -> bool:
    """Return True if what was measured of a quantity is inside its band at every layer."""
    measured, rounding = layers[f"{quantity}_measured"], 1e-9
    low, high = layers[f"{quantity}_low"] * (1 - rounding), layers[f"{quantity}_high"] * (1 + rounding)
    return bool(((low <= measured) & (measured <= high)).all())


def describe(prediction: Prediction) -> str:
    """Return a prediction as a short text: some layers, the fixed points of lengths, and a verdict."""
    p, weights = prediction, prediction.weights
    scales = (
        ""
        if (weights.sigma_w, weights.sigma_b) == (1, 0)
        else f", σ_w = {weights.sigma_w:g}, σ_b = {weights.sigma_b:g}"
    )
    names = {"length": "‖x‖²/n", "one_minus_cosine": "1 − c", "gradient": "gradient"}
    rows = p.layers[p.layers.layer.isin([*SHOWN, p.depth])]
    table = pd.DataFrame({"layer": rows.layer})
    for name, words in names.items():
        table[words] = [f"{value:.3g}" for value in rows[name]]
        table["band" + " " * len(table.columns)] = [
            f"{low:.3g}–{high:.3g}" for low, high in zip(rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
        ]
        if p.networks:
            table["measured" + " " * len(table.columns)] = [f"{value:.3g}" for value in rows[f"{name}_measured"]]
    table["σ_max"] = [f"{value:.3g}" for value in rows.jacobian_largest]
    over = f"geometric mean over {p.networks} networks" if p.networks else "one network"
    return "\n".join(
        [
            f"{p.name}: {p.depth} layers of {p.width} units, {weights.kind} weights{scales}; bands: {over}",
            table.to_string(index=False),
            *verdict(p),
        ]
    )


def verdict(prediction: Prediction) -> list[str]:
    """Return what a prediction means, in plain sentences."""
    p, last = prediction, prediction.layers.iloc[-1]
    lines = [_lengths_in_words(p)]
    kept = 0 < p.length < math.inf
    decided = {
        "ordered": f"χ₁ = {p.correlation_slope_at_1:.4g} < 1: ordered. "
        + ("Signals become parallel and gradients vanish" if kept else "Gradients vanish")
        + ", by a factor in every layer.",
        "chaotic": f"χ₁ = {p.correlation_slope_at_1:.4g} > 1: chaotic. "
        + ("Nearly equal signals part and gradients explode" if kept else "Gradients explode")
        + ", by a factor in every layer.",
        "edge": "χ₁ = 1: the edge of chaos. Gradients keep their norm on average; angles close slowly or not at all."
        if kept
        else "χ₁ = 1 at this end: the edge of chaos. On the way there gradients change as the table shows.",
    }
    lines.append(decided[p.phase])
    lines.append(
        f"After {p.depth} layers two inputs at right angles have 1 − c = {last.one_minus_cosine:.3g}; the squared"
        f" singular values of the Jacobian have mean {last.jacobian_mean:.3g},"
        f" variance/mean² {last.jacobian_variance:.3g}."
    )
    if p.networks:
        outside = [name for name in QUANTITIES if not inside(p.layers, name)]
        lines.append(
            f"Measured in {p.networks} networks: "
            + (f"outside its band somewhere: {', '.join(outside)}." if outside else "inside the bands at every layer.")
        )
    return lines


def _lengths_in_words(p: Prediction) -> str:
    """Say where lengths go."""
    if p.length == 0:
        return "Lengths collapse to 0."
    if p.length == math.inf:
        return "Lengths grow without end."
    if p.chi == 1 or abs(p.chi - 1) < ON_THE_EDGE:
        return f"Lengths near {p.length:.4g} are neither brought back nor driven away (χ = 1): chance moves them."
    if p.chi > 1:
        return f"Lengths near {p.length:.4g} are driven away (χ = {p.chi:.4g} > 1): at any finite width they leave it."
    rows = p.fixed_points[np.isclose(p.fixed_points.q, p.length, rtol=1e-6)]
    low, high = (rows.iloc[0].basin_low, rows.iloc[0].basin_high) if len(rows) else (math.nan, math.nan)
    reach = "every length" if (low, high) == (0, math.inf) else f"lengths from {low:.3g} to {high:.3g}"
    return f"Lengths return to {p.length:.4g} (χ = {p.chi:.4g}); the basin is {reach}."
