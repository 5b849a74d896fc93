"""The signals of one step of a fleet, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bsnn_cli.networks.batch_norm import BatchNorm


class Layer(NamedTuple):
    """Views of the signals of one layer, made once: a view takes as long as to add a few thousand numbers.

    Attributes:
        x, h, d, s: as in `Signals`.
        above, below: x^{l+1}, and ∂E/∂x^l.
    """

    x: Tensor
    h: Tensor
    above: Tensor
    d: Tensor
    below: Tensor
    s: Tensor


@dataclass(frozen=True)
class Signals:
    """The memory that a step computes in, for one batch size. Signals may be views of wider memory, see `allocate`.

    Attributes:
        x: (L + 1, K, B, n) signals x^1 … x^{L+1}, the last one below the output layer.
        h: (L, K, B, n) preactivations Wx; batch normalisation on a GPU replaces them by ĥ, of variance 1.
        d: (L, K, B, n) (∂E/∂h)/‖v‖ after the backward pass; the forward pass may leave γĥ + β here.
        g: (L, K, B, n) ∂E/∂x = dW below each layer; one memory for all layers unless the engine asks for every g.
        error: (K, B, classes) gradient of the logits.
        loss: (K,) mean cross-entropy of the batch.
        s: (L, K, n) Σ_batch h ∂E/∂h, but for the factor a; unused unless the rows are unit rows.
        bound: (L, K) ‖d‖ ‖x‖, which is at least the length of dᵀx.
        norm: what batch normalisation keeps between the two passes, or None.
    """

    x: Tensor
    h: Tensor
    d: Tensor
    g: Tensor
    error: Tensor
    loss: Tensor
    s: Tensor
    bound: Tensor
    norm: BatchNorm | None

    @cached_property
    def layers(self) -> list[Layer]:
        """Return the views of all layers, from the lowest to the highest."""
        views = zip(self.x[:-1], self.h, self.x[1:], self.d, self.g, self.s, strict=True)
        return [Layer(*layer) for layer in views]

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int],
        allocate: Callable[..., Tensor],
        *,
        classes: int,
        norm: bool,
        every_g: bool,
        like: Tensor,
    ) -> Signals:
        """Allocate (L, K, B, n) signals, on the device of `like` and of its type.

        Args:
            shape: (L, K, B, n).
            allocate: as `Engine.allocate`.
            classes: number of outputs.
            norm: with batch normalisation.
            every_g: keep ∂E/∂x of every layer.
            like: any tensor.
        """
        L, K, B, n = shape
        x, h, d, g = (allocate(length, K, B, n) for length in (L + 1, L, L, L if every_g else 1))
        s = like.new_zeros(L, K, n)
        error, loss, bound = s.new_empty(K, B, classes), s.new_empty(K), s.new_empty(L, K)
        return cls(x, h, d, g.expand_as(h), error, loss, s, bound, BatchNorm((L, K, n), s) if norm else None)

    def scale_gradient(self, factor: Tensor, *, every_g: bool) -> None:
        """Multiply the gradients of each network's hidden matrices by a factor, (K,), as those that they come from.

        Args:
            factor: of each network.
            every_g: whether they come from g as well.
        """
        wide = factor.view(-1, 1, 1)
        for signal in (self.d, self.g) if every_g else (self.d,):
            signal.mul_(wide)
        self.s.mul_(wide.squeeze(2))
        self.bound.mul_(factor)

    def measure_bound(self, layers: slice = slice(None)) -> None:
        """Fill `bound` of some layers."""
        lengths = (torch.linalg.vector_norm(signal[layers], dim=(-2, -1)) for signal in (self.d, self.x[:-1]))
        torch.mul(*lengths, out=self.bound[layers])
