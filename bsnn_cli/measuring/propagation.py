"""Signals per layer: their lengths forwards and backwards, the angles between them, and how nonlinear the layers are.

The paper's synthetic experiment (Lu, Gould and Ajanthan 2020, arXiv 2006.12169): standard Gaussian inputs go in as x^1,
a standard Gaussian gradient at the top as ∂E_b/∂x^{L+1}, without input and output layers. With a dataset, real inputs
pass the input layer, and the top gradient is that of the real loss.

What enters each layer and its product with the weights are kept for the backward pass, and so are the matrices: in
memory where the network is small, in temporary files where it is not. Autograd from the product on makes the same few
lines serve every normalisation and residual connection. A layer is measured while the next one is computed.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import normalise
from bsnn_cli.measuring.matrices import drawn, stacks
from bsnn_cli.measuring.quantities import (
    largest_slope,
    length,
    lengths_and_angle,
    mean_square,
    pseudo_linearity,
    slopes,
)
from bsnn_cli.measuring.records import LayerRecord, Measurement
from bsnn_cli.networks import parameters
from bsnn_cli.networks.network import Hidden, nonlinearity, unit_variance
from bsnn_cli.networks.trainable import of_layer
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ActivationConfig, ModelConfig
from bsnn_cli.settings.widths import matrix_shapes, widths


@dataclass(frozen=True)
class Passage:
    """The signals that enter the hidden layers at both ends.

    Attributes:
        x: (B, n_1) signals x^1.
        top: x^{L+1} → gradient ∂E_b/∂x^{L+1} of each sample's own loss; (B, n_{L+1}) both.
    """

    x: Tensor
    top: Callable[[Tensor], Tensor]


class Layers:
    """The hidden layers one at a time, in one module whose values are replaced; a new one where the width changes.

    Args:
        model, activation: of the network.
        seed: of the start of training.
        trained: tensors of a finished run, by the names of `parameters.shapes`; None for the start of training.
        device, dtype: where and in which precision to compute.

    Attributes:
        threads: of PyTorch, to be divided between computing and measuring.
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
        self.threads = torch.get_num_threads()
        self.scales: dict[int, float] = {}
        self._activation, self._device, self._dtype = nonlinearity(activation), device, dtype
        self._shapes = matrix_shapes(model)
        self.layer = self._module(0)

    def _module(self, layer: int) -> Hidden:
        module = Hidden(self.model, self._activation, layer).to(self._device, self._dtype)
        module.linear.eval()  # spectral normalisation then leaves its singular vectors as they are
        return module

    def _of_shape(self, layer: int) -> dict[str, Tensor]:
        """Let `layer` be of the shape of this one, counted from 0, and return its values, to be replaced."""
        if (self.layer.linear.out_features, self.layer.linear.in_features) != self._shapes[layer]:
            self.layer = self._module(layer)
        return self.layer.stored()

    def each(self, order: Sequence[int]) -> Iterator[tuple[int, Hidden]]:
        """Yield each index, counted from 0, and the module with that layer's values, until the next is asked for."""
        if self.trained is not None:
            for layer in order:
                for name, value in self._of_shape(layer).items():
                    value.copy_(of_layer(self.trained, name, layer))
                yield layer, self.layer
            return
        for layer, weight in zip(order, drawn.draw(self.model, self.seed, order, self.threads), strict=True):
            parameters.initialise_layer(self._of_shape(layer), weight, self.model, self.seed, layer)
            if layer in self.scales:
                self.layer.scale(self.scales[layer])
            yield layer, self.layer

    def settle(self, layer: int, x: Tensor) -> None:
        """In the forward pass, fix what depends on the batch x (B, n_l) that enters the present layer."""
        if self.trained is None and self.model.init == "lsuv":
            self.scales[layer] = unit_variance(self.layer, x)


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
    slope, x, depth = Slope(activation), passage.x, layers.model.depth
    sizes = widths(layers.model)
    entering, products = kept_signals(sizes[:-1], x), kept_signals(sizes[1:], x)
    forward, backward = [], []
    with measuring_threads(layers.threads, x.device) as start:
        with torch.no_grad():
            for index, layer in layers.each(range(depth)):
                layers.settle(index, x)
                entering[index].copy_(x)
                product = layer.linear(x)
                products[index].copy_(product)
                h = layer.norm(product)
                f = layer.activation(h)
                forward.append(start(record, index + 1, x, h, f, slope, index + 1 in histogram))
                x = layer.leave(x, f)
                tick()
        length_squared, alike = lengths_and_angle(x)
        g = passage.top(x)
        for index, layer in layers.each(range(depth - 1, -1, -1)):
            x = entering[index]
            g, d, of_product = pull_back(layer, products[index], g)
            backward.append(start(gradient_norms, d, of_product, x))
            tick()
    rows, derivatives = [], {}
    for signals, gradients in zip(forward, reversed(backward), strict=True):
        row, derivative = signals.result()
        backward_norm, gradient_norm = gradients.result()
        rows.append(dataclasses.replace(row, backward_norm=backward_norm, gradient_norm=gradient_norm))
        if derivative is not None:
            derivatives[row.layer] = derivative
    rows.append(LayerRecord(layer=depth + 1, forward_norm=length_squared, one_minus_cosine=alike))
    return Measurement(rows, derivatives)


@contextmanager
def measuring_threads(threads: int, device: torch.device) -> Iterator[Callable[..., Future[Any]]]:
    """Yield a function that starts a measurement, `start(measure, *arguments)`, beside the computation of signals.

    On a CPU half of the threads measure, with one thread in each operation; the operations of the caller, who computes
    the signals, have the others. The caller waits when many measurements are behind, since they hold memory. With one
    thread, or on another device, a measurement is made at once.
    """
    count = threads // 2 if device.type == "cpu" else 0
    pending: deque[Future[Any]] = deque(maxlen=2 * count)

    def at_once(measure: Callable[..., object], *arguments: object) -> Future[Any]:
        future = Future[Any]()
        future.set_result(measure(*arguments))
        return future

    def in_thread(measure: Callable[..., object], *arguments: object) -> Future[Any]:
        if len(pending) == pending.maxlen:
            pending[0].result()
        pending.append(pool.submit(measure, *arguments))
        return pending[-1]

    if count == 0:
        yield at_once
        return
    with (
        intra_op_threads(threads - count),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield in_thread


def record(
    layer: int, x: Tensor, h: Tensor, f: Tensor, slope: Slope, histogram: bool
) -> tuple[LayerRecord, Tensor | None]:
    """Measure a layer in the forward pass; gradients follow in the backward pass.

    Args:
        layer: counted from 1.
        x: (B, n_l) what enters.
        h: (B, n) preactivations, n = n_{l+1} of them.
        f: (B, n) f(h).
        slope: f'.
        histogram: whether all f'(h) are wanted, (B·n,) float32 on the CPU.
    """
    derivative = slope(h)
    forward_norm, alike = lengths_and_angle(x)
    row = LayerRecord(
        layer=layer,
        forward_norm=forward_norm,
        one_minus_cosine=alike,
        pseudo_linearity=pseudo_linearity(h, f),
        **slopes(h, derivative, slope.largest),
    )
    return row, derivative.flatten().float().cpu() if histogram else None


def gradient_norms(d: Tensor, of_product: Tensor, x: Tensor) -> tuple[float, float]:
    """Return the mean over the batch of ‖d‖²/n, and ‖∂E/∂W‖_F of the batch mean.

    Args:
        d: (B, n) gradient of the preactivations.
        of_product: (B, n) gradient of Wx.
        x: (B, n_l) what enters the layer.
    """
    return mean_square(d), length(of_product.T @ x) / len(d)


def kept_signals(sizes: Sequence[int], x: Tensor) -> list[Tensor]:
    """Return an uninitialised tensor (B, n) for the signal of each layer, n one of the sizes, like x (B, …)."""
    shapes = [(len(x), n) for n in sizes]
    kept = stacks(shapes, x.dtype) if x.device.type == "cpu" else None
    return [x.new_empty(shape) for shape in shapes] if kept is None else kept


def pull_back(layer: Hidden, product: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of ΣE_b at one layer.

    Args:
        layer: with its values.
        product: Wx, (B, n).
        g: (B, n) gradient of what leaves it.

    Returns:
        gradients of x (B, n_l), of the preactivations h, and of the product Wx, whatever W is made of; (B, n) each.
    """
    product = product.detach().requires_grad_()
    h = layer.norm(product)
    d, of_product = torch.autograd.grad(layer.activation(h), (h, product), g)
    bottom = of_product @ layer.linear.weight.detach()
    return bottom + g if layer.residual else bottom, d, of_product


class Slope:
    """f' of the activation in use, f = aφ + b or φ.

    Attributes:
        largest: of |f'| over |h| ≤ 8.
    """

    def __init__(self, activation: ActivationConfig) -> None:
        self._phi = custom.activation(activation)
        self._a = normalise(self._phi, activation.root).a if activation.gpn else 1.0
        self.largest = largest_slope(self)

    def __call__(self, h: Tensor) -> Tensor:
        """Return f'(h), a new tensor of the shape of h."""
        return self._phi.derivative(h).mul_(self._a)


def gaussian_passage(
    inputs: int, sizes: tuple[int, int], seed: int, device: torch.device, dtype: torch.dtype
) -> Passage:
    """Draw the signals of the paper's synthetic experiment: x^1 and ∂E_b/∂x^{L+1} are independent standard Gaussian.

    Args:
        inputs: B of them.
        sizes: units of x^1 and of x^{L+1}.
        seed: of both.
        device: of both.
        dtype: of both.
    """
    x, g = (
        torch.randn(inputs, width, generator=stream(seed, purpose), dtype=torch.float32).to(device, dtype)
        for width, purpose in zip(sizes, ("propagated inputs", "top gradient"), strict=True)
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
    """Send training samples through the input layer, and the gradient of the cross-entropy through the output layer."""
    ends = {name: torch.empty(shape) for name, shape in parameters.end_shapes(model, data.inputs, data.classes).items()}
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
