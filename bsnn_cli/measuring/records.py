"""Records of measured signals, of a layer and of the whole network. Imports no torch, so that tables do without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """Signals of one layer l over a batch; each is one column of `layers.csv`. NaN = not defined there.

    x^l enters the layer, h^l enters its activation, and d^l = ∂E_b/∂h^l is of the loss of one sample b. The row
    l = L + 1 has only the first two: x^{L+1} leaves the last hidden layer. n counts the units of the signal that it
    stands below, n_l of x^l and n_{l+1} of d^l, where layers are of different widths.

    Attributes:
        layer: l, counted from 1.
        forward_norm: ‖x^l‖²/n, mean over the batch.
        one_minus_cosine: 1 − c, with c the mean cosine between two different x^l of the batch.
        backward_norm: ‖d^l‖²/n, mean over the batch.
        gradient_norm: ‖∂E/∂W^l‖_F of the batch mean E of the loss.
        preactivation_mean, preactivation_variance: of h^l_i over the batch and all units.
        derivative_mean, derivative_std: of f'(h^l_i) over the batch and all units; f is the activation in use.
        pseudo_linearity: squared correlation of h^l_i with f(h^l_i) over the batch, averaged over the units.
        saturated: share of the h^l_i with |f'(h)| below `quantities.SATURATION` of the largest slope of f.
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
class CallRecord(LayerRecord):
    """Signals of one call of a layer of any network, in a row l; the last row is of what leaves the network.

    x^l is the tensor that enters the call, the first of several, and n the number of its entries for each sample.
    `backward_norm` is of ∂E_b/∂x^l, of all ways from this tensor to the loss; so it is that of d^l where the layer is
    an activation. Preactivations and slopes are of activations only.

    Attributes:
        module: qualified name of the layer; `OUTPUT` in the last row.
        kind: name of its class.
        call: index of this call among those of the layer, from 0.
        weights: entries of its matrices and kernels; 0 if it has none, or only vectors, as normalisations do.
    """

    module: str
    kind: str
    call: int
    weights: int


OUTPUT = "(output)"
"""In place of the name of a layer."""


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
        layers: rows l = 1 … L + 1; of `CallRecord` for a network of the user's own.
        derivatives: {l: all f'(h^l_i) of the batch}, for the layers asked for; (B·n,) float32 on the CPU.
        inputs: in the batch, where the network brings its own; None: as many as the config says.
    """

    layers: Sequence[LayerRecord]
    derivatives: dict[int, Tensor]
    inputs: int | None = None


def summarise(rows: Sequence[LayerRecord]) -> Summary:
    """Return the numbers that tell how the signals change over depth."""
    *hidden, end = rows
    return _summary(rows[0], end, [row.backward_norm for row in hidden], hidden, hidden[-1])


def summarise_calls(rows: Sequence[CallRecord]) -> Summary:
    """Return the same numbers of any network.

    Lengths begin with the first layer that takes a signal. Gradients are those of layers with matrices or kernels,
    slopes those of the last activation.
    """
    *calls, end = rows
    first = next((row for row in rows if not math.isnan(row.forward_norm)), end)
    backward = [row.backward_norm for row in calls if not math.isnan(row.backward_norm)] or [math.nan]
    activations = [row for row in calls if not math.isnan(row.saturated)]
    return _summary(first, end, backward, with_weights(calls), activations[-1] if activations else end)


def with_weights(rows: Iterable[CallRecord]) -> list[CallRecord]:
    """Return the calls of layers with matrices or kernels."""
    return [row for row in rows if row.weights]


def _summary(
    first: LayerRecord,
    end: LayerRecord,
    backward: Sequence[float],
    weighted: Sequence[LayerRecord],
    last: LayerRecord,
) -> Summary:
    gradients = [row.gradient_norm for row in weighted] or [math.nan]
    return Summary(
        forward_norm_first=first.forward_norm,
        forward_norm_last=end.forward_norm,
        backward_norm_first=backward[0],
        backward_norm_last=backward[-1],
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
