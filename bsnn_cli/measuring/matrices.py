"""The hidden matrices of a network at its start, one at a time, in any order, and each drawn only once if possible."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bsnn_cli.networks import parameters
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ModelConfig

KEPT_BYTES = 200 * 500 * 500 * 4
"""Matrices of a network are kept in memory up to this size, and in a temporary file beyond."""

DRAWERS = 4
"""Threads, at most, that draw matrices ahead of use; each holds some three of them while it works."""


class Spool:
    """(L, n, n) float32 in a temporary file that nobody else sees and that is gone when this is.

    Reading a matrix takes a hundredth of the time of drawing it, and what the system keeps of a file in memory it gives
    up when a program needs it.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when nobody has the matrices any more)
        self._shape = shape[1:]
        self._bytes = 4 * shape[1] * shape[2]

    def __del__(self) -> None:
        self._file.close()

    def __setitem__(self, layer: int, weight: Tensor) -> None:
        self._file.seek(layer * self._bytes)
        self._file.write(weight.contiguous().numpy().data)

    def __getitem__(self, layer: int) -> Tensor:
        weight = torch.empty(self._shape)
        self._file.seek(layer * self._bytes)
        self._file.readinto(weight.numpy().data)
        return weight


class Matrices:
    """`parameters.hidden_start` of one network at a time, kept for the way back and for the next activation."""

    def __init__(self) -> None:
        self._owner: tuple[object, ...] = ()
        self._kept: Tensor | Spool | None = None

    def each(self, model: ModelConfig, seed: int, order: Sequence[int], threads: int) -> Iterator[Tensor]:
        """The starts of hidden matrices, (n, n) float32 on the CPU.

        Args:
            model: depth, width and kind of start.
            seed: of the run.
            order: of layers, counted from 0.
            threads: of PyTorch, all of which may draw.
        """
        owner = (model.init, model.depth, model.width, seed)
        if owner == self._owner and self._kept is not None:
            for layer in order:
                yield self._kept[layer]
            return
        keep = list(order) == list(range(model.depth))
        if keep:
            self._owner = ()  # until all are there
            self._make_room((model.depth, model.width, model.width))
        for layer, weight in zip(order, ahead(model, seed, order, threads), strict=True):
            if keep and self._kept is not None:
                try:
                    self._kept[layer] = weight
                except OSError:  # the disk has filled up: they are drawn again instead
                    self._kept = None
            yield weight
        if keep:
            self._owner = owner

    def _make_room(self, shape: tuple[int, int, int]) -> None:
        L, n, _ = shape
        size = 4 * L * n * n
        if size <= KEPT_BYTES:
            if not isinstance(self._kept, Tensor) or self._kept.shape != shape:
                self._kept = None  # before the next one is made
                self._kept = torch.empty(shape)
            return
        self._kept = None
        if shutil.disk_usage(tempfile.gettempdir()).free > 2 * size:
            self._kept = Spool(shape)


def ahead(model: ModelConfig, seed: int, order: Sequence[int], threads: int) -> Iterator[Tensor]:
    """`parameters.hidden_start` of layers in this order; as many as there are threads are drawn ahead of use.

    They are drawn side by side, with a thread each: see `intra_op_threads`.
    """
    drawers = min(threads, DRAWERS)
    waiting: deque[Future[Tensor]] = deque()
    with intra_op_threads(1), ThreadPoolExecutor(drawers) as pool:
        for layer in order:
            waiting.append(pool.submit(parameters.hidden_start, model, seed, layer))
            if len(waiting) > drawers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


drawn = Matrices()
"""Shared by the way forward, the way back and the activations of a sweep at one seed."""
