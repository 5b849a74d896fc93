"""The reference model: a plain `nn.Module` trained by autograd. Easy to read, and the oracle of the fleets.

Depth by an example: `depth=200` means 200 hidden n×n matrices, each followed by an activation. An input layer in front
(data size → n, bias, no activation after it) and an output layer behind (n → classes, bias) are not counted.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import Activation
from bsnn_cli.gpn.module import GPN
from bsnn_cli.networks.parameters import State, decayed, initialise, layer_shapes
from bsnn_cli.networks.trainable import Trainable
from bsnn_cli.networks.workers import threads_for
from bsnn_cli.settings.choices import NORM_GROUPS
from bsnn_cli.settings.config import ActivationConfig, ModelConfig
from bsnn_cli.settings.widths import matrix_entries, widths


class UnitRows(nn.Module):
    """W_i = v_i / ‖v_i‖: each row of W at unit length, V optimised freely (the paper's relaxation of WᵀW = I).

    A parametrisation for a linear layer, to be started from an orthogonal V:

    >>> layer = nn.Linear(500, 500, bias=False)
    >>> _ = nn.init.orthogonal_(layer.weight)
    >>> _ = parametrize.register_parametrization(layer, "weight", UnitRows())

    A row of a convolution is all that one output channel is computed from. The weight does not tell whether the
    convolution is transposed, so `dim` has to: 0 for `Conv1d`, `Conv2d` and `Conv3d`, grouped or not, and `Bilinear`;
    1 for a transposed convolution, of which `groups` has to be told as well: its first dimension counts the inputs of
    all groups, and each group has rows of its own.

    >>> layer = nn.Conv2d(64, 64, 3)
    >>> _ = parametrize.register_parametrization(layer, "weight", UnitRows(dim=0))
    >>> layer = nn.ConvTranspose2d(64, 64, 3, groups=4)
    >>> _ = parametrize.register_parametrization(layer, "weight", UnitRows(dim=1, groups=4))

    Args:
        dim: dimension of the weight that counts output units; None: the first of a matrix, and nothing else is taken.
        groups: of the convolution; for `dim=0` any number gives the same.
    """

    def __init__(self, dim: int | None = None, groups: int = 1) -> None:
        super().__init__()
        self.dim, self.groups = dim, groups

    def forward(self, V: Tensor) -> Tensor:
        """Return W, of the shape of V.

        Raises:
            ValueError: V is no matrix, and `dim` does not say where its rows are; or it has no such dimension, or the
                groups do not divide the first one.
        """
        rows = 0 if self.dim is None and V.dim() == 2 else self.dim
        if V.dim() < 2 or rows is None or rows not in range(V.dim()):
            raise ValueError(
                f"UnitRows(dim={self.dim}): does not say where the rows of a weight of shape {tuple(V.shape)} are;"
                " dim=0 takes the filters of a convolution, dim=1 those of a transposed one"
            )
        if self.groups < 1 or V.shape[0] % self.groups:
            raise ValueError(
                f"UnitRows(groups={self.groups}): does not divide the first dimension of a weight of shape"
                f" {tuple(V.shape)}; give the groups of the convolution"
            )
        grouped = V.reshape(self.groups, V.shape[0] // self.groups, *V.shape[1:])
        others = [dim for dim in range(1, grouped.dim()) if dim != rows + 1]
        return cast(Tensor, grouped / torch.linalg.vector_norm(grouped, dim=others, keepdim=True)).flatten(0, 1)

    def right_inverse(self, W: Tensor) -> Tensor:
        """Return the V that an assigned W stands for: W itself."""
        return W


class Hidden(nn.Module):
    """One hidden layer: h = Wx, normalised if asked for; then x' = φ(h), or x + φ(h) with a residual connection.

    Args:
        model: of the network.
        activation: φ.
        layer: of the network, counted from 0; they differ if their widths do.
    """

    def __init__(self, model: ModelConfig, activation: nn.Module, layer: int = 0) -> None:
        super().__init__()
        shapes = layer_shapes(model, layer)
        self.names = tuple(shapes)
        n_out, n_in = shapes["hidden.weight"]
        self.linear = nn.Linear(n_in, n_out, bias=False)
        if model.weights == "unit_rows":
            parametrize.register_parametrization(self.linear, "weight", UnitRows())
        elif model.weights == "weight_norm":
            parametrizations.weight_norm(self.linear)
        elif model.weights == "spectral_norm":
            parametrizations.spectral_norm(self.linear)
        self.norm = normalisation(model.norm, n_out)
        self.activation = activation
        self.residual = model.residual

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_in) → (batch, n_out)."""
        return self.leave(x, self.activation(self.norm(self.linear(x))))

    def leave(self, x: Tensor, f: Tensor) -> Tensor:
        """Return the output of the layer from its input and its activations; all (batch, n)."""
        return x + f if self.residual else f

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that a run stores of this layer, by the names of `parameters.layer_shapes`."""
        linear = self.linear.state_dict(keep_vars=True)
        tensors = {OURS.get(name, name): tensor for name, tensor in linear.items()}
        tensors |= {f"norm.{name}": tensor for name, tensor in self.norm.state_dict(keep_vars=True).items()}
        return {name: tensors[name] for name in self.names}

    def stored(self) -> dict[str, Tensor]:
        """Return the values of `tensors`, to be read and written without a graph."""
        return {name: tensor.detach() for name, tensor in self.tensors().items()}

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply W by a factor, for layer-sequential unit variance."""
        self.stored()["hidden.gain" if "hidden.gain" in self.names else "hidden.weight"].mul_(factor)


def normalisation(kind: str, width: int) -> nn.Module:
    """Return the normalisation between Wx, of `width` units, and the activation; `kind` is `model.norm`."""
    if kind == "batch":
        return nn.BatchNorm1d(width)
    if kind == "layer":
        return nn.LayerNorm(width)
    return nn.GroupNorm(NORM_GROUPS, width) if kind == "group" else nn.Identity()


OURS = {
    "weight": "hidden.weight",
    "parametrizations.weight.original": "hidden.weight",
    "parametrizations.weight.original0": "hidden.gain",
    "parametrizations.weight.original1": "hidden.weight",
    "parametrizations.weight.0._u": "hidden.left",
    "parametrizations.weight.0._v": "hidden.right",
}
"""Our names for what PyTorch keeps in a linear layer: what is optimised is never W itself where W is parametrised."""


class Network(Trainable):
    """The paper's network with every option of the config.

    Args:
        model: depth, widths, normalisation, constraint on the weights.
        activation: φ and whether it is GPN; or an elementwise module.
        inputs: size of one input.
        classes: number of outputs.
        seed: of the initial weights.
    """

    def __init__(
        self, model: ModelConfig, activation: ActivationConfig | nn.Module, inputs: int, classes: int, seed: int
    ) -> None:
        super().__init__()
        self.model = model
        phi = activation if isinstance(activation, nn.Module) else nonlinearity(activation)
        first, *_, last = widths(model)
        self.input = nn.Linear(inputs, first)
        self.hidden = nn.ModuleList(Hidden(model, phi, layer) for layer in range(model.depth))
        self.output = nn.Linear(last, classes)
        initialise(self.state(), model, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) → logits (batch, classes)."""
        x = self.input(x)
        for layer in self.hidden:
            x = layer(x)
        return cast(Tensor, self.output(x))

    def tensors(self) -> State:
        """Return the parameters and buffers that a run stores, by the names of `parameters.shapes`."""
        layers = [cast(Hidden, layer).tensors() for layer in self.hidden]
        return {
            "input.weight": self.input.weight,
            "input.bias": self.input.bias,
            **{name: [layer[name] for layer in layers] for name in layers[0]},
            "output.weight": self.output.weight,
            "output.bias": self.output.bias,
        }

    def decayed(self) -> list[Tensor]:
        """Return the parameters that weight decay acts on, as `parameters.decayed` names them."""
        names = decayed(self.model)
        values = [value for name, value in self.tensors().items() if name in names]
        return [tensor for value in values for tensor in ([value] if isinstance(value, Tensor) else value)]

    def matrices(self) -> list[Tensor]:
        """Return W of each hidden layer."""
        return [cast(Hidden, layer).linear.weight for layer in self.hidden]

    def settle(self, x: Tensor) -> None:
        """Scale the hidden matrices by the first batch of training if `init=lsuv` asks for it; x: (batch, inputs)."""
        if self.model.init == "lsuv":
            self.unit_variance(x)

    def threads(self) -> int:
        """Return as many threads as a fleet of one such network has."""
        return threads_for(matrix_entries(self.model))

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


def unit_variance(layer: Hidden, x: Tensor) -> float:
    """Scale W so that Wx has variance 1 over samples and units; returns the factor. x: (batch, n)."""
    factor = float(1 / layer.linear(x).double().std(correction=0))
    layer.scale(factor)
    return factor


def nonlinearity(activation: ActivationConfig) -> nn.Module:
    """Return the activation of a config as a module."""
    base = custom.activation(activation)
    return GPN(base, activation.root) if activation.gpn else Phi(base)


class Phi(nn.Module):
    """An activation as a·φ(h) + b, with constants that are known already; φ itself without them."""

    def __init__(self, activation: Activation, a: float = 1.0, b: float = 0.0) -> None:
        super().__init__()
        self.activation, self.a, self.b = activation, a, b

    def forward(self, h: Tensor) -> Tensor:
        """Any shape → the same shape."""
        value = self.activation.phi(h)
        return value if (self.a, self.b) == (1.0, 0.0) else self.a * value + self.b

    def extra_repr(self) -> str:
        """Return the name and the constants."""
        return f"{self.activation.name}, a={self.a:.10g}, b={self.b:.10g}"
