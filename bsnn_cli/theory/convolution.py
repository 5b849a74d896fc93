"""Predict the lengths of signals and gradients pixel by pixel in a wide convolutional network before training.

Xiao et al. 2018 (arXiv 1806.05393) follow signals through convolutions whose pixels form a ring. Here the images have
borders, beyond which the signal is 0, as in `network=cnn`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli.gpn.functions import Phi
from bsnn_cli.theory.activation import Given, computing, given

KERNEL = 3

NODES = 100
"""Nodes of the Gauss-Legendre rule on either side of 0, where activations may have a corner."""

REACH = 12.0
"""Standard deviations beyond which nothing counts."""


class PixelLengths(NamedTuple):
    """Squared lengths per channel of each pixel, in every layer.

    Attributes:
        forward: (L + 1, height, width) ‖x^l‖²/n; x^1 enters the first hidden layer, x^{L+1} leaves the last.
        backward: (L + 1, height, width) ‖∂E/∂x^l‖²/n, relative to its mean at x^{L+1}.
    """

    forward: Tensor
    backward: Tensor


def pixel_lengths(
    activation: str | Phi | Given, depth: int, pixels: tuple[int, int] = (14, 14), delta: bool = True
) -> PixelLengths:
    """Predict lengths at infinite width for signals and top gradients that start at length 1 in every pixel.

    A preactivation at pixel p has the variance v_p = Σ_t s_t q_{p+t}, where q are the lengths of the signals and s_t
    the share of the kernel's variance at the place t. What leaves is E[f(√v_p z)²]; a gradient is multiplied by
    E[f'(√v_p z)²] and goes back to the pixels it came from.

    Args:
        activation: f, as in `prediction.predict`; where it has a corner elsewhere than at 0, digits are lost.
        depth: number L of convolutions.
        pixels: (height, width).
        delta: the delta-orthogonal start, where the centre of the kernel has all of the variance; False: the nine
            places share it, as `model.init=lecun_normal` draws them.

    Raises:
        ActivationError: no activation.
    """
    with computing():
        f = given(activation, depth)
        kernel = torch.zeros(1, 1, KERNEL, KERNEL, dtype=torch.float64)
        if delta:
            kernel[..., KERNEL // 2, KERNEL // 2] = 1
        else:
            kernel += 1 / KERNEL**2

        z, weights = _rule()

        def neighbours(lengths: Tensor) -> Tensor:
            return F.conv2d(lengths[None, None], kernel, padding=KERNEL // 2)[0, 0]

        def mean_square(function: Phi, variance: Tensor) -> Tensor:
            return function(variance.sqrt().unsqueeze(-1) * z).square() @ weights

        forward, variances = [torch.ones(pixels, dtype=torch.float64)], []
        for _ in range(depth):
            variances.append(neighbours(forward[-1]))
            forward.append(mean_square(f.phi, variances[-1]))
        backward = [torch.ones(pixels, dtype=torch.float64)]
        for variance in reversed(variances):
            backward.append(neighbours(mean_square(f.slope, variance) * backward[-1]))
        return PixelLengths(torch.stack(forward), torch.stack(backward[::-1]))


def _rule() -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the mean over a standard normal variable."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    positive = torch.from_numpy(REACH * (nodes + 1) / 2)
    density = torch.exp(-positive.square() / 2) / math.sqrt(2 * math.pi)
    half = torch.from_numpy(REACH * weights / 2) * density
    return torch.cat([positive, -positive]), torch.cat([half, half])
