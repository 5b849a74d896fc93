"""The quantities that are measured of signals, gradients and slopes, whatever network they come from.

Sums are accumulated in float64; values of half precision are widened to float32 first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SATURATION = 0.01
"""A unit counts as saturated where |f'(h)| is below this share of the largest |f'| over |h| ≤ 8."""


def lengths_and_angle(x: Tensor) -> tuple[float, float]:
    """Return the mean over the batch of ‖x‖²/n, and 1 − c; c is the mean cosine of two different rows of x (B, n).

    In float64: 1 − c = (B − ‖Σu‖²/B)/(B − 1), with u = x/‖x‖, then keeps its digits down to 1e-14 at a cost linear in
    B, and squares of small or large float32 numbers are none. 1 − c is NaN where a row is 0, and of a single row.
    """
    x, B = x.double(), len(x)
    norms = torch.linalg.vector_norm(x, dim=1)
    total = x.T @ (1 / norms)
    separation = float((B - total.square().sum() / B).clamp(min=0)) / (B - 1) if B > 1 else math.nan
    return float(norms.square().sum()) / x.numel(), separation


def mean_and_variance(x: Tensor) -> tuple[float, float]:
    """Return mean and variance over all entries, accumulated in float64."""
    mean = x.mean(dtype=torch.float64)
    return float(mean), length(x - mean.to(x.dtype)) ** 2 / x.numel()


def pseudo_linearity(h: Tensor, f: Tensor) -> float:
    """Return the squared correlation of h_i with f_i over the batch, averaged over the units; h, f: (B, n).

    1 means that each unit is a linear function on the inputs it sees. Units that do not vary are left out, NaN if none
    does.
    """
    (h, h_norm), (f, f_norm) = centred(h), centred(f)
    correlation = (h * f).sum(0).double() / (h_norm * f_norm)
    return float(correlation.square().nanmean())


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract its mean from each column of x (B, n), divide all by their largest value, and add their lengths (n,)."""
    x = x - x.mean(0)
    x /= x.abs().amax()
    return x, (x * x).sum(0).double().sqrt()


def length(x: Tensor) -> float:
    """Return ‖x‖ over all entries, accumulated in float64: squares of small or large float32 numbers are none."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def mean_square(x: Tensor) -> float:
    """Return ‖x‖²/n averaged over the batch: the mean of the squares of all entries."""
    return length(x) ** 2 / x.numel()


def slopes(h: Tensor, derivative: Tensor, largest: float) -> dict[str, float]:
    """Return what `LayerRecord` says of preactivations and slopes, by its names.

    Args:
        h: preactivations, of any shape.
        derivative: f'(h), of the shape of h.
        largest: of |f'| over |h| ≤ 8, as `largest_slope` returns it.
    """
    h_mean, h_variance = mean_and_variance(h)
    slope_mean, slope_variance = mean_and_variance(derivative)
    return {
        "preactivation_mean": h_mean,
        "preactivation_variance": h_variance,
        "derivative_mean": slope_mean,
        "derivative_std": math.sqrt(slope_variance),
        "saturated": int((derivative.abs() < SATURATION * largest).count_nonzero()) / derivative.numel(),
    }


def largest_slope(derivative: Callable[[Tensor], Tensor]) -> float:
    """Return the largest |f'| over |h| ≤ 8, for f' of float64 tensors on the CPU."""
    return float(derivative(torch.linspace(-8, 8, 1601, dtype=torch.float64, device="cpu")).abs().max())


def wide(x: Tensor) -> Tensor:
    """Return values of half precision in float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
