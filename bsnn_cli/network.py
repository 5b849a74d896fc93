"""The reference model: a plain `nn.Module` trained by autograd. Easy to read, and the oracle of the fast path.

Depth by an example: `depth=200` means 200 hidden n×n matrices, each followed by an activation. An input layer in front
(data size → n, bias, no activation after it) and an output layer behind (n → classes, bias) are not counted.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bsnn_cli.activations import GPN, get
from bsnn_cli.config import NORM_GROUPS, ActivationConfig, ModelConfig
from bsnn_cli.parameters import State, initialise, layer_shapes


class UnitRows(nn.Module):
    """W_i = v_i / ‖v_i‖: each row of W at unit length, V optimised freely (the paper's relaxation of WᵀW = I)."""

    def forward(self, V: Tensor) -> Tensor:
        """(n, n) → (n, n)."""
        return cast(Tensor, V / torch.linalg.vector_norm(V, dim=1, keepdim=True))


class Hidden(nn.Module):
    """One hidden layer: h = Wx, normalised if asked for; then x' = φ(h), or x + φ(h) with a residual connection."""

    def __init__(self, model: ModelConfig, activation: nn.Module) -> None:
        super().__init__()
        self.names = tuple(layer_shapes(model))
        self.linear = nn.Linear(model.width, model.width, bias=False)
        if model.weights == "unit_rows":
            parametrize.register_parametrization(self.linear, "weight", UnitRows())
        elif model.weights == "weight_norm":
            parametrizations.weight_norm(self.linear)
        elif model.weights == "spectral_norm":
            parametrizations.spectral_norm(self.linear)
        self.norm = normalisation(model)
        self.activation = activation
        self.residual = model.residual

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n) → (batch, n)."""
        return self.leave(x, self.norm(self.linear(x)))

    def leave(self, x: Tensor, h: Tensor) -> Tensor:
        """What leaves the layer, from what enters it and its preactivations; all (batch, n)."""
        out = cast(Tensor, self.activation(h))
        return x + out if self.residual else out

    def stored(self) -> dict[str, Tensor]:
        """Views of what a run stores of this layer, by the names of `parameters.layer_shapes`."""
        values = {f"norm.{name}": tensor for name, tensor in self.norm.state_dict().items()}
        linear = self.linear.state_dict()
        free = [linear[name] for name in ("weight", f"{FREE}original", f"{FREE}original1") if name in linear]
        values["hidden.weight"] = free[0]
        if f"{FREE}original0" in linear:
            values["hidden.gain"] = linear[f"{FREE}original0"].squeeze(1)
        if f"{FREE}0._u" in linear:
            values |= {"hidden.left": linear[f"{FREE}0._u"], "hidden.right": linear[f"{FREE}0._v"]}
        return {name: values[name] for name in self.names}

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply W by a factor, for layer-sequential unit variance."""
        self.stored()["hidden.gain" if "hidden.gain" in self.names else "hidden.weight"].mul_(factor)


def normalisation(model: ModelConfig) -> nn.Module:
    """What stands between Wx and the activation."""
    if model.norm == "batch":
        return nn.BatchNorm1d(model.width)
    if model.norm == "layer":
        return nn.LayerNorm(model.width)
    return nn.GroupNorm(NORM_GROUPS, model.width) if model.norm == "group" else nn.Identity()


FREE = "parametrizations.weight."
"""Where PyTorch keeps what is optimised in place of a parametrised weight: V, or gain and direction, or W·σ."""


class Network(nn.Module):
    """The paper's network with every option of the config.

    Args:
        model: depth, width, normalisation, constraint on the weights.
        activation: φ and whether it is GPN.
        inputs: size of one input.
        classes: number of outputs.
        seed: of the initial weights.
    """

    def __init__(self, model: ModelConfig, activation: ActivationConfig, inputs: int, classes: int, seed: int) -> None:
        super().__init__()
        phi = nonlinearity(activation)
        self.input = nn.Linear(inputs, model.width)
        self.hidden = nn.ModuleList(Hidden(model, phi) for _ in range(model.depth))
        self.output = nn.Linear(model.width, classes)
        initialise(self.state(), model, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) → logits (batch, classes)."""
        x = self.input(x)
        for layer in self.hidden:
            x = layer(x)
        return cast(Tensor, self.output(x))

    def state(self) -> State:
        """Views of all that a run stores, by the names of `parameters.shapes`; per layer: a list of L tensors."""
        layers = [cast(Hidden, layer).stored() for layer in self.hidden]
        return {
            "input.weight": self.input.weight.data,
            "input.bias": self.input.bias.data,
            **{name: [layer[name] for layer in layers] for name in layers[0]},
            "output.weight": self.output.weight.data,
            "output.bias": self.output.bias.data,
        }

    @torch.no_grad()
    def unit_variance(self, x: Tensor) -> None:
        """Layer-sequential unit variance: scale each hidden matrix so that its preactivations have variance 1.

        Mishkin and Matas 2016, "All you need is a good init"; the variance is over all samples and units of a layer.

        Args:
            x: a batch of inputs, (batch, inputs).
        """
        x = self.input(x)
        for layer in self.hidden:
            unit_variance(cast(Hidden, layer), x)
            x = layer(x)

    def load(self, state: dict[str, Tensor]) -> Network:
        """Take over the tensors of a run (`weights.pt`); returns self."""
        for name, target in self.state().items():
            if isinstance(target, Tensor):
                target.copy_(state[name])
            else:
                for layer, value in zip(target, state[name], strict=True):
                    layer.copy_(value)
        return self


def unit_variance(layer: Hidden, x: Tensor) -> float:
    """Scale W so that Wx has variance 1 over samples and units; returns the factor. x: (batch, n)."""
    factor = 1 / float(layer.linear(x).double().std(correction=0))
    layer.scale(factor)
    return factor


def nonlinearity(activation: ActivationConfig) -> nn.Module:
    """The activation of a config as a module."""
    return GPN(activation.name, activation.root) if activation.gpn else Phi(activation.name)


class Phi(nn.Module):
    """A named activation without normalisation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, h: Tensor) -> Tensor:
        """Any shape → the same shape."""
        return get(self.name).phi(h)

    def extra_repr(self) -> str:
        """The name."""
        return self.name
