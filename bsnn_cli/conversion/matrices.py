"""The orthogonal matrices in the weight of a layer, drawn anew.

A layer whose weight is made of orthogonal matrices keeps the length of what goes through it, forwards and backwards.
For a convolution that is the delta-orthogonal kernel: an orthogonal matrix of channels at its centre, 0 elsewhere (Xiao
et al. 2018, arXiv 1806.05393, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bsnn_cli.common.random_streams import stream
from bsnn_cli.networks.orthogonal import haar


@dataclass(frozen=True)
class Layout:
    """The places of the matrices (n_out, n_in) of a layer in its weight.

    Attributes:
        blocks: how many there are, one below the other: groups of a convolution, gates of a cell.
        transposed: the weight has the inputs first, as that of a transposed convolution.
        centre: they stand at the centre of a kernel, and the rest of it is 0. Otherwise the whole kernel belongs to
            them, which is right where its places do not overlap: for n_in in a convolution, n_out in a transposed one.
    """

    blocks: int = 1
    transposed: bool = False
    centre: bool = False

    def matrices(self, weight: Tensor) -> Tensor:
        """Return the matrices in a weight; (…) → (blocks, n_out, n_in)."""
        taps = weight[_centre(weight.shape)] if self.centre else weight
        matrices = taps.reshape(self.blocks, taps.shape[0] // self.blocks, -1)
        return matrices.mT if self.transposed else matrices

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight of this shape that has these matrices; (blocks, n_out, n_in) → shape."""
        matrices = (matrices.mT if self.transposed else matrices).flatten(0, 1)
        if not self.centre:
            return matrices.reshape(shape)
        weight = matrices.new_zeros(shape)
        weight[_centre(shape)] = matrices
        return weight

    def size(self, shape: torch.Size) -> tuple[int, int]:
        """Return n_out and n_in of a weight of this shape."""
        n_out, n_in = self.matrices(torch.empty(shape, device="meta")).shape[1:]
        return n_out, n_in

    def scale(self, shape: torch.Size) -> float:
        """Return √max(1, n_out/n_in), with which ‖Wx‖²/n_out is ‖x‖²/n_in; where n_out < n_in, on average."""
        n_out, n_in = self.size(shape)
        return math.sqrt(max(1, n_out / n_in))


def _centre(shape: torch.Size) -> tuple[slice | int, ...]:
    return (slice(None), slice(None), *(size // 2 for size in shape[2:]))


def layouts(module: nn.Module) -> Iterator[tuple[str, Layout | str]]:
    """Yield the name of each weight of a layer of PyTorch with its layout, or with the reason why it has none."""
    if isinstance(module, nn.Linear):
        yield "weight", Layout()
    elif isinstance(module, nn.modules.conv._ConvNd):
        yield "weight", _of_convolution(module)
    elif isinstance(module, nn.MultiheadAttention):
        if module._qkv_same_embed_dim:
            yield "in_proj_weight", Layout(blocks=3)
        else:
            yield from ((f"{letter}_proj_weight", Layout()) for letter in "qkv")
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for name in parameter_names(module):
            if name.startswith("weight_hr"):  # the projection of an LSTM
                yield name, Layout()
            elif name.startswith("weight"):  # a matrix for each gate
                yield name, Layout(blocks=getattr(module, name).shape[0] // module.hidden_size)
    elif isinstance(module, nn.Bilinear):
        yield "weight", "a bilinear layer multiplies two signals, and no weight keeps the lengths of both"


def _of_convolution(layer: nn.modules.conv._ConvNd) -> Layout | str:
    kernel, stride = layer.kernel_size, layer.stride
    if all(size == 1 for size in kernel) and not layer.transposed:
        return Layout(layer.groups)
    if kernel == stride and all(step == 1 for step in layer.dilation):  # its patches do not overlap
        return Layout(layer.groups, layer.transposed)
    if layer.transposed and any(step > 1 for step in stride):
        return (
            f"a transposed convolution of kernel {kernel} and stride {stride} makes its outputs from overlapping or"
            " missing patches; it has an orthogonal weight where kernel and stride are equal, or the stride is 1"
        )
    if any(size % 2 == 0 for size in kernel):
        return f"a kernel of even size, {kernel}, has no centre for an orthogonal matrix"
    return Layout(layer.groups, layer.transposed, centre=any(size > 1 for size in kernel))


def parameter_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters of a module itself, parametrised ones included."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    makers = module.get_submodule("parametrizations") if parametrize.is_parametrized(module) else nn.Module()
    return [*names, *(name for name, _ in makers.named_children())]


def draw(layout: Layout, shape: torch.Size, seed: int, name: str) -> Tensor:
    """Draw a float64 weight of scaled semi-orthogonal matrices, uniform among them.

    Args:
        layout: of the weight.
        shape: of the weight.
        seed: of all draws.
        name: qualified name of the weight; it and the seed are all that the numbers depend on.
    """
    n_out, n_in = layout.size(shape)
    wide = n_out < n_in
    generators = (stream(seed, f"normalise/{name}", block) for block in range(layout.blocks))
    tall = torch.stack([haar(max(n_out, n_in), generator, torch.float64, min(n_out, n_in)) for generator in generators])
    return layout.weight((tall.mT if wide else tall) * layout.scale(shape), shape)


def nearest(layout: Layout, weight: Tensor) -> Tensor:
    """Return the weight of scaled semi-orthogonal matrices nearest to a weight, by their polar decompositions."""
    U, _, Vh = torch.linalg.svd(layout.matrices(weight.double()), full_matrices=False)
    return layout.weight(U @ Vh * layout.scale(weight.shape), weight.shape)


def words(layout: Layout, shape: torch.Size) -> tuple[str, str]:
    """Return what matrices of this layout are called, and what they do where they are not square."""
    n_out, n_in = layout.size(shape)
    delta = "delta-" if layout.centre else ""
    if n_out == n_in:
        return f"{delta}orthogonal", ""
    scale = layout.scale(shape)
    factor = f" × {scale:.3g}" if scale > 1 else ""
    effect = f"{n_in} → {n_out} units: squared gradients per unit × {n_out / n_in:.3g}"
    return f"{delta}semi-orthogonal{factor}", effect
