"""The fast path on a CPU: a fleet whose signals and matrices pass through kernels of its own, those of `native`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bsnn_cli.networks import native
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import covered
from bsnn_cli.networks.native import Native
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers

LAYERS_AT_ONCE = 5
"""Of one network, updated by one core: enough to be worth the call, few enough for all cores to end together."""

SHARED_WEIGHTS = 1_000_000
"""From so many hidden weights of a fleet on, a step takes longer than handing parts of it to other cores."""


class CompiledFleet(Fleet):
    """A fleet for a CPU; arguments, attributes and methods as those of `Fleet`, and the same numbers but for rounding.

    These do not depend on the number of threads. Where there is no compiler, or no code for an activation, it is no
    other than a `Fleet`.
    """

    _native: Native | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        code = native.library(self.dtype) if self.device.type == "cpu" and covered(self.members) else None
        if code is None:
            return
        self.arithmetic = native.name(self.dtype)
        depth, V = self.model.depth, self.tensors["hidden.weight"]
        self._workers = Workers(torch.get_num_threads() if V.numel() >= SHARED_WEIGHTS else 1)
        self._threads = 1  # of torch's own, see `Fleet`
        self._chunks = [slice(first, min(first + LAYERS_AT_ONCE, depth)) for first in range(0, depth, LAYERS_AT_ONCE)]
        self._native = Native(
            code, self.members, self.tensors, self._norm, self._inverse_norm, self._scale,
            unit_rows=self.model.weights == "unit_rows", workers=self._workers,
        )  # fmt: skip
        if self.model.weights == "unit_rows":
            self._native.measure_rows()
            self._rescale()

    @property
    def _parts(self) -> int:
        return super()._parts if self._native is None else 1

    @property
    def _keeps_every_g(self) -> bool:
        """Also where cores share a network: one that has lost its place to another program may look at an old g."""
        return super()._keeps_every_g or (self._native is not None and self._native.alone < len(self.members))

    def _rise(self, w: Signals) -> None:
        if self._native is None:
            super()._rise(w)
        else:
            self._native.rise(w)

    def _fall(self, w: Signals, g: Tensor) -> None:
        if self._native is None:
            super()._fall(w, g)
        else:
            self._native.fall(w, g)

    def _bound(self, w: Signals, layers: slice = slice(None)) -> None:
        if self._native is None:
            super()._bound(w, layers)
            return
        measure = super()._bound
        self._workers.each(lambda some: measure(w, some), self._chunks)

    def _update_matrices(self, w: Signals, tangent: Tensor) -> None:
        if self._native is None:
            super()._update_matrices(w, tangent)
            return
        places = [(k, layers) for k, alive in enumerate(self.alive.tolist()) if alive for layers in self._chunks]
        if self._drift is None:
            move, tangent = self._native.move, tangent.contiguous()
            self._workers.each(lambda place: move(w, *place, tangent, self.momentum), places)
        else:
            self._workers.each(lambda place: self._turn(w, *place), places)

    def _turn(self, w: Signals, k: int, layers: slice) -> None:
        """Update some matrices of a member that are to stay orthogonal."""
        assert self._native is not None
        assert self._drift is not None
        lr = self.members[k].lr
        V, M = (self.tensors[name][k, layers] for name in ("hidden.weight", "momentum.hidden.weight"))
        held = self._drift.advance(k, layers, self._native.turn(w, k, layers, self.momentum), lr, self.alive[k])
        if not held.any():
            V.add_(M, alpha=-lr)
            return
        for layer, holding, one, its in zip(range(self.model.depth)[layers], held.tolist(), V, M, strict=True):
            if holding:
                self._drift.complete(k, layer, one, its, lr)
            else:
                one.add_(its, alpha=-lr)
