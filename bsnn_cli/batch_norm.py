"""Batch normalisation of all layers of a fleet, and its gradient, by hand."""

from __future__ import annotations

import torch
from torch import Tensor

NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1
"""PyTorch's defaults for batch normalisation."""


class BatchNorm:
    """Batch normalisation of every layer over a training batch, and its gradient; tensors are (L, K, n).

    Attributes:
        mean, variance: of the batch; the variance unbiased, as the running statistics want it.
        inverse_std: 1/√(variance + eps), with the biased variance.
        gain_gradient, shift_gradient: ∂E/∂γ and ∂E/∂β, stacked as (K, L, n).
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self.mean, self.variance, self.inverse_std = (like.new_empty(shape) for _ in range(3))
        L, K, n = shape
        self.gain_gradient, self.shift_gradient = like.new_empty(K, L, n), like.new_empty(K, L, n)

    def forward(self, layer: int, h: Tensor, gain: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Replace h (K, B, n) by ĥ of zero mean and unit variance; returns γĥ + β, written to `out`."""
        B = h.shape[1]
        mean = h.mean(1)
        h.sub_(mean.unsqueeze(1))
        squares = torch.linalg.vecdot(h, h, dim=1)
        self.mean[layer], self.variance[layer] = mean, squares / (B - 1)
        self.inverse_std[layer] = torch.rsqrt(squares / B + NORM_EPS)
        h.mul_(self.inverse_std[layer].unsqueeze(1))
        return torch.mul(h, gain.unsqueeze(1), out=out).add_(shift.unsqueeze(1))

    def backward(self, layer: int, u: Tensor, h_hat: Tensor, gain: Tensor, scale: Tensor, out: Tensor) -> None:
        """Turn the gradient a·u (K, B, n) of γĥ + β into that of h; `scale` is a, and what else belongs to it."""
        B = u.shape[1]
        shift, along = u.sum(1), torch.linalg.vecdot(u, h_hat, dim=1)
        self.shift_gradient[:, layer], self.gain_gradient[:, layer] = shift, along
        torch.addcmul(u, h_hat, along.unsqueeze(1), value=-1 / B, out=out).sub_(shift.unsqueeze(1) / B)
        out.mul_((gain * self.inverse_std[layer]).unsqueeze(1) * scale)

    def finish(self, a: Tensor, gain: Tensor, out: Tensor) -> None:
        """After the last layer: Σ_batch h ∂E/∂h, but for a, into `out` (L, K, n), and the factor a into the gradients.

        h = ĥ·std + mean, and ∂E/∂h sums to zero over the batch. Of Σ ĥ ∂E/∂ĥ only the share of eps in the variance is
        left: without it, normalised preactivations do not depend on the length of a row.
        """
        torch.mul((gain * self.gain_gradient).transpose(0, 1), NORM_EPS * self.inverse_std.square(), out=out)
        self.gain_gradient.mul_(a)
        self.shift_gradient.mul_(a)
