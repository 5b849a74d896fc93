"""Signals per layer: how long they are forwards and backwards, how alike, and how nonlinear the layers are.

The paper's synthetic experiment (Lu, Gould and Ajanthan 2020, arXiv 2006.12169): standard Gaussian inputs go in as x^1,
a standard Gaussian gradient at the top as ∂E_b/∂x^{L+1}, without input and output layers. With a dataset, real inputs
pass the input layer, and the top gradient is that of the real loss.

Only what enters each layer is kept. On the way back a layer is computed again, with a graph of its own, and its weights
are drawn again from their random stream: 200 matrices never lie in memory together. Autograd inside one layer makes the
same few lines serve every normalisation, parametrisation and residual connection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli import custom, parameters
from bsnn_cli.activations import normalise
from bsnn_cli.config import ActivationConfig, ModelConfig
from bsnn_cli.data import Dataset
from bsnn_cli.network import Hidden, nonlinearity, unit_variance
from bsnn_cli.orthogonal import stream
from bsnn_cli.records import LayerRecord, Summary

SATURATION = 0.01
"""A unit counts as saturated where |f'(h)| is below this share of the largest |f'| over |h| ≤ 8."""

KEPT_BYTES = 200 * 500 * 500 * 4
"""The drawn matrices of a network up to this size are kept for the way back and for the next activation."""


@dataclass(frozen=True)
class Measurement:
    """One passage through the network, forwards and backwards.

    Attributes:
        layers: rows l = 1 … L + 1.
        derivatives: {l: all f'(h^l_i) of the batch}, for the layers asked for; (B·n,) float32 on the CPU.
    """

    layers: list[LayerRecord]
    derivatives: dict[int, Tensor]


@dataclass(frozen=True)
class Passage:
    """What is sent through the hidden layers.

    Attributes:
        x: (B, n) signals x^1.
        top: (B, n) x^{L+1} → (B, n) gradient ∂E_b/∂x^{L+1} of each sample's own loss.
    """

    x: Tensor
    top: Callable[[Tensor], Tensor]


class Layers:
    """The hidden layers one at a time, in one module whose values are replaced.

    Args:
        model, activation: of the network.
        seed: of the start of training.
        trained: tensors of a finished run, by the names of `parameters.shapes`; None for the start of training.
        device, dtype: where and in which precision to compute.
    """

    def __init__(
        self,
        model: ModelConfig,
        activation: ActivationConfig,
        seed: int,
        trained: Mapping[str, Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.seed, self.trained = model, seed, trained
        self.scales: dict[int, float] = {}
        self.layer = Hidden(model, nonlinearity(activation)).to(device, dtype)
        self.layer.linear.eval()  # spectral normalisation then leaves its singular vectors as they are

    def load(self, layer: int) -> Hidden:
        """The module with the values of a layer, counted from 0; valid until the next call."""
        stored = self.layer.stored()
        if self.trained is not None:
            for name, value in stored.items():
                value.copy_(self.trained[name][layer])
        else:
            parameters.initialise_layer(stored, drawn.get(self.model, self.seed, layer), self.seed, layer)
            if layer in self.scales:
                self.layer.scale(self.scales[layer])
        return self.layer

    def load_for(self, layer: int, x: Tensor) -> Hidden:
        """As `load`, on the way forward: what depends on the batch x (B, n) that enters is settled here."""
        module = self.load(layer)
        if self.trained is None and self.model.init == "lsuv":
            self.scales[layer] = unit_variance(module, x)
        return module


def measure(
    layers: Layers, activation: ActivationConfig, passage: Passage, histogram: Sequence[int], tick: Callable[[], object]
) -> Measurement:
    """Send signals forwards and gradients backwards through all hidden layers.

    Args:
        layers: of the network.
        activation: as in `layers`.
        passage: what goes in at both ends.
        histogram: layers, counted from 1, whose f'(h) are wanted.
        tick: called after each layer, twice for each.
    """
    slope = Slope(activation)
    x, depth = passage.x, layers.model.depth
    entering = x.new_empty(depth, *x.shape)  # one block: freed piece by piece, the memory would not go back
    rows, derivatives = [], {}
    with torch.no_grad():
        for index in range(depth):
            layer = layers.load_for(index, x)
            h = layer.norm(layer.linear(x))
            derivative = slope(h)
            rows.append(
                LayerRecord(
                    layer=index + 1,
                    forward_norm=mean_square(x),
                    one_minus_cosine=one_minus_cosine(x),
                    preactivation_mean=float(h.mean(dtype=torch.float64)),
                    preactivation_variance=mean_square(h - h.mean()),
                    derivative_mean=float(derivative.mean(dtype=torch.float64)),
                    derivative_std=float(derivative.std(correction=0)),
                    pseudo_linearity=pseudo_linearity(h, layer.activation(h)),
                    saturated=float((derivative.abs() < SATURATION * slope.largest).mean(dtype=torch.float64)),
                )
            )
            if index + 1 in histogram:
                derivatives[index + 1] = derivative.flatten().float().cpu()
            entering[index] = x
            x = layer.leave(x, h)
            tick()
    rows.append(LayerRecord(layer=depth + 1, forward_norm=mean_square(x), one_minus_cosine=one_minus_cosine(x)))
    g = passage.top(x)
    for index in reversed(range(depth)):
        g, d, weight_gradient = pull_back(layers.load(index), entering[index], g)
        gradient_norm = length(weight_gradient) / len(d)
        rows[index] = dataclasses.replace(rows[index], backward_norm=mean_square(d), gradient_norm=gradient_norm)
        tick()
    return Measurement(rows, derivatives)


def pull_back(layer: Hidden, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ΣE_b at one layer.

    Args:
        layer: with its values.
        x: (B, n) what enters it.
        g: (B, n) gradient of what leaves it.

    Returns:
        gradients of x (B, n), of the preactivations h (B, n), and of W itself (n, n), whatever W is made of.
    """
    x = x.detach().requires_grad_()
    W = layer.linear.weight.detach().requires_grad_()
    h = layer.norm(F.linear(x, W))
    bottom, d, gradient = torch.autograd.grad(layer.leave(x, h), (x, h, W), g)
    return bottom, d, gradient


def summarise(rows: Sequence[LayerRecord]) -> Summary:
    """The numbers that say what becomes of the signals over depth."""
    *hidden, end = rows
    gradients = [row.gradient_norm for row in hidden]
    last = hidden[-1]
    return Summary(
        forward_norm_first=rows[0].forward_norm,
        forward_norm_last=end.forward_norm,
        backward_norm_first=rows[0].backward_norm,
        backward_norm_last=last.backward_norm,
        gradient_norm_first=gradients[0],
        gradient_norm_last=gradients[-1],
        gradient_norm_max=max(gradients) if all(map(math.isfinite, gradients)) else math.nan,
        gradient_norm_ratio=max(gradients) / min(gradients) if all(gradients) else math.nan,
        zero_gradients=gradients.count(0),
        preactivation_mean=last.preactivation_mean,
        preactivation_variance=last.preactivation_variance,
        derivative_mean=last.derivative_mean,
        derivative_std=last.derivative_std,
        pseudo_linearity=last.pseudo_linearity,
        saturated=last.saturated,
        one_minus_cosine_last=end.one_minus_cosine,
    )


class Slope:
    """f' of the activation in use, f = aφ + b or φ.

    Attributes:
        largest: of |f'| over |h| ≤ 8.
    """

    def __init__(self, activation: ActivationConfig) -> None:
        self._phi = custom.activation(activation)
        self._a = normalise(self._phi, activation.root).a if activation.gpn else 1.0
        self.largest = float(self(torch.linspace(-8, 8, 1601, dtype=torch.float64)).abs().max())

    def __call__(self, h: Tensor) -> Tensor:
        """f'(h), a new tensor of the shape of h."""
        return self._phi.derivative(h).mul_(self._a)


def mean_square(x: Tensor) -> float:
    """Mean over the batch of ‖x‖²/n, accumulated in float64; x: (B, n)."""
    return length(x) ** 2 / x.numel()


def one_minus_cosine(x: Tensor) -> float:
    """1 − c, where c is the mean cosine between two different rows of x (B, n).

    The mean of ½‖u_b − u_b'‖² over pairs of unit vectors u = x/‖x‖ is their total variance about their mean: no
    cancellation near c = 1, and a cost linear in B. NaN where a row is 0.
    """
    u = x / torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64).to(x.dtype)
    return length(u - u.mean(0)) ** 2 / (len(x) - 1)


def pseudo_linearity(h: Tensor, f: Tensor) -> float:
    """Squared correlation of h_i with f_i over the batch, averaged over the units; h, f: (B, n).

    1 means that each unit is a linear function on the inputs it sees. Units that do not vary are left out, NaN if none
    does.
    """
    correlation = (unit_columns(h) * unit_columns(f)).sum(0)
    return float(correlation.double().square().nanmean())


def unit_columns(x: Tensor) -> Tensor:
    """Each column of x (B, n), less its mean, at unit length; NaN where it is constant."""
    x = x - x.mean(0)
    norm: Tensor = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64)
    return x / norm.to(x.dtype)


def length(x: Tensor) -> float:
    """‖x‖ over all entries, accumulated in float64: squares of small or large float32 numbers are none."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def gaussian_passage(inputs: int, width: int, seed: int, device: torch.device, dtype: torch.dtype) -> Passage:
    """The paper's synthetic experiment: x^1 and ∂E_b/∂x^{L+1} are standard Gaussian, each from its own stream."""
    x, g = (
        torch.randn(inputs, width, generator=stream(seed, purpose), dtype=torch.float32).to(device, dtype)
        for purpose in ("propagated inputs", "top gradient")
    )
    return Passage(x, lambda _: g)


def dataset_passage(
    data: Dataset,
    model: ModelConfig,
    inputs: int,
    seed: int,
    trained: Mapping[str, Tensor] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Passage:
    """Training samples through the input layer, and the gradient of the cross-entropy through the output layer."""
    ends = {
        name: torch.empty(shape)
        for name, shape in parameters.shapes(model, data.inputs, data.classes).items()
        if name.startswith(parameters.ENDS)
    }
    if trained is None:
        parameters.initialise_ends(ends, model, seed)
    else:
        ends = {name: trained[name] for name in ends}
    ends = {name: value.to(device, dtype) for name, value in ends.items()}
    chosen = torch.randperm(len(data.train.labels), generator=stream(seed, "propagated inputs"))[:inputs]
    images, labels = data.train.images[chosen], data.train.labels[chosen].to(device)
    x = F.linear(data.standardise(images, dtype).to(device), ends["input.weight"], ends["input.bias"])

    def top(last: Tensor) -> Tensor:
        last = last.detach().requires_grad_()
        loss = F.cross_entropy(F.linear(last, ends["output.weight"], ends["output.bias"]), labels, reduction="sum")
        return torch.autograd.grad(loss, last)[0]

    return Passage(x, top)


class Matrices:
    """`parameters.hidden_start` of one network at a time, in one block of memory where `KEPT_BYTES` suffice for all."""

    def __init__(self) -> None:
        self._owner: tuple[object, ...] = ()
        self._block = torch.empty(0)
        self._known: set[int] = set()

    def get(self, model: ModelConfig, seed: int, layer: int) -> Tensor:
        """The start of a hidden matrix, (n, n) float32 on the CPU; `layer` is counted from 0."""
        L, n = model.depth, model.width
        if 4 * L * n * n > KEPT_BYTES:
            return parameters.hidden_start(model, seed, layer)
        owner = (model.init, L, n, seed)
        if owner != self._owner:
            self._owner, self._known = owner, set()
            if self._block.shape != (L, n, n):
                self._block = torch.empty(0)  # before the next one is made
                self._block = torch.empty(L, n, n)
        if layer not in self._known:
            self._block[layer] = parameters.hidden_start(model, seed, layer)
            self._known.add(layer)
        return self._block[layer]


drawn = Matrices()
"""Shared by the way forward, the way back and the activations of a sweep at one seed."""
