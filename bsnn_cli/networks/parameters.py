"""The tensors that a network stores: their names, shapes and initial values.

Both the reference network and the fleet keep their values under these names; so do `weights.pt` and the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bsnn_cli.common.random_streams import stream
from bsnn_cli.networks.orthogonal import semi_orthogonal
from bsnn_cli.networks.workers import Workers, intra_op_threads
from bsnn_cli.settings.config import ModelConfig
from bsnn_cli.settings.widths import widths

NORM_WEIGHTS = ("norm.weight", "norm.bias")
NORM_STATISTICS = ("norm.running_mean", "norm.running_var")
SINGULAR_VECTORS = ("hidden.left", "hidden.right")
"""Estimates of those of the largest singular value, for spectral normalisation."""

UNTRAINED = (*NORM_STATISTICS, *SINGULAR_VECTORS)


def decayed(model: ModelConfig) -> frozenset[str]:
    """Return the names of the tensors that weight decay acts on.

    These are the matrices, and the lengths of their rows under weight normalisation. Orthogonal matrices do not decay:
    λW has no part in the tangent space that their gradient is projected to.
    """
    kept = {"hidden.weight"} if model.weights == "orthogonal" else set()
    return frozenset({"input.weight", "hidden.weight", "hidden.gain", "output.weight"} - kept)


POWER_ITERATIONS = 15
"""Iterations for the first estimate of the singular vectors, as many as in PyTorch's `spectral_norm`."""

State: TypeAlias = Mapping[str, "Tensor | Sequence[Tensor]"]
"""Tensors by name; what has one entry for each hidden layer is stacked, or a sequence of L tensors."""


def shapes(model: ModelConfig, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of a network of one width: trained ones, and those in `UNTRAINED`."""
    hidden = {name: (model.depth, *shape) for name, shape in layer_shapes(model).items()}
    every = end_shapes(model, inputs, classes) | hidden
    return {name: every[name] for name in ("input.weight", "input.bias", *hidden, "output.weight", "output.bias")}


def end_shapes(model: ModelConfig, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of the input and the output layer."""
    first, *_, last = widths(model)
    return {
        "input.weight": (first, inputs),
        "input.bias": (first,),
        "output.weight": (classes, last),
        "output.bias": (classes,),
    }


def layer_shapes(model: ModelConfig, layer: int = 0) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of one hidden layer, counted from 0; all are like the first if n is."""
    n_in, n = widths(model)[layer : layer + 2]
    shape: dict[str, tuple[int, ...]] = {"hidden.weight": (n, n_in)}
    if model.weights == "weight_norm":
        shape["hidden.gain"] = (n, 1)
    if model.weights == "spectral_norm":
        shape |= dict(zip(SINGULAR_VECTORS, ((n,), (n_in,)), strict=True))
    if model.norm != "none":
        shape |= dict.fromkeys(NORM_WEIGHTS, (n,))
    if model.norm == "batch":
        shape |= dict.fromkeys(NORM_STATISTICS, (n,))
    return shape


@torch.no_grad()
def initialise(state: State, model: ModelConfig, seed: int) -> None:
    """Fill the tensors of `state` in place with the start of a run.

    Every tensor, and every hidden layer, has a random stream of its own: the same seed gives every activation, depth
    and device the same matrices.

    Args:
        state: to be filled; any device, any floating dtype.
        model: the choices of initialisation. Of `lsuv`, this is the orthogonal start; the scaling needs data.
        seed: of the run.
    """

    def start(layer: int) -> None:
        values = {name: state[name][layer] for name in layer_shapes(model)}
        initialise_layer(values, hidden_start(model, seed, layer), model, seed, layer)

    threads = torch.get_num_threads()
    with intra_op_threads(1):
        Workers(threads).run(start, range(model.depth))
    initialise_ends(state, model, seed)


@torch.no_grad()
def initialise_ends(state: State, model: ModelConfig, seed: int) -> None:
    """Fill the tensors of the input and output layer in place, matrices or kernels; arguments as in `initialise`."""
    for name in ("input", "output"):
        weight, bias = cast(Tensor, state[f"{name}.weight"]), cast(Tensor, state[f"{name}.bias"])
        fan_in, generator = weight[0].numel(), stream(seed, name)
        if name == "input" and model.input_init == "norm_preserving":
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
            bias.zero_()
        else:  # PyTorch's default for nn.Linear
            bound = fan_in**-0.5
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            bias.copy_(torch.empty(bias.shape).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def initialise_layer(state: Mapping[str, Tensor], weight: Tensor, model: ModelConfig, seed: int, layer: int) -> None:
    """Fill what one hidden layer stores with its start, in place.

    Args:
        state: by the names of `layer_shapes`.
        weight: what `hidden_start` has drawn.
        model: the choices of initialisation.
        seed: of the run.
        layer: counted from 0.
    """
    state["hidden.weight"].copy_(weight)
    for name, value in (
        ("norm.weight", 1.0),
        ("norm.bias", 0.0),
        ("norm.running_mean", 0.0),
        ("norm.running_var", 1.0),
    ):
        if name in state:
            state[name].fill_(value)
    if model.norm_init == "uniform" and "norm.weight" in state:
        state["norm.weight"].copy_(torch.rand(len(weight), generator=stream(seed, "norm.weight", layer)))
    if "hidden.gain" in state:  # then W is the matrix drawn
        gain: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True, dtype=torch.float64)
        state["hidden.gain"].copy_(gain.to(weight.dtype))
    if "hidden.left" in state:
        left, right = torch.randn(len(weight), generator=stream(seed, "singular vector", layer)), weight[0]
        for _ in range(POWER_ITERATIONS):
            right = normalize(weight.T @ left, dim=0)
            left = normalize(weight @ right, dim=0)
        state["hidden.left"].copy_(left)
        state["hidden.right"].copy_(right)


def hidden_start(model: ModelConfig, seed: int, layer: int) -> Tensor:
    """Return the initial value of one hidden matrix on the CPU; `layer` is counted from 0.

    It is float32, (n_{l+1}, n_l): of the units that leave the layer and of those that enter it.
    """
    n_in, n_out = widths(model)[layer : layer + 2]
    generator = stream(seed, "hidden", layer)
    if model.init in ("orthogonal", "lsuv"):
        return semi_orthogonal(n_out, n_in, generator)
    return fill(torch.empty(n_out, n_in), model.init, generator)


def fill(weight: Tensor, init: str, generator: torch.Generator) -> Tensor:
    """Draw independent entries for a matrix or the kernels of a convolution, in place; returns them."""
    if init == "glorot_uniform":
        return nn.init.xavier_uniform_(weight, generator=generator)
    if init == "he_normal":
        return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    return nn.init.kaiming_normal_(weight, nonlinearity="linear", generator=generator)  # LeCun's: variance 1/n
