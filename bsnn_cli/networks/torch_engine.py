"""PyTorch's operations as the engine of a fleet: batched products, and elementwise functions between them.

On a GPU these functions are compiled, each into few kernels, as memory and the number of kernels are the limit there.
They read their arguments once and do all groups of members in one. Nothing on the host depends on a value of the
device, so that a step can be captured as a CUDA graph: dead members are left out by `where`, since 0 · NaN is NaN.

On a CPU the operations run one after the other. There batch normalisation is PyTorch's own kernel, an activation whose
derivative follows from its value is not computed twice, and the host knows which members are alive.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bsnn_cli.networks import batch_norm
from bsnn_cli.networks.batch_norm import Statistics
from bsnn_cli.networks.engine import Engine
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.members import Group
from bsnn_cli.networks.orthogonal import longest_column
from bsnn_cli.networks.signals import Signals

MATRICES = 100
"""Weight gradients in one product on a GPU. The more, the better they fill the multiprocessors: of 24 networks those of
a step took 10.0 ms on an H200, 24 at a time, and 7.7 ms, 96 at a time."""


@dataclass(frozen=True)
class Functions:
    """The operations between the products of one layer, all of them in place; shapes as in `Signals`.

    Attributes:
        forward: (h, inverse_norm, above) → values: the product xVᵀ in h becomes h, and `above` a·φ(h) + b.
        backward: (g, h, values, scale, d, s): from ∂E/∂x above to d, and s for unit rows.
        forward_normalised: (h, inverse_norm, gain, shift, statistics, y, above) → values: by way of y = γĥ + β.
        backward_normalised: (g, h, values, gain, scale, statistics, d): d holds γĥ + β before.
        update: (V, M, tangent, step_size, alive, norm): V and M (c, n, n) of one member, M with the gradient in it;
            step_size without dimensions, alive such as fits M, tangent (c, n, 1) and norm (c, n) for unit rows.
        longest_column: (M): as `orthogonal.longest_column`.
    """

    forward: Callable[..., list[Tensor | None]]
    backward: Callable[..., None]
    forward_normalised: Callable[..., list[Tensor | None]]
    backward_normalised: Callable[..., None]
    update: Callable[..., None]
    longest_column: Callable[[Tensor], Tensor]


def functions(groups: Sequence[Group], *, unit_rows: bool, on_gpu: bool) -> Functions:
    """Return the functions for members in these groups; `values` are φ(h) of each group where `backward` needs it."""
    normalise = batch_norm.normalise if on_gpu else batch_norm.normalise_natively
    denormalise = batch_norm.denormalise if on_gpu else batch_norm.denormalise_natively

    def activate(h: Tensor, above: Tensor) -> list[Tensor | None]:
        values = []
        for activation, a, b, members in groups:
            value = activation.phi(h[members])
            above[members].copy_(torch.add(b, value, alpha=a))
            values.append(None if on_gpu or activation.pull_back_by_value is None else value)
        return values

    def pull_back(g: Tensor, h: Tensor, values: Sequence[Tensor | None]) -> Tensor:
        u = torch.empty_like(g)
        for (activation, _, _, members), value in zip(groups, values, strict=True):
            if value is not None and activation.pull_back_by_value is not None:
                u[members].copy_(activation.pull_back_by_value(g[members], value))
            else:
                u[members].copy_(activation.pull_back(g[members], h[members]))
        return u

    def forward(h: Tensor, inverse_norm: Tensor, above: Tensor) -> list[Tensor | None]:
        if unit_rows:
            h.mul_(inverse_norm)
        return activate(h, above)

    def backward(g: Tensor, h: Tensor, values: Sequence[Tensor | None], scale: Tensor, d: Tensor, s: Tensor) -> None:
        u = pull_back(g, h, values)
        if unit_rows:
            s.copy_((u * h).sum(1))
        d.copy_(u * scale)

    def forward_normalised(
        h: Tensor, inverse_norm: Tensor, gain: Tensor, shift: Tensor, statistics: Statistics, y: Tensor, above: Tensor
    ) -> list[Tensor | None]:
        if unit_rows:
            h.mul_(inverse_norm)
        normalise(h, gain, shift, statistics, out=y)
        return activate(y, above)

    def backward_normalised(
        g: Tensor, h: Tensor, values: Sequence[Tensor | None], gain: Tensor, scale: Tensor, statistics: Statistics,
        d: Tensor,
    ) -> None:  # fmt: skip
        denormalise(pull_back(g, d, values), h, gain, scale, statistics, out=d)

    def update(V: Tensor, M: Tensor, tangent: Tensor, step_size: Tensor, alive: Tensor, norm: Tensor) -> None:
        if unit_rows:
            M.sub_(tangent * V)
        V.add_(torch.where(alive, step_size * M, 0))
        if unit_rows:
            norm.copy_(torch.linalg.vector_norm(V, dim=-1))

    return Functions(forward, backward, forward_normalised, backward_normalised, update, longest_column)


def compiled(plain: Functions, **options: Any) -> Functions:
    """Compile functions, each when it is first called with arguments of a shape.

    What has been compiled for an earlier fleet is forgotten: torch keeps a few versions of a function only.

    Args:
        plain: from `functions`.
        options: of `torch.compile`.
    """
    torch.compiler.reset()
    return Functions(*(_compiled(getattr(plain, name), options) for name in Functions.__dataclass_fields__))


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    fast = torch.compile(function, fullgraph=True, dynamic=False, **options)
    usable = True

    def call(*arguments: Any) -> Any:
        nonlocal usable
        if usable:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="TensorFloat32")  # fp32 is what was asked for
                    return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:  # from compiling: nothing has been computed yet
                usable = False
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"{function.__name__} is not compiled and is slower: {reason}", stacklevel=2)
        return function(*arguments)

    return call


def rescaled(signals: Signals, k: int, layers: slice) -> Tensor:
    """Return Wx of some layers of a member, (c, B, n), less its mean where batch normalisation has put ĥ there."""
    h = signals.h[layers, k]
    return h if signals.norm is None else h / signals.norm.all.inverse_std[layers, k].unsqueeze(1)


class TorchEngine(Engine):
    """An engine of PyTorch's operations.

    Args:
        hidden: the layers to compute.
        on_gpu: use the functions of a GPU; None: where the layers are on one. Tests use them on a CPU.
        compile_options: of `torch.compile`; None: compiled by default on a GPU only.
    """

    arithmetic = "PyTorch"

    def __init__(
        self, hidden: HiddenLayers, *, on_gpu: bool | None = None, compile_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(hidden)
        self.on_gpu = hidden.device.type == "cuda" if on_gpu is None else on_gpu
        self.asks_device = not self.on_gpu
        self._functions = functions(hidden.groups, unit_rows=hidden.unit_rows, on_gpu=self.on_gpu)
        if hidden.device.type == "cuda" or compile_options is not None:
            self._functions = compiled(self._functions, **(compile_options or {}))
        self._values: list[list[Tensor | None]] = []
        hidden.measure_rows()

    @override
    def forward(self, signals: Signals) -> None:
        hidden = self.hidden
        self._values.clear()
        for layer, (x, h, above, *_) in enumerate(signals.layers):
            torch.bmm(x, hidden.V[:, layer].mT, out=h)
            norm = hidden.normalisation(signals, layer)
            if norm is None:
                values = self._functions.forward(h, hidden.inverse_norm[layer], above)
            else:
                values = self._functions.forward_normalised(h, hidden.inverse_norm[layer], *norm, above)
            self._values.append(values)

    @override
    def backward(self, signals: Signals, gradient: Tensor) -> None:
        hidden, g = self.hidden, gradient
        for layer in reversed(range(hidden.model.depth)):
            _, h, _, d, below, s = signals.layers[layer]
            values, norm, scale = self._values.pop(), hidden.normalisation(signals, layer), hidden.scale[layer]
            if norm is None:
                self._functions.backward(g, h, values, scale, d, s)
            else:
                self._functions.backward_normalised(g, h, values, norm.gain, scale, norm.batch, d)
            g = torch.bmm(d, hidden.V[:, layer], out=below)
        signals.measure_bound()

    @override
    def take_over(self) -> None:
        self.hidden.measure_rows()

    @override
    def preactivations(self, signals: Signals, k: int, layers: slice) -> Tensor:
        return rescaled(signals, k, layers) if self.on_gpu else super().preactivations(signals, k, layers)

    @override
    def update(self, signals: Signals) -> None:
        if self.on_gpu:
            self.update_chunks(signals)
        else:
            self._update_matrices(signals)
        self.hidden.rescale()

    def _update_matrices(self, signals: Signals) -> None:
        """Update one matrix after the other."""
        hidden, tangent = self.hidden, self.hidden.tangent(signals)
        living = [k for k, alive in enumerate(hidden.alive.tolist()) if alive]
        for k, layer in itertools.product(living, range(hidden.model.depth)):
            V, M, lr = hidden.V[k, layer], hidden.M[k, layer], hidden.lr(k)
            d, x = signals.d[layer, k], signals.x[layer, k]
            if hidden.drift is not None:
                M.addmm_(d.mT, x, beta=hidden.momentum, alpha=0.5)
                M.addmm_(signals.h[layer, k].mT, signals.g[layer, k], alpha=-0.5)
                hidden.drift.step(k, slice(layer, layer + 1), V[None], M[None], longest_column(M[None]), lr)
                continue
            M.addmm_(d.mT, x, beta=hidden.momentum)
            if hidden.unit_rows:
                M.addcmul_(V, tangent[layer, k], value=-1)
            V.add_(M, alpha=-lr)
            if hidden.unit_rows:
                torch.linalg.vector_norm(V, dim=-1, out=hidden.norm[layer, k])

    def update_chunks(self, signals: Signals) -> None:
        """Update the matrices of one member after the other, many in one product. The host asks the device nothing.

        A step of an orthogonal matrix that may lead too far is held back; `complete_held_steps` makes it.
        """
        hidden, tangent = self.hidden, self.hidden.tangent(signals)
        depth = hidden.model.depth
        chunks = [slice(first, min(first + MATRICES, depth)) for first in range(0, depth, MATRICES)]
        for k, layers in itertools.product(range(len(hidden.members)), chunks):
            V, M, d, x = hidden.V[k, layers], hidden.M[k, layers], signals.d[layers, k], signals.x[layers, k]
            step_size, alive = hidden.step_size[k], hidden.alive[k]
            if hidden.drift is None:
                M.baddbmm_(d.mT, x, beta=hidden.momentum)
            else:
                h = rescaled(signals, k, layers)
                M.baddbmm_(d.mT, x, beta=hidden.momentum, alpha=0.5).baddbmm_(h.mT, signals.g[layers, k], alpha=-0.5)
                held = hidden.drift.advance(k, layers, self._functions.longest_column(M), -step_size, alive)
                alive = (alive & ~held).view(-1, 1, 1)
            self._functions.update(V, M, tangent[layers, k], step_size, alive, hidden.norm[layers, k])

    @override
    def complete_held_steps(self) -> None:
        hidden = self.hidden
        if hidden.drift is None or not self.on_gpu:  # on a CPU nothing is held back
            return
        for k, layer in torch.nonzero(hidden.drift.held).tolist():
            hidden.drift.complete(k, layer, hidden.V[k, layer], hidden.M[k, layer], hidden.lr(k))
