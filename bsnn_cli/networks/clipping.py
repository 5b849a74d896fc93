"""Gradient clipping of a fleet by the norm of the gradient of all parameters of each network.

The gradients of the hidden matrices are not built for that. With A = ddᵀ and B = xxᵀ, of a batch's size, the squared
length of dᵀx is the sum of A∘B over all pairs of samples. Lengths are summed in float64: gradients of 1e19 are not rare
in the first steps of a deep network, and their squares are not finite in float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bsnn_cli.networks.engine import Engine
from bsnn_cli.networks.signals import Signals

MARGIN = 1e-6
"""Added to the norm that is divided by, as in `torch.nn.utils.clip_grad_norm_`."""


def clip(engine: Engine, signals: Signals, gradients: Iterable[Tensor], largest: Tensor) -> None:
    """Scale the gradients of each network so that together they are no longer than `largest`; in place.

    The signals are scaled whose products are the gradients of the hidden layers, and `bound` with them.

    Args:
        engine: which has filled the signals.
        signals: of a step, after the backward pass.
        gradients: of all other parameters, (K, ...) each.
        largest: (K,) float64; infinite for a network without a limit.
    """
    gradients = list(gradients)
    squares = squared_lengths(engine, signals)
    for gradient in gradients:
        squares = squares + gradient.double().square().flatten(1).sum(1)
    factor = (largest / (squares.sqrt() + MARGIN)).clamp(max=1).to(signals.d.dtype)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    signals.scale_gradient(factor, every_g=engine.hidden.drift is not None)


def squared_lengths(engine: Engine, signals: Signals) -> Tensor:
    """Return the squared norm of the gradient of all hidden matrices of each network, (K,) float64.

    Of unit rows it is the gradient of V: dᵀx less its part along each row of V, of length s/‖v‖. Of orthogonal matrices
    it is the projection ½(dᵀx − hᵀg).
    """
    hidden = engine.hidden
    total = torch.zeros(len(hidden.members), dtype=torch.float64, device=hidden.device)
    for layer in range(hidden.model.depth):
        d, x = signals.d[layer].double(), signals.x[layer].double()
        squares = _product(d, d, x, x)
        if hidden.unit_rows:
            squares = squares - (signals.s[layer] * hidden.scale[layer, :, 0]).double().square().sum(1)
        elif hidden.drift is not None:
            place = slice(layer, layer + 1)
            h = torch.cat([engine.preactivations(signals, k, place) for k in range(len(d))]).double()
            g = signals.g[layer].double()
            squares = (squares - 2 * _product(d, h, x, g) + _product(h, h, g, g)) / 4
        total += squares.clamp(min=0)
    return total


def _product(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of aᵀx ∘ bᵀy of each network, (K,), from signals (K, B, n)."""
    return ((a @ b.mT) * (x @ y.mT)).sum((1, 2))
