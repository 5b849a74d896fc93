"""CUDA graphs: the steps of a fleet on a GPU, captured once and replayed.

One network's step is a chain of some thousand small kernels, and launching them one by one takes longer than running
them. So the first steps of each batch size are launched one kernel at a time, while kernels are compiled and libraries
warm up. Then the step is captured once, and from there on replayed. The order of an epoch's samples is on the device,
as is the position in it, which the graph itself advances: a replay needs nothing from the host.

The host runs ahead of the device by a few steps. It reads flags that old, so that it never waits for the newest.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset

WARM_UP = 3
"""Steps of a batch size before it is captured."""

STEPS_AHEAD = 8
"""How far the host may be ahead of the device: far enough to hide its pauses, and soon over when the run is stopped."""

Step = Callable[[Tensor, Tensor], Tensor]
"""Makes a step with inputs (K, B, inputs) and labels (K, B), and returns the losses (K,)."""


class DelayedRead:
    """Reads a small tensor of the device as it was some steps ago, without waiting for the newest step.

    Args:
        like: of the shape and type that is read.
        steps: how many steps ago.
        record_event: records an event that the device reaches when it has done all work so far, as
            `torch.cuda.Stream.record_event` does; None where the device is the host.
    """

    def __init__(self, like: Tensor, steps: int, record_event: Callable[[], Any] | None) -> None:
        pinned = record_event is not None
        self._slots = [torch.empty_like(like, device="cpu", pin_memory=pinned) for _ in range(steps)]
        self._record_event = record_event
        self._events: list[Any] = [None] * steps
        self._count = 0

    def push(self, value: Tensor) -> Tensor | None:
        """Copy the value after a step; return that of `steps` steps ago, or None in the first ones."""
        slot = self._count % len(self._slots)
        old = None
        if self._count >= len(self._slots):
            if self._record_event is not None:
                self._events[slot].synchronize()
            old = self._slots[slot].clone()
        self._slots[slot].copy_(value, non_blocking=True)
        if self._record_event is not None:
            self._events[slot] = self._record_event()
        self._count += 1
        return old


def delayed_read(like: Tensor) -> DelayedRead:
    """Return a reader of a tensor as it was `STEPS_AHEAD` steps ago."""
    on_gpu = like.device.type == "cuda"
    return DelayedRead(like, STEPS_AHEAD, functools.partial(_record_event, like.device) if on_gpu else None)


def _record_event(device: torch.device) -> torch.cuda.Event:
    """Record an event in the current stream of a device, which need not be the current one."""
    event: torch.cuda.Event = torch.cuda.current_stream(device).record_event()
    return event


class CapturedSteps:
    """The CUDA graphs of one fleet, one for each batch size. On a CPU every step is made one operation at a time.

    It does not hold the fleet, which would be a cycle, and keep the memory of one that has not fitted.

    Args:
        members: K.
        device: of the fleet.
        dtype: of its inputs.
    """

    def __init__(self, members: int, device: torch.device, dtype: torch.dtype) -> None:
        self._members, self._device, self._dtype = members, device, dtype
        self._capturable = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._capturable else None  # type: ignore[no-untyped-call]
        self._data: Dataset | None = None
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._warm: dict[int, int] = {}

    def clear(self) -> None:
        """Forget all graphs: the step has become another one."""
        self.graphs.clear()
        self._warm.clear()

    def losses(self, step: Step, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make a step for each batch.

        Args:
            step: what is captured; always the same.
            data: on the device.
            batches: indices (K, B) of each.

        Yields:
            the losses (K,) of each step, to be used before the next.
        """
        if not batches:
            return
        self._hold(data)
        self._order[:, : sum(batch.shape[1] for batch in batches)] = torch.cat(tuple(batches), 1)
        self._begin.zero_()
        for batch in batches:
            yield self._step(step, batch.shape[1])

    def _hold(self, data: Dataset) -> None:
        """Make a dataset the one that steps gather from."""
        if data is self._data:
            return
        self._data = data
        self.graphs.clear()
        samples = len(data.train.labels)
        self._order = torch.zeros(self._members, samples, dtype=torch.int64, device=self._device)
        self._begin = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._ahead = torch.arange(samples, device=self._device)

    def _step(self, step: Step, size: int) -> Tensor:
        """Replay the graph of a batch size. Before there is one, launch each kernel, and capture after a few steps."""
        if size not in self.graphs:
            warm = self._warm.get(size, 0)
            self._warm[size] = warm + 1
            if self._capturable and warm >= WARM_UP:
                self._capture(step, size)
        if size in self.graphs:
            graph, loss = self.graphs[size]
            graph.replay()
            return loss
        if self._stream is None:
            return self._next_step(step, size)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):  # the one that captures, where libraries then have what they need
            loss = self._next_step(step, size)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return loss

    def _next_step(self, step: Step, size: int) -> Tensor:
        """Gather the next samples of the order, and make a step."""
        assert self._data is not None
        indices = self._order.index_select(1, self._begin + self._ahead[:size])
        loss = step(*self._data.batch(indices, self._dtype))
        self._begin += size
        return loss

    def _capture(self, step: Step, size: int) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                loss = self._next_step(step, size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capturable = False
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"steps are launched kernel by kernel, which is slower: no CUDA graph ({reason})", stacklevel=2
            )
        else:
            self.graphs[size] = graph, loss
