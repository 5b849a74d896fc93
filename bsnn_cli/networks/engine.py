"""What computes the hidden layers of a fleet, and the choice of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from bsnn_cli.networks import native
from bsnn_cli.networks.c_engine import CEngine
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.torch_engine import TorchEngine


class Engine(Protocol):
    """Computes a step of the hidden layers of a fleet. All engines give the same numbers but for rounding.

    Attributes:
        hidden: the layers, which it changes.
        arithmetic: engines that round in the same way have the same name.
        threads: of PyTorch's operations during a step.
    """

    hidden: HiddenLayers
    arithmetic: str
    threads: int

    @property
    def every_g(self) -> bool:
        """Whether it needs ∂E/∂x of all layers at once."""

    def prepare(self, batch: int) -> None:
        """Get ready for steps of this batch size, before the first of them; whatever fails there is raised."""

    def measure_rows(self) -> None:
        """Bring the factors that depend on V up to date, for a use of V outside of steps."""

    def forward(self, signals: Signals) -> None:
        """Fill `x` and `h` of all hidden layers upwards, from `x[0]`."""

    def backward(self, signals: Signals, gradient: Tensor) -> None:
        """Fill `d`, `g`, `s` or the gradients of batch normalisation, and `bound`, downwards.

        Args:
            signals: as `forward` has filled them.
            gradient: ∂E/∂x of the top, (K, B, n).
        """

    def update(self, signals: Signals) -> None:
        """M ← μM + ∂E/∂V and V ← V − lr·M of the living members."""

    def complete_held_steps(self) -> None:
        """Make steps of orthogonal matrices that `update` has held back on a GPU."""


EngineFactory = Callable[[HiddenLayers], Engine]


def choose(hidden: HiddenLayers) -> tuple[Engine, str | None]:
    """Return the fastest engine that covers these layers, and the reason in words where it is PyTorch's operations."""
    uncovered = sorted({member.activation.name for member in hidden.members if member.activation.kernel is None})
    if uncovered:
        return TorchEngine(hidden), f"the fast kernels have no code for the activation {', '.join(uncovered)}"
    factory = _of_gpu(hidden) if hidden.device.type == "cuda" else _of_cpu(hidden)
    if isinstance(factory, str):
        return TorchEngine(hidden), factory
    return factory(hidden), None


def _of_cpu(hidden: HiddenLayers) -> EngineFactory | str:
    code = native.library(hidden.dtype)
    return code if isinstance(code, str) else CEngine


def _of_gpu(hidden: HiddenLayers) -> EngineFactory | str:
    try:
        from bsnn_cli.networks.triton_engine import TritonEngine
    except ImportError:
        return "Triton is not installed"
    if hidden.dtype != torch.float32:
        return "the fast kernels compute in float32"
    if torch.cuda.get_device_capability(hidden.device) < (8, 0):
        return "this GPU has no tensor cores for TF32"
    return TritonEngine
