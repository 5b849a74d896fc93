"""The fast path on a GPU: a fleet whose whole step is one CUDA graph, from the gathering of the batch to the update.

One network's step is a chain of some thousand small kernels, and launching them one by one takes longer than running
them. So the first steps of each batch size are made one kernel at a time, which compiles and warms up what there is to
compile and warm up; then the step is captured once, and from there on replayed. The order of an epoch's samples lies
on the device, as does the place in it, which the graph itself moves on: a replay needs nothing from the host.

Where `kernels` covers a fleet, its step is made of those: 2·L + 1 of them and some dozens of small ones, but for the
update of orthogonal matrices. Otherwise the products are those of PyTorch's library, and what lies between is `fused`.

The host runs ahead of the device by a few steps. It reads flags that old, so that it never waits for the newest.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks import fused
from bsnn_cli.networks.batch_norm import Normalised
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import covered
from bsnn_cli.networks.parameters import NORM_WEIGHTS
from bsnn_cli.networks.signals import Signals

if TYPE_CHECKING:
    from bsnn_cli.networks.kernels import Kernels

WARM_UP = 3
"""Steps of a batch size before it is captured."""

STEPS_AHEAD = 8
"""How far the host may be ahead of the device: far enough to hide its pauses, and soon over when the run is stopped."""

MATRICES = 100
"""Weight gradients in one product, where the update is not one of `kernels`. The more, the better they fill the
multiprocessors: of 24 networks those of a step took 10.0 ms on an H200, 24 at a time, and 7.7 ms, 96 at a time."""


class Lookback:
    """A small tensor of the device as it was some steps ago, read without waiting for the newest step.

    Args:
        like: of the shape and type that is read.
        steps: how many steps ago.
        mark: an event that the device comes to when it has done what it was told so far, as
            `torch.cuda.Stream.record_event` makes it; None where the device is the host.
    """

    def __init__(self, like: Tensor, steps: int, mark: Callable[[], Any] | None) -> None:
        pinned = mark is not None
        self._slots = [torch.empty_like(like, device="cpu", pin_memory=pinned) for _ in range(steps)]
        self._mark = mark
        self._events: list[Any] = [None] * steps
        self._count = 0

    def push(self, value: Tensor) -> Tensor | None:
        """Send off the value after a step; returns that of `steps` steps ago, or None in the first ones."""
        slot = self._count % len(self._slots)
        old = None
        if self._count >= len(self._slots):
            if self._mark is not None:
                self._events[slot].synchronize()
            old = self._slots[slot].clone()
        self._slots[slot].copy_(value, non_blocking=True)
        if self._mark is not None:
            self._events[slot] = self._mark()
        self._count += 1
        return old


def _mark(device: torch.device) -> torch.cuda.Event:
    """An event in the stream of a device, which need not be the current one."""
    event: torch.cuda.Event = torch.cuda.current_stream(device).record_event()
    return event


class CapturedFleet(Fleet):
    """A fleet for a GPU; arguments, attributes and methods as those of `Fleet`, and the same numbers.

    On a CPU it makes every step one operation at a time, which is what tests of it do.
    """

    _kernels: Kernels | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        on_gpu = self.device.type == "cuda"
        plain = fused.functions(self._groups, unit_rows=self.model.weights == "unit_rows")
        self._fused = fused.compiled(plain) if on_gpu else plain
        depth = self.model.depth
        self._chunks = [slice(first, min(first + MATRICES, depth)) for first in range(0, depth, MATRICES)]
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._data: Dataset | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._warm: dict[int, int] = {}
        self._capturable = on_gpu
        # Not a method of this fleet, which would be a cycle, and keep the memory of one that has not fitted.
        mark = functools.partial(_mark, self.device) if on_gpu else None
        self._lookback = Lookback(self.alive, STEPS_AHEAD, mark)
        self._old_alive: Tensor | None = None
        self._kernels = self._own_kernels() if on_gpu else None
        self.arithmetic = "PyTorch" if self._kernels is None else "Triton"

    def _own_kernels(self) -> Kernels | None:
        """Those of `kernels`, where Triton is installed and they cover this fleet."""
        try:
            from bsnn_cli.networks import kernels
        except ImportError:
            return None
        tensor_cores = torch.cuda.get_device_capability(self.device) >= (8, 0)
        if self.dtype != torch.float32 or not tensor_cores or not covered(self.members):
            return None
        exact = torch.get_float32_matmul_precision() == "highest"
        unit_rows = self.model.weights == "unit_rows"
        return kernels.Kernels(self.members, unit_rows=unit_rows, exact=exact, like=self._norm)

    def _signals_of(self, batch: int) -> tuple[Signals, list[Signals]]:
        if self._kernels is not None and batch not in self._signals:
            try:
                self._kernels.rehearse(batch, norm=self.model.norm == "batch", keep=self._drift is not None)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 a compiler may fail in any way
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"products and what follows them are apart, which is slower: {reason}", stacklevel=2)
                self._kernels, self.arithmetic = None, "PyTorch"
                self._measure_rows()
                self._graphs.clear()  # of steps by the kernels
                self._warm.clear()
        return super()._signals_of(batch)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """As `Fleet.step`."""
        # Triton starts its kernels on the current device, whichever their tensors are on.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            return super().step(inputs, labels)

    def _measure_rows(self) -> None:
        """The lengths of the rows of V, which own kernels measure on the way up only."""
        if self.model.weights == "unit_rows":
            for hidden, norm in zip(self._hidden, self._norm, strict=True):
                torch.linalg.vector_norm(hidden.V, dim=-1, out=norm)
            super()._rescale()

    def _rescale(self) -> None:
        if self._kernels is None:
            super()._rescale()

    def logits(self, inputs: Tensor) -> Tensor:
        """As `Fleet.logits`."""
        if self._kernels is not None:
            self._measure_rows()
        return super().logits(inputs)

    def orthogonality_error(self) -> Tensor:
        """As `Fleet.orthogonality_error`."""
        if self._kernels is not None:
            self._measure_rows()
        return super().orthogonality_error()

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """As `Fleet.updates`."""
        if not batches:
            return
        self._hold(data)
        self._order[:, : sum(batch.shape[1] for batch in batches)] = torch.cat(tuple(batches), 1)
        self._begin.zero_()
        self._old_alive = None
        for batch in batches:
            size = batch.shape[1]
            if self._graphs.get(size) is not None:
                self._graphs[size].replay()
            else:
                self._first_steps(size)
            if self._drift is not None:
                self._settle()
            self._old_alive = self._lookback.push(self.alive)
            w, _ = self._signals[size]
            yield w.loss
        self._old_alive = None

    def anyone_alive(self) -> bool:
        """As `Fleet.anyone_alive`; within an epoch some steps late, when nothing changes any more."""
        return bool((self.alive if self._old_alive is None else self._old_alive).any())

    def _hold(self, data: Dataset) -> None:
        """Make a dataset the one that steps gather from."""
        if data is self._data:
            return
        self._data = data
        self._graphs.clear()
        self._order = torch.zeros(len(self.members), len(data.train.labels), dtype=torch.int64, device=self.device)
        self._begin = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._ahead = torch.arange(len(data.train.labels), device=self.device)

    def _next_step(self, size: int) -> None:
        """Gather the next samples of the order, and make a step."""
        assert self._data is not None
        indices = self._order.index_select(1, self._begin + self._ahead[:size])
        self.step(*self._data.batch(indices, self.dtype))
        self._begin += size

    def _first_steps(self, size: int) -> None:
        """A step before there is a graph of it: one by one, and after a few of them by capture and replay."""
        warm = self._warm.get(size, 0)
        self._warm[size] = warm + 1
        if self._capturable and warm >= WARM_UP:
            self._capture(size)
        if size in self._graphs:
            self._graphs[size].replay()
        elif self._stream is None:
            self._next_step(size)
        else:  # on the stream that captures, where libraries then have what they need
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                self._next_step(size)
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _capture(self, size: int) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._next_step(size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capturable = False
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"steps are launched kernel by kernel, which is slower: no CUDA graph ({reason})", stacklevel=2
            )
        else:
            self._graphs[size] = graph

    def _rise(self, w: Signals) -> None:
        if self._kernels is None:
            super()._rise(w)
            return
        for layer, (hidden, signals) in enumerate(zip(self._hidden, w.layers, strict=True)):
            scales, norm = (hidden.inverse_norm, hidden.scale), self._normalised(w, layer)
            self._kernels.lift(signals.x, hidden.V, *scales, signals.h, signals.above, norm)

    def _fall(self, w: Signals, g: Tensor) -> None:
        if self._kernels is None:
            super()._fall(w, g)
            return
        above, keep = None, self._drift is not None
        for layer in reversed(range(self.model.depth)):
            hidden, signals, norm = self._hidden[layer], w.layers[layer], self._normalised(w, layer)
            self._kernels.lower(g, above, hidden.scale, signals.h, signals.d, signals.s, norm, keep=keep)
            above, g = (signals.d, hidden.V), signals.below
        torch.bmm(w.d[0], self._hidden[0].V, out=g)

    def _normalised(self, w: Signals, layer: int) -> Normalised | None:
        """Batch normalisation of a layer; what is to become γĥ + β lies in d until d itself is known."""
        if w.norm is None:
            return None
        gain, shift = (self.tensors[name][:, layer] for name in NORM_WEIGHTS)
        return Normalised(gain, shift, w.norm.layers[layer], w.layers[layer].d)

    def _lift(self, w: Signals, layer: int) -> None:
        hidden, signals, norm = self._hidden[layer], w.layers[layer], self._normalised(w, layer)
        if norm is None:
            self._fused.lift(signals.h, hidden.inverse_norm, signals.above)
        else:
            self._fused.lift_normalised(signals.h, hidden.inverse_norm, *norm, signals.above)

    def _lower(self, w: Signals, layer: int, g: Tensor) -> None:
        hidden, signals, norm = self._hidden[layer], w.layers[layer], self._normalised(w, layer)
        if norm is None:
            self._fused.lower(g, signals.h, hidden.scale, signals.d, signals.s)
        else:
            self._fused.lower_normalised(g, signals.h, norm.gain, hidden.scale, norm.batch, norm.y)

    def _update_matrices(self, w: Signals, tangent: Tensor) -> None:
        if self._kernels is None or self._drift is not None:
            self._update_chunks(w, tangent)
            return
        V, M = self.tensors["hidden.weight"], self.tensors["momentum.hidden.weight"]
        self._kernels.move(V, M, w.d, w.x[:-1], tangent, self._step_size, self.alive, self.momentum)

    def _update_chunks(self, w: Signals, tangent: Tensor) -> None:
        """A chunk of one member's matrices after the other: their gradients in one product, then their update."""
        weight, momentum = self.tensors["hidden.weight"], self.tensors["momentum.hidden.weight"]
        for k, layers in itertools.product(range(len(self.members)), self._chunks):
            V, M, d, x = weight[k, layers], momentum[k, layers], w.d[layers, k], w.x[layers, k]
            step_size, alive = self._step_size[k], self.alive[k]
            if self._drift is None:
                M.baddbmm_(d.mT, x, beta=self.momentum)
                self._fused.move(V, M, tangent[layers, k], step_size, alive, self._norm[layers, k])
                continue
            h = w.h[layers, k]
            if w.norm is not None:
                h = h / w.norm.all.inverse_std[layers, k].unsqueeze(1)
            M.baddbmm_(d.mT, x, beta=self.momentum, alpha=0.5).baddbmm_(h.mT, w.g[layers, k], alpha=-0.5)
            held = self._drift.advance(k, layers, self._fused.longest_column(M), -step_size, alive)
            free = (alive & ~held).view(-1, 1, 1)
            self._fused.move(V, M, tangent[layers, k], step_size, free, self._norm[layers, k])

    def _settle(self) -> None:
        """Complete the step of orthogonal matrices that the graph has held back. The host waits for the device here."""
        assert self._drift is not None
        weight, momentum = self.tensors["hidden.weight"], self.tensors["momentum.hidden.weight"]
        for k, layer in torch.nonzero(self._drift.held).tolist():
            self._drift.complete(k, layer, weight[k, layer], momentum[k, layer], self.members[k].lr)
