"""Triton kernels as the engine of a fleet on a GPU: 2·L + 1 kernels a step, and some dozens of small ones."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from bsnn_cli.networks import kernels
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.torch_engine import TorchEngine


class TritonEngine:
    """An engine of the kernels in `kernels`; see `engine.Engine` for its methods.

    Orthogonal matrices are updated by PyTorch's operations. The rows of V are measured by the forward pass.

    Args:
        hidden: the layers to compute, in float32, of activations with a `kernel`.
        exact: products with the error of float32, not of TF32; None: as `torch.set_float32_matmul_precision` says.
    """

    arithmetic = "Triton"

    def __init__(self, hidden: HiddenLayers, exact: bool | None = None) -> None:
        self.hidden = hidden
        self.threads = torch.get_num_threads()
        self.every_g = hidden.drift is not None
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

    def prepare(self, batch: int) -> None:
        """Compile all kernels. Whatever hinders it is raised, such as too little memory in a multiprocessor."""
        with self._device():
            self.kernels.compile(batch, norm=self.hidden.model.norm == "batch", keep=self.every_g)

    def measure_rows(self) -> None:
        """Measure the rows of V, which the kernels do in the forward pass only."""
        self.hidden.measure_rows()

    def forward(self, signals: Signals) -> None:
        """Fill `x` and `h` of all hidden layers upwards, from `x[0]`."""
        hidden = self.hidden
        with self._device():
            for layer, (x, h, above, *_) in enumerate(signals.layers):
                scales = hidden.inverse_norm[layer], hidden.scale[layer]
                norm = hidden.normalisation(signals, layer)
                self.kernels.forward(x, hidden.V[:, layer], *scales, h, above, norm)

    def backward(self, signals: Signals, gradient: Tensor) -> None:
        """Fill `d`, `g`, `s` and `bound` downwards, from ∂E/∂x of the top, (K, B, n)."""
        hidden, g, above = self.hidden, gradient, None
        with self._device():
            for layer in reversed(range(hidden.model.depth)):
                _, h, _, d, below, s = signals.layers[layer]
                norm = hidden.normalisation(signals, layer)
                self.kernels.backward(g, above, hidden.scale[layer], h, d, s, norm, keep=self.every_g)
                above, g = (d, hidden.V[:, layer]), below
            torch.bmm(signals.d[0], hidden.V[:, 0], out=g)
        signals.measure_bound()

    def update(self, signals: Signals) -> None:
        """M ← μM + ∂E/∂V and V ← V − lr·M of the living members."""
        hidden = self.hidden
        if self._orthogonal is not None:
            self._orthogonal.update_chunks(signals)
            return
        with self._device():
            self.kernels.update(
                hidden.V, hidden.M, signals.d, signals.x[:-1], hidden.tangent(signals), hidden.step_size, hidden.alive,
                hidden.momentum,
            )  # fmt: skip

    def complete_held_steps(self) -> None:
        """Make the steps of orthogonal matrices that `update` has held back."""
        if self._orthogonal is not None:
            self._orthogonal.complete_held_steps()
