"""The hidden matrices of a network at its start, one at a time, in any order, and each drawn only once if possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bsnn_cli.measuring.spool import Spool, stack
from bsnn_cli.networks import parameters
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ModelConfig

DRAWERS = 4
"""Threads, at most, that draw matrices ahead of use; each holds some three of them while it works."""


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
            self._kept = None  # before there is the next one
            self._kept = stack((model.depth, model.width, model.width), torch.float32)
        for layer, weight in zip(order, ahead(model, seed, order, threads), strict=True):
            if keep and self._kept is not None:
                try:
                    self._kept[layer] = weight
                except OSError:  # the disk has filled up: they are drawn again instead
                    self._kept = None
            yield weight
        if keep:
            self._owner = owner


def ahead(model: ModelConfig, seed: int, order: Sequence[int], threads: int) -> Iterator[Tensor]:
    """`parameters.hidden_start` of layers in this order; as many as there are threads are drawn ahead of use.

    They are drawn side by side, with a thread each: see `intra_op_threads`.
    """
    drawers = min(threads, DRAWERS)
    waiting: deque[Future[Tensor]] = deque()
    with intra_op_threads(1), ThreadPoolExecutor(drawers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for layer in order:
            waiting.append(pool.submit(parameters.hidden_start, model, seed, layer))
            if len(waiting) > drawers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


drawn = Matrices()
"""Shared by the way forward, the way back and the activations of a sweep at one seed."""
