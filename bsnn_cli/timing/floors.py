"""What no implementation of a training step can be faster than: its matrix products, and on a GPU its bytes.

The products are 3·L over distinct matrices: h = xVᵀ and dV in every layer, and dᵀx, which adds to the momentum. Dense
products in this order cannot be had faster from the same library.

The bytes are those of weights and momentum, which no cache holds. A step that can be left out when its gradient is not
finite reads V three times, on the way up, on the way down and for the update; it writes V once, and M is read and
written once: six passes. How long they take is measured by copies between two tensors of their size.
"""

from __future__ import annotations

import torch

from bsnn_cli.settings.config import ModelConfig
from bsnn_cli.timing.stopwatch import Step

PASSES = 6
"""Over as many bytes as the weights have; a copy makes two."""


def products(networks: int, model: ModelConfig, batch_size: int, device: torch.device) -> Step:
    """The products of a step alone. On a GPU launched as one graph, and all of a step's dᵀx in one batched product."""
    K, L, n = networks, model.depth, model.width
    V, M = (torch.randn(L, K, n, n, device=device) for _ in range(2))
    x, d = (torch.randn(L, K, batch_size, n, device=device) for _ in range(2))
    out = torch.empty(K, batch_size, n, device=device)

    def step() -> None:
        for matrix, signal in zip(V, x, strict=True):
            torch.bmm(signal, matrix.mT, out=out)
        for matrix, signal in zip(V, d, strict=True):
            torch.bmm(signal, matrix, out=out)
        if device.type == "cuda":
            M.flatten(0, 1).baddbmm_(d.flatten(0, 1).mT, x.flatten(0, 1), beta=0.5)
            return
        for momentum, left, right in zip(M, d, x, strict=True):
            momentum.baddbmm_(left.mT, right, beta=0.5)

    return _graph(step, device) if device.type == "cuda" else step


def copies(networks: int, model: ModelConfig, device: torch.device) -> Step:
    """Moves the bytes of a step and does nothing with them."""
    source = torch.zeros(networks, model.depth, model.width, model.width, device=device)
    target = torch.empty_like(source)

    def step() -> None:
        for _ in range(PASSES // 2):
            target.copy_(source)

    return step


def _graph(step: Step, device: torch.device) -> Step:
    """A CUDA graph of what a step launches."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # the library takes its working memory before the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay
