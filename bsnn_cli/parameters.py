"""What a network stores: names, shapes, and the start of every tensor.

Both the reference network and the fleet keep their values under these names; so do `weights.pt` and the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

from bsnn_cli.config import ModelConfig
from bsnn_cli.orthogonal import haar, stream

NORM_WEIGHTS = ("norm.weight", "norm.bias")
NORM_STATISTICS = ("norm.running_mean", "norm.running_var")

State: TypeAlias = Mapping[str, "Tensor | Sequence[Tensor]"]
"""Tensors by name; what has one entry for each hidden layer is stacked, or a sequence of L tensors."""


def shapes(model: ModelConfig, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is trained in one network, and of the batch statistics."""
    L, n = model.depth, model.width
    shape: dict[str, tuple[int, ...]] = {
        "input.weight": (n, inputs),
        "input.bias": (n,),
        "hidden.weight": (L, n, n),
        "output.weight": (classes, n),
        "output.bias": (classes,),
    }
    if model.norm == "batch":
        shape |= dict.fromkeys((*NORM_WEIGHTS, *NORM_STATISTICS), (L, n))
    return shape


@torch.no_grad()
def initialise(state: State, model: ModelConfig, seed: int) -> None:
    """Fill the tensors of `state` in place with the start of a run.

    Every tensor, and every hidden layer, has a random stream of its own: the same seed gives every activation, depth
    and device the same matrices.

    Args:
        state: to be filled; any device, any floating dtype.
        model: the choices of initialisation.
        seed: of the run.
    """
    for layer, weight in enumerate(state["hidden.weight"]):
        weight.copy_(haar(model.width, stream(seed, "hidden", layer)))
    for name in ("input", "output"):
        weight, bias = cast(Tensor, state[f"{name}.weight"]), cast(Tensor, state[f"{name}.bias"])
        fan_in, generator = weight.shape[1], stream(seed, name)
        if name == "input" and model.input_init == "norm_preserving":
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
            bias.zero_()
        else:  # PyTorch's default for nn.Linear
            bound = fan_in**-0.5
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            bias.copy_(torch.empty(bias.shape).uniform_(-bound, bound, generator=generator))
    for name, value in (("norm.weight", 1.0), ("norm.bias", 0.0), ("norm.running_mean", 0.0), ("norm.running_var", 1.0)):
        for layer_values in state.get(name, ()):
            layer_values.fill_(value)
