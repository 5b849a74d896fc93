"""Records of measured signals, of a layer and of the whole network. Imports no torch, so that tables do without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """Signals of one layer l over a batch; each is one column of `layers.csv`. NaN = not defined there.

    x^l enters the layer, h^l enters its activation, and d^l = ∂E_b/∂h^l is of the loss of one sample b. The row
    l = L + 1 has only the first two: x^{L+1} leaves the last hidden layer.

    Attributes:
        layer: l, counted from 1.
        forward_norm: ‖x^l‖²/n, mean over the batch.
        one_minus_cosine: 1 − c, with c the mean cosine between two different x^l of the batch.
        backward_norm: ‖d^l‖²/n, mean over the batch.
        gradient_norm: ‖∂E/∂W^l‖_F of the batch mean E of the loss.
        preactivation_mean, preactivation_variance: of h^l_i over the batch and all units.
        derivative_mean, derivative_std: of f'(h^l_i) over the batch and all units; f is the activation in use.
        pseudo_linearity: squared correlation of h^l_i with f(h^l_i) over the batch, averaged over the units.
        saturated: share of the h^l_i with |f'(h)| below `propagation.SATURATION` of the largest slope of f.
    """

    layer: int
    forward_norm: float
    one_minus_cosine: float
    backward_norm: float = math.nan
    gradient_norm: float = math.nan
    preactivation_mean: float = math.nan
    preactivation_variance: float = math.nan
    derivative_mean: float = math.nan
    derivative_std: float = math.nan
    pseudo_linearity: float = math.nan
    saturated: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One passage through a network of L hidden layers. NaN = not defined, such as a ratio to a gradient of 0.

    Attributes:
        forward_norm_first, forward_norm_last: ‖x^1‖²/n and ‖x^{L+1}‖²/n.
        backward_norm_first, backward_norm_last: ‖d^1‖²/n and ‖d^L‖²/n.
        gradient_norm_first, gradient_norm_last: ‖∂E/∂W^1‖_F and ‖∂E/∂W^L‖_F.
        gradient_norm_max, gradient_norm_ratio: over the layers, the largest, and the largest over the smallest.
        zero_gradients: number of layers whose gradient is exactly 0.
        preactivation_mean, preactivation_variance, derivative_mean, derivative_std, pseudo_linearity,
            saturated: of h^L, as in `LayerRecord`.
        one_minus_cosine_last: of x^{L+1}.
    """

    forward_norm_first: float
    forward_norm_last: float
    backward_norm_first: float
    backward_norm_last: float
    gradient_norm_first: float
    gradient_norm_last: float
    gradient_norm_max: float
    gradient_norm_ratio: float
    zero_gradients: int
    preactivation_mean: float
    preactivation_variance: float
    derivative_mean: float
    derivative_std: float
    pseudo_linearity: float
    saturated: float
    one_minus_cosine_last: float


@dataclass(frozen=True)
class Measurement:
    """The result of one forward and one backward pass through the network.

    Attributes:
        layers: rows l = 1 … L + 1.
        derivatives: {l: all f'(h^l_i) of the batch}, for the layers asked for; (B·n,) float32 on the CPU.
    """

    layers: list[LayerRecord]
    derivatives: dict[int, Tensor]


def summarise(rows: Sequence[LayerRecord]) -> Summary:
    """Return the numbers that tell how the signals change over depth."""
    *hidden, end = rows
    gradients = [row.gradient_norm for row in hidden]
    last = hidden[-1]
    return Summary(
        forward_norm_first=rows[0].forward_norm,
        forward_norm_last=end.forward_norm,
        backward_norm_first=rows[0].backward_norm,
        backward_norm_last=last.backward_norm,
        gradient_norm_first=gradients[0],
        gradient_norm_last=gradients[-1],
        gradient_norm_max=max(gradients) if all(map(math.isfinite, gradients)) else math.nan,
        gradient_norm_ratio=max(gradients) / min(gradients) if all(gradients) else math.nan,
        zero_gradients=gradients.count(0),
        preactivation_mean=last.preactivation_mean,
        preactivation_variance=last.preactivation_variance,
        derivative_mean=last.derivative_mean,
        derivative_std=last.derivative_std,
        pseudo_linearity=last.pseudo_linearity,
        saturated=last.saturated,
        one_minus_cosine_last=end.one_minus_cosine,
    )
