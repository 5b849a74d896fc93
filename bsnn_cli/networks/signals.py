"""The signals of one step of a fleet, on their way up and down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bsnn_cli.networks.batch_norm import BatchNorm


class Layer(NamedTuple):
    """Views of the signals of one layer.

    To make a view takes as long as to add a few thousand numbers, and threads wait for each other's turn with Python
    meanwhile. So these are made once, not in every step.

    Attributes:
        x, h, d, s: as in `Signals`.
        above, below: x^{l+1}, and ∂E/∂x^l.
        h_of, d_of: of each member, (B, n).
    """

    x: Tensor
    h: Tensor
    above: Tensor
    d: Tensor
    below: Tensor
    s: Tensor
    h_of: Sequence[Tensor]
    d_of: Sequence[Tensor]


@dataclass(frozen=True)
class Signals:
    """What a step computes for some samples of a batch, or for all of them.

    Attributes:
        x: (L + 1, K, B, n) signals x^1 … x^{L+1}, the last one below the output layer.
        h: (L, K, B, n) preactivations Wx; batch normalisation on a GPU replaces them by ĥ, of variance 1.
        d: (L, K, B, n) (∂E/∂h)/‖v‖ after the way down; on the way up batch normalisation may leave its γĥ + β here.
        g: (L, K, B, n) ∂E/∂x = dW below each layer; one memory for all layers unless the weights are orthogonal.
        error: (K, B, classes) gradient of the logits.
        loss: (K,) share of these samples in the mean cross-entropy of the batch.
        s: (L, K, n) Σ_samples h ∂E/∂h, but for the factor a; unused unless the rows are unit rows.
        bound: (L, K) at least the length of dᵀx: ‖d‖ ‖x‖, or where parts have computed it the sum of theirs.
        norm: what batch normalisation keeps between the two ways, or None.
        values: of each layer and group of equal activations φ(h), where the way down is quicker with it.
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
    values: list[list[Tensor | None]] = field(default_factory=list)

    @cached_property
    def layers(self) -> list[Layer]:
        """From the lowest to the highest."""
        views = zip(self.x[:-1], self.h, self.x[1:], self.d, self.g, self.s, strict=True)
        return [Layer(x, h, above, d, g, s, h.unbind(), d.unbind()) for x, h, above, d, g, s in views]

    @cached_property
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """dᵀ (n, B) and x (B, n) of each layer and member: ∂E/∂V is their product, but for the tangent term."""
        return list(zip(self.d.flatten(0, 1).mT, self.x[:-1].flatten(0, 1), strict=True))

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int, int], *, classes: int, norm: bool, every_g: bool, like: Tensor
    ) -> Signals:
        """Memory for (L, K, B, n) signals, on the device of `like` and of its type.

        Args:
            shape: (L, K, B, n).
            classes: number of outputs.
            norm: with batch normalisation.
            every_g: keep ∂E/∂x of every layer.
            like: any tensor.
        """
        L, K, B, n = shape
        x, h, d, g = (like.new_empty(length, K, B, n) for length in (L + 1, L, L, L if every_g else 1))
        s = like.new_zeros(L, K, n)
        error, loss, bound = s.new_empty(K, B, classes), s.new_empty(K), s.new_empty(L, K)
        return cls(x, h, d, g.expand_as(h), error, loss, s, bound, BatchNorm((L, K, n), s) if norm else None)

    def split(self, parts: int) -> list[Signals]:
        """Views of about equally many samples each, with sums of their own; all of them have the whole batch's norm."""
        if parts == 1:
            return [self]
        size = -(-self.error.shape[1] // parts)
        signals = (self.x, self.h, self.d, self.g, self.error)
        return [
            Signals(x, h, d, g, error, *self._own_sums(), self.norm)
            for x, h, d, g, error in zip(*(torch.split(signal, size, dim=-2) for signal in signals), strict=True)
        ]

    def _own_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Memory for what the samples of a part add up to."""
        return torch.empty_like(self.loss), torch.empty_like(self.s), torch.empty_like(self.bound)
