"""Lower bounds of the time of a training step: its matrix products, and on a GPU its bytes.

The products are 3·L over distinct matrices: h = xVᵀ and dV in every layer, and dᵀx, which adds to the momentum. Several
cores can share them out within every product, or by samples and matrices,; what is faster on this
machine is the floor.

In fp32 on a GPU these products are the library's, and no bound: those of parts in TF32 (`networks.kernels`) take less.

The bytes are those of weights and momentum, which no cache holds. A step that can be left out when its gradient is not
finite reads V three times, in the forward pass, in the backward pass and for the update; it writes V once, and M is
read and written once: six passes. How long they take is measured by copies between two tensors of their size.
"""

from __future__ import annotations

import numpy as np
import torch

from bsnn_cli.networks.workers import Workers
from bsnn_cli.settings.config import ModelConfig
from bsnn_cli.timing.stopwatch import Step, timed

PARALLEL_WIDTH = 200
"""From this width on, a product with one matrix takes a core long enough to be worth handing to it."""

PASSES = 6
"""Over as many bytes as the weights have; a copy makes two."""


def products(networks: int, model: ModelConfig, batch_size: int, device: torch.device) -> Step:
    """Return a step of the products alone; on a GPU one graph launches them, with all dᵀx in one batched product."""
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


def copies(networks: int, model: ModelConfig, device: torch.device) -> Step:
    """Return a step that moves the bytes of a training step and does nothing with them."""
    source = torch.zeros(networks, model.depth, model.width, model.width, device=device)
    target = torch.empty_like(source)

    def step() -> None:
        for _ in range(PASSES // 2):
            target.copy_(source)

    return step


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
