"""The edge of chaos of an activation, in the plane of the variances of weights and biases.

Signals of the length that layers keep, q = F(v) with v = σ_w² q + σ_b², become parallel (ordered) or part (chaotic) as
χ₁ = σ_w² E[f'(√v z)²] is below or above 1 (Poole et al. 2016, arXiv 1606.05340, and Schoenholz et al. 2017, arXiv
1611.01232). With v as the parameter, the edge χ₁ = 1 needs no solver:

    σ_w² = 1 / E[f'(√v z)²],    σ_b² = v − σ_w² E[f(√v z)²].
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn.functions import Phi
from bsnn_cli.gpn.meanfield import Weights, gradient_step, variance_map
from bsnn_cli.theory.activation import Given, computing, given
from bsnn_cli.theory.moments import gaussian_moments

VARIANCES = tuple(np.geomspace(1e-4, 1e3, 141).tolist())
"""Variances v of preactivations at which an edge is computed unless others are given; 1 is one of them."""

ROUNDING = 1e-9
"""Relative; a σ_b² that is negative by less is 0, as for ReLU, whose edge is a point."""


def edge(activation: str | Phi | Given, variances: Iterable[float] = VARIANCES) -> pd.DataFrame:
    """Compute points on the edge of chaos.

    >>> round(edge("relu", [1.0])["sigma_w_squared"][0], 6)
    2.0

    Args:
        activation: as in `predict`.
        variances: v of preactivations, above 0.

    Returns:
        a row for each v that a bias reaches, σ_b² ≥ 0: `variance` v, `length` q, `sigma_w_squared`, `sigma_b_squared`,
        and `chi`, the slope of log q' over log q: where it is above 1 such a q is not stable, and networks leave it.

    Raises:
        ActivationError: as `predict`.
        ConfigError: a variance is not a number above 0.
    """
    f = given(activation)
    gaussian_moments(f)  # what has none is told so
    rows = []
    with computing():
        maps = f.transfer()
        for v in variances:
            if not 0 < v < math.inf:
                raise ConfigError(f"variances: {v} is not a number above 0")
            q, slope = variance_map(maps, v), float(gradient_step(maps, v).state[1])
            if not slope > 0 or not q > 0:
                continue
            sigma_w_squared = 1 / slope
            sigma_b_squared = v - sigma_w_squared * q
            if abs(sigma_b_squared) < ROUNDING * v:
                sigma_b_squared = 0.0
            if sigma_b_squared < 0:
                continue
            weights = Weights(sigma_w=math.sqrt(sigma_w_squared), sigma_b=math.sqrt(sigma_b_squared))
            chi = float(gradient_step(maps, q, weights).jacobian[0, 0])
            rows.append((v, q, sigma_w_squared, sigma_b_squared, chi))
    return pd.DataFrame(rows, columns=["variance", "length", "sigma_w_squared", "sigma_b_squared", "chi"])
