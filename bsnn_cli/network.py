"""The reference model: a plain `nn.Module` trained by autograd. Easy to read, and the oracle of the fast path.

Depth by an example: `depth=200` means 200 hidden n×n matrices, each followed by an activation. An input layer in front
(data size → n, bias, no activation after it) and an output layer behind (n → classes, bias) are not counted.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bsnn_cli.activations import GPN, get
from bsnn_cli.config import ActivationConfig, ModelConfig
from bsnn_cli.parameters import NORM_STATISTICS, NORM_WEIGHTS, State, initialise

class UnitRows(nn.Module):
    """W_i = v_i / ‖v_i‖: each row of W at unit length, V optimised freely (the paper's relaxation of WᵀW = I)."""

    def forward(self, V: Tensor) -> Tensor:
        """(n, n) → (n, n)."""
        return V / torch.linalg.vector_norm(V, dim=1, keepdim=True)


class Hidden(nn.Module):
    """One hidden layer: h = Wx, then batch normalisation if asked for, then x' = φ(h)."""

    def __init__(self, model: ModelConfig, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(model.width, model.width, bias=False)
        if model.weights == "unit_rows":
            parametrize.register_parametrization(self.linear, "weight", UnitRows())
        self.norm = nn.BatchNorm1d(model.width) if model.norm == "batch" else nn.Identity()
        self.activation = activation

    @property
    def free_weight(self) -> nn.Parameter:
        """What is optimised: V under `unit_rows`, W itself under `free`; (n, n)."""
        if parametrize.is_parametrized(self.linear):
            return cast(nn.Parameter, self.linear.parametrizations["weight"].original)
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n) → (batch, n)."""
        return cast(Tensor, self.activation(self.norm(self.linear(x))))


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
        phi = GPN(activation.name, activation.root) if activation.gpn else Phi(activation.name)
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
        """Views of all that a run stores, by the names of `parameters.shapes`; per-layer entries are lists of L tensors."""
        layers = [cast(Hidden, layer) for layer in self.hidden]
        state: State = {
            "input.weight": self.input.weight.data,
            "input.bias": self.input.bias.data,
            "hidden.weight": [layer.free_weight.data for layer in layers],
            "output.weight": self.output.weight.data,
            "output.bias": self.output.bias.data,
        }
        if isinstance(layers[0].norm, nn.BatchNorm1d):
            for name in (*NORM_WEIGHTS, *NORM_STATISTICS):
                state[name] = [getattr(layer.norm, name.removeprefix("norm.")).data for layer in layers]
        return state

    def load(self, state: dict[str, Tensor]) -> Network:
        """Take over the tensors of a run (`weights.pt`); returns self."""
        for name, target in self.state().items():
            if isinstance(target, Tensor):
                target.copy_(state[name])
            else:
                for layer, value in zip(target, state[name], strict=True):
                    layer.copy_(value)
        return self


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
