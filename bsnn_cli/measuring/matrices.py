"""Tensors of all layers, in memory or in a temporary file; and the matrices of a network at its start, drawn once.

Reading a matrix from a file takes a thirtieth of the time of drawing it or less. What the system keeps of a file in
memory it gives up when a program needs it.
"""

from __future__ import annotations

import math
import os
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
from bsnn_cli.settings.widths import matrix_shapes

KEPT_BYTES = 200 * 500 * 500 * 4
"""Tensors of all layers are kept in memory up to this size, the matrices of a network of the paper's."""

DRAWERS = 4
"""Threads, at most, that draw matrices ahead of use; each holds some three of them while it works."""


def fits_on_disk(size: int) -> bool:
    """Return whether a temporary file of so many bytes leaves as many free."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 2 * size


def stack(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Return an uninitialised tensor on the CPU; None where it fits neither into `KEPT_BYTES` nor on the disk.

    A large one is mapped to a temporary file, which is gone when the tensor is.

    Raises:
        OSError: the temporary file cannot be made.
    """
    values = math.prod(shape)
    size = values * dtype.itemsize
    if size <= KEPT_BYTES:
        return torch.empty(shape, dtype=dtype)
    if not fits_on_disk(size):
        return None
    with tempfile.NamedTemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # or a disk that fills up later would end the process by SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
        return torch.from_file(file.name, shared=True, size=values, dtype=dtype).view(shape)


def stacks(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor] | None:
    """Return a tensor of each shape, all of them in one `stack`; None where that is None."""
    sizes = [math.prod(shape) for shape in shapes]
    kept = stack((sum(sizes),), dtype)
    if kept is None:
        return None
    return [part.view(shape) for part, shape in zip(torch.split(kept, sizes), shapes, strict=True)]


class Matrices:
    """`parameters.hidden_start` of one network at a time, kept for the backward pass and for the next activation."""

    def __init__(self) -> None:
        self._network: tuple[object, ...] = ()
        self._kept: list[Tensor] | None = None

    def draw(self, model: ModelConfig, seed: int, order: Sequence[int], threads: int) -> Iterator[Tensor]:
        """Yield the starts of hidden matrices, (n_{l+1}, n_l) float32 on the CPU.

        Args:
            model: depth, widths and kind of start.
            seed: of the run.
            order: of layers, counted from 0.
            threads: of PyTorch, all of which may draw.
        """
        shapes = matrix_shapes(model)
        network = (model.init, shapes, seed)
        if network == self._network and self._kept is not None:
            for layer in order:
                yield self._kept[layer]
            return
        complete = list(order) == list(range(model.depth))
        if complete:
            self._network = ()  # until all are there
            self._kept = None  # before there is the next one
            try:
                self._kept = stacks(shapes, torch.float32)
            except OSError:  # the disk is full: they are drawn again instead
                self._kept = None
        for layer, weight in zip(order, ahead(model, seed, order, threads), strict=True):
            if complete and self._kept is not None:
                self._kept[layer].copy_(weight)
            yield weight
        if complete:
            self._network = network


def ahead(model: ModelConfig, seed: int, order: Sequence[int], threads: int) -> Iterator[Tensor]:
    """Yield `parameters.hidden_start` of layers in this order, drawing as many ahead of use as there are threads.

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
"""Shared by the forward pass, the backward pass and the activations of a sweep at one seed."""
