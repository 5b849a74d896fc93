"""The same training as a PyTorch user would write it at best: the baselines that `bsnn bench` compares with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from bsnn_cli.settings.config import ModelConfig

ORTHOGONAL_MAPS = ("matrix_exp", "cayley", "householder")
"""How `torch.nn.utils.parametrizations.orthogonal` gets from a free matrix to an orthogonal one."""


def hidden_matrix(width: int, weights: str) -> nn.Module:
    """Return a linear layer without bias, (B, n) → (B, n), that starts orthogonal.

    Args:
        width: n.
        weights: `unit_rows`, by weight normalisation with its gain frozen at 1; `free`; or one of `ORTHOGONAL_MAPS`.
    """
    linear = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(linear.weight)
    if weights == "unit_rows":
        parametrizations.weight_norm(linear)
        gain = cast(nn.Parameter, cast(nn.ModuleDict, linear.parametrizations)["weight"].original0)
        nn.init.ones_(gain.requires_grad_(False))
    elif weights in ORTHOGONAL_MAPS:
        parametrizations.orthogonal(linear, orthogonal_map=weights)
    return linear


def plain_network(model: ModelConfig, activation: nn.Module, inputs: int, classes: int, weights: str) -> nn.Sequential:
    """Return the network as a chain of modules; `weights` as in `hidden_matrix`."""
    layers: list[nn.Module] = [nn.Linear(inputs, model.width)]
    for _ in range(model.depth):
        layers.append(hidden_matrix(model.width, weights))
        if model.norm == "batch":
            layers.append(nn.BatchNorm1d(model.width))
        layers.append(activation)
    return nn.Sequential(*layers, nn.Linear(model.width, classes))


def plain_step(
    network: nn.Module, lr: float, momentum: float, fused: bool | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function for one update by autograd and `torch.optim.SGD`: (B, inputs), labels (B,) → loss before it."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=lr, momentum=momentum, fused=fused)

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        torch.autograd.backward(loss)
        optimiser.step()
        return loss.detach()

    return step


def endless(loader: torch.utils.data.DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of one epoch after another, for ever."""
    while True:
        yield from loader
