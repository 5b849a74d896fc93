"""Limits of the time of a training step, its arithmetic and its bytes; and its products by PyTorch's library.

The products are 3·L over distinct matrices: h = xVᵀ and dV in every layer, and dᵀx, which adds to the momentum; one
more where the weights are orthogonal. A step takes at least as long as their operations at the rate of the device, and
as its bytes at the speed of memory. The larger of the two is the limit. Neither depends on how a program is written:

- On a CPU, arithmetic is done in registers, on all threads. On a GPU, one large product by the library comes closest.
  In fp32 it is made three times in TF32, as our kernels make theirs of three products of parts (`networks.kernels`).
- The bytes are those of weights and momentum, which no cache holds. A step that can be left out when its gradient is
  not finite reads V three times, in the forward pass, in the backward pass and for the update; it writes V once, and M
  is read and written once.

The library's products are no limit: other ways to make them can be faster.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bsnn_cli.networks import native
from bsnn_cli.networks.huge_pages import in_huge_pages
from bsnn_cli.networks.workers import Workers
from bsnn_cli.settings.config import ModelConfig
from bsnn_cli.timing.stopwatch import Step, timed

PARALLEL_WIDTH = 200
"""From this width on, a product with one matrix takes a core long enough to be worth handing to it."""

SIDE = 4096
"""Rows and columns of the large product that stands for the arithmetic of a GPU."""


def are_known(device: torch.device) -> bool:
    """Return whether the limits of a device can be measured: those of a CPU need a C compiler."""
    return device.type == "cuda" or not isinstance(native.library(torch.float32), str)


def operations(networks: int, model: ModelConfig, batch_size: int) -> int:
    """Return the floating-point operations of the products of a step of all networks."""
    products = 4 if model.weights == "orthogonal" else 3
    return 2 * products * networks * model.depth * batch_size * model.width**2


def arithmetic(networks: int, model: ModelConfig, batch_size: int, device: torch.device) -> Step:
    """Return a step that makes as many operations as the products of a training step, as fast as the device can."""
    count = operations(networks, model, batch_size)
    if device.type == "cuda":
        return _large_product(count, device)
    code, workers = native.library(torch.float32), Workers(torch.get_num_threads())
    assert not isinstance(code, str)
    code.operations_of_round.restype = ctypes.c_int64
    rounds = -(-count // (code.operations_of_round() * workers.count))
    values = [torch.ones(code.operations_of_round()) for _ in range(workers.count)]

    def compute(part: Tensor) -> None:
        code.arithmetic(ctypes.c_int64(rounds), ctypes.c_void_p(part.data_ptr()))

    return lambda: workers.run(compute, values)


def _large_product(count: int, device: torch.device) -> Step:
    """Return a step that makes about so many operations in one product of two matrices."""
    precise = torch.get_float32_matmul_precision() == "highest"
    inner = max(round((3 if precise else 1) * count / (2 * SIDE**2)), 1)
    left, right = torch.randn(SIDE, inner, device=device), torch.randn(inner, SIDE, device=device)
    out = torch.empty(SIDE, SIDE, device=device)

    def step() -> None:
        with _tensor_cores():
            torch.mm(left, right, out=out)

    return step


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Let products of float32 use TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def traffic(networks: int, model: ModelConfig, device: torch.device) -> Step:
    """Return a step that moves the bytes of a training step and does nothing with them."""
    shape = networks, model.depth, model.width, model.width
    if device.type == "cuda":
        source, target = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

        def copy() -> None:  # three times: as many bytes are read or written
            for _ in range(3):
                target.copy_(source)

        return copy
    code, workers = native.library(torch.float32), Workers(torch.get_num_threads())
    assert not isinstance(code, str)
    code.traffic.restype = ctypes.c_float
    V, M = (in_huge_pages(torch.zeros(shape)).flatten() for _ in range(2))

    def move(part: tuple[Tensor, bool]) -> None:
        values, write = part
        code.traffic(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(len(values)), ctypes.c_int64(write))

    def step() -> None:
        for values, write in ((V, False), (V, False), (V, True), (M, True)):
            workers.run(move, [(part, write) for part in values.chunk(workers.count)])

    return step


def products(networks: int, model: ModelConfig, batch_size: int, device: torch.device) -> Step:
    """Return a step of the products by PyTorch's library; on a GPU one graph launches them, all dᵀx as one of them.

    Several cores can share them out within every product, or by samples and matrices; the faster way is taken.
    """
    K, L, n = networks, model.depth, model.width
    V, M = (torch.randn(L, K, n, n, device=device) for _ in range(2))
    x, d = (torch.randn(L, K, batch_size, n, device=device) for _ in range(2))
    out = torch.empty(K, batch_size, n, device=device)

    def chains(rows: slice) -> None:
        for matrix, signal in zip(V, x[:, :, rows], strict=True):
            torch.bmm(signal, matrix.mT, out=out[:, rows])
        for matrix, signal in zip(V, d[:, :, rows], strict=True):
            torch.bmm(signal, matrix, out=out[:, rows])

    def gradient(layer: int) -> None:
        M[layer].baddbmm_(d[layer].mT, x[layer], beta=0.5)

    def launched() -> None:
        chains(slice(None))
        M.flatten(0, 1).baddbmm_(d.flatten(0, 1).mT, x.flatten(0, 1), beta=0.5)

    if device.type == "cuda":
        return _graph(launched, device)

    def shared_by(workers: Workers) -> Step:
        share = -(-batch_size // workers.count)

        def step() -> None:
            workers.run(chains, [slice(first, first + share) for first in range(0, batch_size, share)])
            workers.run(gradient, range(L))

        return step

    threads = torch.get_num_threads() if n >= PARALLEL_WIDTH else 1
    steps = [shared_by(Workers(count)) for count in sorted({1, threads})]
    times = timed(steps, 3, device) if len(steps) > 1 else np.zeros((1, 1))
    return steps[int(np.argmin(np.median(times, axis=0)))]


def _graph(step: Step, device: torch.device) -> Step:
    """Record what a step launches in a CUDA graph, and return a function that replays it."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # the library takes its working memory before the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

    def replay(_: Step = step) -> None:  # with the step lives its memory, in which a replay writes
        graph.replay()

    return replay
