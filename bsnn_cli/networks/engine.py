"""The interface of what computes the hidden layers of a fleet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers, threads_for


class Engine(ABC):
    """Computes the steps of the hidden layers of a fleet. All engines give the same numbers but for rounding.

    Args:
        hidden: the layers, which it changes.

    Attributes:
        arithmetic: engines that round in the same way have the same name.
        threads: of PyTorch's operations during a step and an evaluation.
        workers: the threads that share the images of an evaluation, beside those.
        asks_device: whether `update` may read values, such as which members live; False where steps are captured.
    """

    arithmetic: str
    workers = Workers(1)
    asks_device = True

    def __init__(self, hidden: HiddenLayers) -> None:
        self.hidden = hidden
        self.threads = threads_for(hidden.V.numel())

    @property
    def description(self) -> str:
        """Return its name, for the provenance of a run."""
        return type(self).__name__

    @property
    def every_g(self) -> bool:
        """Return whether it needs ∂E/∂x of all layers at once; the update of orthogonal matrices does."""
        return self.hidden.drift is not None

    def prepare(self, batch: int) -> None:  # noqa: B027
        """Get ready for steps of this batch size, before the first of them; whatever fails there is raised."""

    def measure_rows(self) -> None:  # noqa: B027
        """Bring the factors that depend on V up to date for a use outside of steps, if `update` does not do that."""

    def take_over(self) -> None:  # noqa: B027
        """Bring all factors that depend on V up to date after something else has changed V, unless `forward` does."""

    def allocate(self, layers: int, K: int, B: int, n: int) -> Tensor:
        """Return memory for the signals of some layers, (layers, K, B, n), laid out as the engine wants it."""
        return self.hidden.norm.new_empty(layers, K, B, n)

    def preactivations(self, signals: Signals, k: int, layers: slice) -> Tensor:
        """Return Wx of some layers of a member, (c, B, n), but for what is the same for all samples."""
        return signals.h[layers, k]

    def evaluate(self, x: Tensor) -> Tensor:
        """Send signals x^1 through all layers in evaluation mode, (K, B, n) → (K, B, n) below the output layer.

        x is overwritten. Several threads may call this at the same time.
        """
        hidden, above = self.hidden, torch.empty_like(x)
        norm = hidden.running_normalisation()
        for layer, inverse_norm in enumerate(hidden.inverse_norm):
            h = torch.bmm(x, hidden.V[:, layer].mT).mul_(inverse_norm)
            if norm is not None:
                gain, shift, mean, inverse_std = (tensor[:, layer].unsqueeze(1) for tensor in norm)
                h.sub_(mean).mul_(gain * inverse_std).add_(shift)
            for activation, a, b, members in hidden.groups:
                torch.add(b, activation.phi(h[members]), alpha=a, out=above[members])
            x, above = above, x
        return x

    @abstractmethod
    def forward(self, signals: Signals) -> None:
        """Fill `x`, `h` and what batch normalisation keeps upwards, from `x[0]`."""

    @abstractmethod
    def backward(self, signals: Signals, gradient: Tensor) -> None:
        """Fill `d`, `g`, `s` or the gradients of batch normalisation, and `bound`, downwards.

        Args:
            signals: as `forward` has filled them.
            gradient: ∂E/∂x of the top, (K, B, n).
        """

    @abstractmethod
    def update(self, signals: Signals) -> None:
        """M ← μM + ∂E/∂V and V ← V − lr·M of the living members.

        It may leave the factors that depend on V to `forward` and `measure_rows`.
        """

    def complete_held_steps(self) -> None:  # noqa: B027
        """Make the steps of orthogonal matrices that `update` has held back on a GPU. The host waits for the device."""


EngineFactory = Callable[[HiddenLayers], Engine]
