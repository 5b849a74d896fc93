"""Predict the singular values of the Jacobian ∂x^l/∂x^0 of infinitely wide random networks, by free probability.

The Jacobian is a product of D W over layers, with D the diagonal of slopes f'(h). With d = f'(√v z)² and

    M_d(ζ) = E[d/(ζ − d)],    S_d(m) = (1 + m) / (m M_d⁻¹(m)),

the S-transforms of JᵀJ multiply: S = Π_l S_d_l(m) / σ_w², and for Gaussian W each layer adds a factor 1/(1 + m). Then
M_J⁻¹(m) = (1 + m) / (m S(m)), and the largest squared singular value is its least value over m > 0 (Pennington,
Schoenholz and Ganguli 2018, arXiv 1802.09979, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from bsnn_cli.gpn.meanfield import ORTHOGONAL, Transfer, Weights, slopes
from bsnn_cli.theory.fates import MOST, fate_of_length

MOMENTS = np.linspace(math.log(1e-7), math.log(1e7), 500)
"""Grid of log m."""

DISTANCES = np.linspace(-36, 18, 800)
"""Grid of the logarithm of the distance of ζ from the largest slope, in units of that."""


@dataclass(frozen=True)
class Spectrum:
    """The squared singular values of the Jacobian from the input up to each layer: entry l − 1 is of layer l.

    Attributes:
        mean: of the squared singular values.
        variance: of the squared singular values, relative to mean².
        largest: singular value, not squared; inf where slopes have no bound.
    """

    mean: np.ndarray
    variance: np.ndarray
    largest: np.ndarray


def spectrum(f: Transfer, depth: int, start: float = 1.0, weights: Weights = ORTHOGONAL) -> Spectrum:
    """Predict the spectrum over the layers of an infinitely wide network, for an input of ‖x‖²/n = start."""
    reached = fate_of_length(f, depth, width=2, start=start, weights=weights).predicted
    entering = np.concatenate([[start], reached[:-1]])
    entering = np.clip(entering, 1e-200, 1e200)  # slopes no longer change beyond
    mean, variance, largest = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    total_mean, total_variance, inverse = 0.0, 0.0, np.logaddexp(0, MOMENTS) - MOMENTS
    layer_of: dict[float, tuple[float, float, np.ndarray]] = {}
    for layer, q in enumerate(entering.tolist()):
        key = float(f"{q:.9g}")
        if key not in layer_of:
            layer_of[key] = _layer(f, weights.variance(q), weights)
        layer_mean, layer_variance, factor = layer_of[key]
        if not 0 < layer_mean < math.inf:  # nothing passes, or f' is beyond floats
            mean[layer:] = largest[layer:] = layer_mean
            variance[layer:] = math.nan
            break
        total_mean += math.log(layer_mean)
        total_variance += layer_variance
        inverse = inverse + factor
        mean[layer], variance[layer] = _exp(total_mean), total_variance
        largest[layer] = _exp(_minimum(inverse) / 2)
    return Spectrum(mean, variance, largest)


def _layer(f: Transfer, v: float, weights: Weights) -> tuple[float, float, np.ndarray]:
    """Return mean and relative variance of a layer's squared singular values, and −log S over the grid of m."""
    slope, density = (values.numpy() for values in slopes(f, v))
    d, density = slope[density > 0], density[density > 0]
    mean = float(density @ d)
    scale = weights.sigma_w**2
    if not 0 < mean < math.inf:
        return (math.inf if mean != 0 else 0.0), math.nan, np.zeros_like(MOMENTS)
    variance = float(density @ (d / mean - 1) ** 2)
    top = d.max()
    ratio = d / top
    distance = np.exp(DISTANCES)
    M = (density * ratio / (distance[:, None] + (1 - ratio))).sum(1)
    log_M, places = np.unique(np.log(M), return_index=True)
    inverse = PchipInterpolator(log_M, math.log(top) + np.log1p(distance[places]), extrapolate=False)(MOMENTS)
    inverse = np.where(log_M[-1] < MOMENTS, math.log(top), inverse)  # ζ cannot be nearer to the largest slope
    factor = MOMENTS + inverse - np.logaddexp(0, MOMENTS) + math.log(scale)
    if not weights.orthogonal:
        factor = factor + np.logaddexp(0, MOMENTS)
        variance += 1
    return scale * mean, variance, factor


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < MOST else math.inf


def _minimum(values: np.ndarray) -> float:
    """Return the least value over the grid, between its points by a parabola."""
    k = int(values.argmin())
    if not 0 < k < len(values) - 1:
        return float(values[k])
    left, middle, right = values[k - 1 : k + 2]
    curvature = left - 2 * middle + right
    return float(middle - (right - left) ** 2 / (8 * curvature)) if curvature > 0 else float(middle)
