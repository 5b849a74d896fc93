"""A deep convolutional network without skip connections or pooling between layers: `network=cnn`.

The architecture follows Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs" (arXiv 1806.05393): one
convolution with stride 2 takes the image to `width` channels, L convolutions of 3 × 3 follow, each with its activation,
and the mean over all pixels enters a linear layer. A filter is the row of a matrix: with unit rows each has length 1.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bsnn_cli.common.random_streams import stream
from bsnn_cli.networks.network import UnitRows
from bsnn_cli.networks.orthogonal import haar
from bsnn_cli.networks.parameters import fill, initialise_ends
from bsnn_cli.networks.trainable import Trainable
from bsnn_cli.networks.workers import threads_for
from bsnn_cli.settings.config import ModelConfig

KERNEL = 3
STRIDE = 2
"""The stride of the first convolution, which leaves a quarter of the pixels."""


class Block(nn.Module):
    """One hidden layer: a convolution that keeps height and width, a normalisation if asked for, the activation."""

    def __init__(self, model: ModelConfig, activation: nn.Module, seed: int, layer: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(model.width, model.width, KERNEL, padding=KERNEL // 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(start(model, seed, layer))
        if model.weights == "unit_rows":
            parametrize.register_parametrization(self.conv, "weight", UnitRows(dim=0))
        self.norm: nn.Module | None = None
        if model.norm == "batch":
            self.norm = nn.BatchNorm2d(model.width)
            if model.norm_init == "uniform":
                self.norm.weight.data.copy_(torch.rand(model.width, generator=stream(seed, "norm.weight", layer)))
        self.activation, self.residual = activation, model.residual

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, height, width) → the same shape."""
        h = self.conv(x)
        f = self.activation(h if self.norm is None else self.norm(h))
        return cast(Tensor, x + f if self.residual else f)


class Convolutional(Trainable):
    """The network; every tensor has a random stream of its own, as in the multilayer perceptron.

    Args:
        model: depth, width (channels), weights, start and normalisation.
        activation: elementwise.
        shape: (channels, height, width) of an image.
        classes: number of outputs.
        seed: of the initial weights.
    """

    def __init__(
        self, model: ModelConfig, activation: nn.Module, shape: tuple[int, int, int], classes: int, seed: int
    ) -> None:
        super().__init__()
        self.shape = shape
        self.input = nn.Conv2d(shape[0], model.width, KERNEL, stride=STRIDE, padding=KERNEL // 2)
        self.hidden = nn.Sequential(*(Block(model, activation, seed, layer) for layer in range(model.depth)))
        self.output = nn.Linear(model.width, classes)
        initialise_ends(self.state(), model, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) or (batch, channels, height, width) → logits (batch, classes)."""
        x = self.hidden(self.input(x.view(len(x), *self.shape)))
        return cast(Tensor, self.output(x.mean((2, 3))))

    def threads(self) -> int:
        """Return how many threads an operation shall use; a weight is multiplied once for each pixel."""
        weights = len(self.hidden) * self.output.in_features**2 * KERNEL**2
        return threads_for(weights * math.ceil(self.shape[1] / STRIDE) * math.ceil(self.shape[2] / STRIDE))


def start(model: ModelConfig, seed: int, layer: int) -> Tensor:
    """Return the initial kernels of one hidden layer, (n, n, 3, 3) float32; `layer` is counted from 0.

    `orthogonal` is the delta-orthogonal start (Xiao et al. 2018, algorithm 1): an orthogonal matrix at the centre and
    0 elsewhere, so that each pixel passes a multilayer perceptron of its own. The others fill the kernel with
    variances 1/fan_in or 2/fan_in, fan_in = 9n.
    """
    generator = stream(seed, "hidden", layer)
    kernels = torch.zeros(model.width, model.width, KERNEL, KERNEL)
    if model.init == "orthogonal":
        kernels[:, :, KERNEL // 2, KERNEL // 2] = haar(model.width, generator)
        return kernels
    return fill(kernels, model.init, generator)
