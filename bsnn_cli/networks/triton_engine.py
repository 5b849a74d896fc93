"""Triton kernels as the engine of a fleet on a GPU: 2·L + 1 kernels a step, and some dozens of small ones."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from typing_extensions import override

from bsnn_cli.networks import kernels
from bsnn_cli.networks.engine import Engine
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.torch_engine import TorchEngine, rescaled


class TritonEngine(Engine):
    """An engine of the kernels in `kernels`.

    Orthogonal matrices are updated by PyTorch's operations. The rows of V are measured by the forward pass.

    Args:
        hidden: the layers to compute, in float32, of activations with a `kernel`.
        exact: products with the error of float32, not of TF32; None: as `torch.set_float32_matmul_precision` says.
    """

    arithmetic = "Triton"
    asks_device = False

    def __init__(self, hidden: HiddenLayers, exact: bool | None = None) -> None:
        super().__init__(hidden)
        self.kernels = kernels.Kernels(
            hidden.members,
            unit_rows=hidden.unit_rows,
            exact=torch.get_float32_matmul_precision() == "highest" if exact is None else exact,
            like=hidden.norm,
        )
        self._orthogonal = None if hidden.drift is None else TorchEngine(hidden, on_gpu=True)
        hidden.measure_rows()

    def _device(self) -> AbstractContextManager[object]:
        """Make the device of the layers the current one: Triton launches kernels there, wherever their tensors are."""
        on_gpu = self.hidden.device.type == "cuda"
        return torch.cuda.device(self.hidden.device) if on_gpu else contextlib.nullcontext()

    @override
    def prepare(self, batch: int) -> None:
        with self._device():
            self.kernels.compile(batch, norm=self.hidden.model.norm == "batch", keep=self.every_g)

    @override
    def measure_rows(self) -> None:
        self.hidden.measure_rows()

    @override
    def forward(self, signals: Signals) -> None:
        hidden = self.hidden
        with self._device():
            for layer, (x, h, above, *_) in enumerate(signals.layers):
                scales = hidden.inverse_norm[layer], hidden.scale[layer]
                norm = hidden.normalisation(signals, layer)
                self.kernels.forward(x, hidden.V[:, layer], *scales, h, above, norm)

    @override
    def backward(self, signals: Signals, gradient: Tensor) -> None:
        hidden, g, above = self.hidden, gradient, None
        with self._device():
            for layer in reversed(range(hidden.model.depth)):
                _, h, _, d, below, s = signals.layers[layer]
                norm = hidden.normalisation(signals, layer)
                self.kernels.backward(g, above, hidden.scale[layer], h, d, s, norm, keep=self.every_g)
                above, g = (d, hidden.V[:, layer]), below
            torch.bmm(signals.d[0], hidden.V[:, 0], out=g)
        signals.measure_bound()

    @override
    def preactivations(self, signals: Signals, k: int, layers: slice) -> Tensor:
        return rescaled(signals, k, layers)

    @override
    def update(self, signals: Signals) -> None:
        hidden = self.hidden
        if self._orthogonal is not None:
            self._orthogonal.update_chunks(signals)
            return
        with self._device():
            self.kernels.update(
                hidden.V, hidden.M, signals.d, signals.x[:-1], hidden.tangent(signals), hidden.step_size, hidden.alive,
                hidden.momentum,
            )  # fmt: skip

    @override
    def complete_held_steps(self) -> None:
        if self._orthogonal is not None:
            self._orthogonal.complete_held_steps()
