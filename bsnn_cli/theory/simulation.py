"""Send signals and gradients through random networks without drawing their weights, layer by layer.

For Haar-uniform W, W(x₁, x₂) has the law of (u₁, u₂)R, where (u₁, u₂) are uniform orthonormal vectors and R is the
triangular factor of (x₁, x₂); for W with entries N(0, 1/n), u₁ and u₂ are independent with entries N(0, 1/n). That
holds exactly, and in every layer anew, as each layer has a W of its own.

Backwards W is known to map x to w = Wx, and else random. So Wᵀd has the component ⟨w, d⟩/‖x‖ along x/‖x‖; the rest is
a random direction orthogonal to x, of the squared norm ‖d‖² − ⟨w, d⟩²/‖w‖² if W is orthogonal, and Gaussian of
variance ‖d‖²/n in each coordinate if W is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bsnn_cli.common.random_streams import stream
from bsnn_cli.gpn.meanfield import ORTHOGONAL, Transfer, Weights
from bsnn_cli.theory.fates import COLLAPSED


@dataclass(frozen=True)
class Signals:
    """The signals in random networks of one activation, as they were measured; entry l − 1 is of layer l.

    Attributes:
        lengths: ‖x‖²/n after the layer, of one input for each start, (start, layer, network).
        separations: 1 − c of two signals that are orthogonal and equally long at the input, (layer, network); an angle
            that float64 does not resolve is 0.
        gradients: ‖∂E/∂h‖² of the preactivations of the layer, relative to ‖∂E/∂x‖² at what leaves the last layer,
            whose direction is random, (layer, network).
    """

    lengths: Tensor
    separations: Tensor
    gradients: Tensor


def simulate(
    f: Transfer,
    width: int,
    depth: int,
    networks: int,
    seed: int,
    starts: Sequence[float] = (1.0,),
    first: int = 0,
    weights: Weights = ORTHOGONAL,
) -> Signals:
    """Send signals up and a gradient down through random networks; their weights depend on the seed alone.

    Args:
        f: the activation, with its slope.
        width: units of every layer.
        depth: layers.
        networks: how many.
        seed: of inputs and weights.
        starts: ‖x‖²/n of inputs whose lengths are followed.
        first: the one of them whose angle to another input and whose gradient are followed as well.
        weights: their law.
    """
    u, v = orthonormal(networks, width, stream(seed, "theory inputs"))
    inputs = [math.sqrt(width) * math.sqrt(start) * u for start in starts]
    partner = math.sqrt(width) * math.sqrt(starts[first]) * v
    lengths = torch.empty(len(starts), depth, networks, dtype=torch.float64)
    separations = torch.empty(depth, networks, dtype=torch.float64)
    entering, products, preactivations = [], [], []
    for layer in range(depth):
        u, v = two_columns(networks, width, stream(seed, "theory weights", layer), weights)
        bias = biases(networks, width, seed, layer, weights)
        product = weights.sigma_w * (norm(inputs[first]) * u)
        entering.append(inputs[first])
        products.append(product)
        preactivations.append(product + bias)
        partner = f.f(weights.sigma_w * rotate_partner(inputs[first], partner, u, v) + bias)
        inputs = [f.f(weights.sigma_w * (norm(x) * u) + bias) for x in inputs]
        lengths[:, layer] = torch.stack([per_unit(x) for x in inputs])
        difference = inputs[first] / norm(inputs[first]) - partner / norm(partner)
        separation = (difference * difference).sum(1) / 2
        separations[layer] = separation.where(separation > COLLAPSED, 0)
    return Signals(lengths, separations, backwards(f, entering, products, preactivations, seed, weights))


def backwards(
    f: Transfer,
    entering: Sequence[Tensor],
    products: Sequence[Tensor],
    preactivations: Sequence[Tensor],
    seed: int,
    weights: Weights,
) -> Tensor:
    """Send a gradient of random direction down, through what x, Wx and h were in each layer; (layer, network)."""
    if f.slope is None:
        raise TypeError("this Transfer has no slope, which gradients need")
    networks, n = entering[0].shape
    gradients = torch.empty(len(entering), networks, dtype=torch.float64)
    y = torch.randn(networks, n, generator=stream(seed, "theory gradients"), dtype=torch.float64)
    y = y / norm(y)
    for layer in reversed(range(len(entering))):
        d = f.slope(preactivations[layer]).detach() * y
        gradients[layer] = d.square().sum(1)
        x, product = entering[layer], products[layer]
        direction = x / norm(x)
        along = (product * d).sum(1, keepdim=True)
        g = torch.randn(networks, n, generator=stream(seed, "theory transposed", layer), dtype=torch.float64)
        rest = g - (g * direction).sum(1, keepdim=True) * direction
        if weights.orthogonal:
            left = d.square().sum(1, keepdim=True) - (along / norm(product)) ** 2
            rest = weights.sigma_w * left.clamp(min=0).sqrt() * rest / norm(rest)
        else:
            rest = weights.sigma_w * norm(d) / math.sqrt(n) * rest
        y = along / norm(x) * direction + rest
    return gradients


def per_unit(x: Tensor) -> Tensor:
    """Return ‖x‖²/n: (trials, n) → (trials,)."""
    return x.square().mean(1)


def norm(x: Tensor) -> Tensor:
    """Return ‖x‖ of each row: (networks, n) → (networks, 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length


def on_sphere(norms: Tensor, generator: torch.Generator, n: int) -> Tensor:
    """Draw Wx for one x of each norm (trials, 1), with an independent Haar-uniform W for each: (trials, n)."""
    g = torch.randn(len(norms), n, generator=generator, dtype=torch.float64)
    return norms * g / norm(g)


def two_columns(networks: int, n: int, generator: torch.Generator, weights: Weights) -> tuple[Tensor, Tensor]:
    """Draw the first two columns of W/σ_w for each network, (networks, n) each."""
    if weights.orthogonal:
        return orthonormal(networks, n, generator)
    u, v = torch.randn(2, networks, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    return u, v


def orthonormal(networks: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the first two columns of a Haar-uniform matrix for each network, (networks, n) each."""
    g, h = torch.randn(2, networks, n, generator=generator, dtype=torch.float64)
    u = g / norm(g)
    h = h - (h * u).sum(1, keepdim=True) * u
    return u, h / norm(h)


def biases(networks: int, n: int, seed: int, layer: int, weights: Weights) -> Tensor | float:
    """Draw the biases of a layer, (networks, n), or return 0 where there are none."""
    if weights.sigma_b == 0:
        return 0.0
    generator = stream(seed, "theory biases", layer)
    return weights.sigma_b * torch.randn(networks, n, generator=generator, dtype=torch.float64)


def rotate_partner(x: Tensor, partner: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return W·partner (networks, n); W takes x to ‖x‖u, and the direction of partner that is orthogonal to x to v."""
    along = x / norm(x)
    projection = (partner * along).sum(1, keepdim=True)
    return projection * u + norm(partner - projection * along) * v
