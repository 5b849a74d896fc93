"""Batch normalisation of all layers of a fleet, and its gradient.

It is computed in two ways: by formulas over all members at once, which a compiler turns into few kernels, and by
PyTorch's own kernel for one network after the other, which on a CPU passes over a signal less than half as often.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1
"""PyTorch's defaults for batch normalisation."""


class Statistics(NamedTuple):
    """Statistics of one layer (K, n), of all layers (L, K, n), or of one member at one layer (n,).

    Attributes:
        mean, variance: of the batch; the variance unbiased, as the running statistics want it.
        inverse_std: 1/√(variance + eps), with the biased variance.
        gain_gradient, shift_gradient: ∂E/∂γ and ∂E/∂β.
    """

    mean: Tensor
    variance: Tensor
    inverse_std: Tensor
    gain_gradient: Tensor
    shift_gradient: Tensor


class Normalised(NamedTuple):
    """The parameters, statistics and result of the batch normalisation of one layer.

    Attributes:
        gain, shift: γ and β, (K, n).
        batch: statistics, (K, n).
        y: γĥ + β, (K, B, n).
    """

    gain: Tensor
    shift: Tensor
    batch: Statistics
    y: Tensor


class BatchNorm:
    """The statistics of a training batch, which the backward pass needs from the forward pass.

    Attributes:
        all: statistics of all layers, (L, K, n).
        layers: those of each layer, views.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self.all = Statistics(*(like.new_zeros(shape) for _ in Statistics._fields))
        self.layers = [Statistics(*views) for views in zip(*self.all, strict=True)]

    def finish(self, a: Tensor, gain: Tensor, out: Tensor) -> None:
        """After the last layer: Σ_batch h ∂E/∂h, but for a, into `out` (L, K, n), and the factor a into the gradients.

        h = ĥ·std + mean, and ∂E/∂h sums to zero over the batch. Of Σ ĥ ∂E/∂ĥ only the share of eps in the variance is
        left: without it, normalised preactivations do not depend on the length of a row.

        Args:
            a: of each member, (K, 1).
            gain: γ, (L, K, n).
            out: replaced.
        """
        torch.mul(gain * self.all.gain_gradient, NORM_EPS * self.all.inverse_std.square(), out=out)
        self.all.gain_gradient.mul_(a)
        self.all.shift_gradient.mul_(a)


def normalise(h: Tensor, gain: Tensor, shift: Tensor, batch: Statistics, out: Tensor) -> None:
    """Replace h (K, B, n) by ĥ of zero mean and unit variance, and `out` by γĥ + β; fills `batch` in part."""
    B = h.shape[1]
    batch.mean.copy_(h.mean(1))
    h.sub_(batch.mean.unsqueeze(1))
    squares = torch.linalg.vecdot(h, h, dim=1)
    batch.variance.copy_(squares / (B - 1))
    batch.inverse_std.copy_(torch.rsqrt(squares / B + NORM_EPS))
    h.mul_(batch.inverse_std.unsqueeze(1))
    torch.mul(h, gain.unsqueeze(1), out=out).add_(shift.unsqueeze(1))


def denormalise(u: Tensor, h_hat: Tensor, gain: Tensor, scale: Tensor, batch: Statistics, out: Tensor) -> None:
    """Turn the gradient a·u (K, B, n) of γĥ + β into that of h; `scale` is a, and what else belongs to it."""
    B = u.shape[1]
    shift, along = u.sum(1), torch.linalg.vecdot(u, h_hat, dim=1)
    batch.shift_gradient.copy_(shift)
    batch.gain_gradient.copy_(along)
    torch.addcmul(u, h_hat, along.unsqueeze(1), value=-1 / B, out=out).sub_(shift.unsqueeze(1) / B)
    out.mul_((gain * batch.inverse_std).unsqueeze(1) * scale)


def normalise_natively(h: Tensor, gain: Tensor, shift: Tensor, batch: Statistics, out: Tensor) -> None:
    """Replace `out` (K, B, n) by γĥ + β, by PyTorch's kernel; h stays, and `batch` is filled in part."""
    for k, h_k in enumerate(h):
        saved = out[k], torch.empty_like(batch.mean[k]), batch.inverse_std[k]
        # At momentum 1 the running statistics are those of the batch.
        running = batch.mean[k], batch.variance[k]
        torch.native_batch_norm(h_k, gain[k], shift[k], *running, True, 1.0, NORM_EPS, out=saved)


def denormalise_natively(u: Tensor, h: Tensor, gain: Tensor, scale: Tensor, batch: Statistics, out: Tensor) -> None:
    """Turn the gradient of γĥ + β into that of h as `denormalise` does, from h as `normalise_natively` leaves it."""
    for k, u_k in enumerate(u):
        below, along, shift = torch.ops.aten.native_batch_norm_backward(
            u_k, h[k], gain[k], None, None, batch.mean[k], batch.inverse_std[k], True, NORM_EPS, [True] * 3
        )
        batch.gain_gradient[k].copy_(along)
        batch.shift_gradient[k].copy_(shift)
        torch.mul(below, scale[k], out=out[k])
