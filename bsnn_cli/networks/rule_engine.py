"""Any optimiser for the hidden layers of a fleet: an engine computes the signals, PyTorch's operations the update.

The gradient of every matrix is computed by itself, and handed to the optimiser's rule: of unit rows that of V, which is
tangent to the sphere of each row; of orthogonal matrices its projection to their tangent space. What the rule makes of
that need not be tangent, so an orthogonal matrix is retracted after every step. To first order in the learning rate,
this is the step along the part of it that is tangent.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from typing_extensions import override

from bsnn_cli.networks.engine import Engine
from bsnn_cli.networks.optimiser import Step
from bsnn_cli.networks.signals import Signals

VALUES, VALUES_ON_GPU = 250_000, 5_000_000
"""Values of the matrices of one network that are updated at a time: few enough for a core's cache to hold them from one
operation to the next, and on a GPU enough for launches not to be the limit."""


class RuleEngine(Engine):
    """An engine whose update is that of the fleet's optimiser.

    Args:
        inner: computes everything but the update.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.hidden)
        self.inner, self.arithmetic = inner, inner.arithmetic
        self.workers, self.threads, self.asks_device = inner.workers, inner.threads, inner.asks_device
        depth, matrix = self.hidden.model.depth, self.hidden.model.width**2
        count = max((VALUES if self.asks_device else VALUES_ON_GPU) // matrix, 1)
        self._chunks = [slice(first, min(first + count, depth)) for first in range(0, depth, count)]

    @property
    @override
    def description(self) -> str:
        return f"{self.inner.description}, {self.hidden.optimiser.label}"

    @property
    @override
    def every_g(self) -> bool:
        return self.inner.every_g

    @override
    def prepare(self, batch: int) -> None:
        self.inner.prepare(batch)

    @override
    def measure_rows(self) -> None:
        self.inner.measure_rows()

    @override
    def take_over(self) -> None:
        self.inner.take_over()

    @override
    def allocate(self, layers: int, K: int, B: int, n: int) -> Tensor:
        return self.inner.allocate(layers, K, B, n)

    @override
    def preactivations(self, signals: Signals, k: int, layers: slice) -> Tensor:
        return self.inner.preactivations(signals, k, layers)

    @override
    def evaluate(self, x: Tensor) -> Tensor:
        return self.inner.evaluate(x)

    @override
    def forward(self, signals: Signals) -> None:
        self.inner.forward(signals)

    @override
    def backward(self, signals: Signals, gradient: Tensor) -> None:
        self.inner.backward(signals, gradient)

    @override
    def update(self, signals: Signals) -> None:
        hidden = self.hidden
        members = range(len(hidden.members))
        if self.asks_device:
            members = [k for k in members if hidden.alive[k]]  # type: ignore[assignment]
        tangent = hidden.tangent(signals) if hidden.unit_rows else None
        places = list(itertools.product(members, self._chunks))
        self.workers.run(lambda place: self._update(signals, place[0], place[1], tangent), places)
        self.take_over()

    def _update(self, signals: Signals, k: int, layers: slice, tangent: Tensor | None) -> None:
        hidden, alive = self.hidden, self.hidden.alive[k]
        V = hidden.V[k, layers]
        gradient = signals.d[layers, k].mT @ signals.x[layers, k]
        if tangent is not None:
            gradient.addcmul_(V, tangent[layers, k], value=-1)
        elif hidden.drift is not None:
            h = self.preactivations(signals, k, layers)
            gradient = torch.baddbmm(gradient, h.mT, signals.g[layers, k], beta=0.5, alpha=-0.5)
        if not self.asks_device:
            gradient.masked_fill_(~alive, 0)  # 0 · NaN is NaN
        step = Step(
            size=torch.where(alive, hidden.step_size[k], 0),
            weight_decay=None if hidden.decaying is None else hidden.decaying[k],
            number=hidden.tensors["steps"][k].clamp(min=1).double(),
        )
        buffers = [hidden.tensors[f"{name}.hidden.weight"][k, layers] for name in hidden.optimiser.buffers]
        hidden.optimiser.update(V, gradient, buffers, step)
        if self.asks_device:
            self._keep_orthogonal(k, layers)

    def _keep_orthogonal(self, k: int, layers: slice) -> None:
        if self.hidden.drift is not None:
            for layer, W in zip(range(layers.start, layers.stop), self.hidden.V[k, layers], strict=True):
                self.hidden.drift.keep(k, layer, W)

    @override
    def complete_held_steps(self) -> None:
        if self.hidden.drift is None or self.asks_device:  # without a captured step nothing is held back
            return
        for k, alive in enumerate(self.hidden.alive.tolist()):
            if alive:
                self._keep_orthogonal(k, slice(0, self.hidden.model.depth))


def with_rule(engine: Engine) -> Engine:
    """Return an engine that follows the optimiser of its fleet: this one, if it does so itself."""
    return engine if engine.hidden.optimiser.in_engines else RuleEngine(engine)
