"""Constraints that keep the weights of a layer as GPN needs them in training, as parametrisations."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bsnn_cli.conversion.matrices import Layout, layouts, nearest
from bsnn_cli.conversion.plan import Step, kind, left
from bsnn_cli.conversion.weights import Owners, assign, unchangeable
from bsnn_cli.networks.network import UnitRows

CONSTRAINTS = ("unit_rows", "orthogonal")


class Orthogonal(nn.Module):
    """The scaled semi-orthogonal matrices of a layer, exactly so throughout training.

    The map to the orthogonal matrices is PyTorch's (`torch.nn.utils.parametrizations.orthogonal`): the exponential of a
    skew-symmetric matrix where they are square, a product of Householder reflections where not.

    Args:
        layout: where they stand in the weight; not at the centre of a kernel.
        weight: the weight to start from; its matrices are orthogonal, but for the scale.
    """

    map: Any

    def __init__(self, layout: Layout, weight: Tensor) -> None:
        super().__init__()
        self.layout, self.shape, self.scale = layout, weight.shape, layout.scale(weight.shape)
        matrices = nn.Module()
        matrices.weight = nn.Parameter(layout.matrices(weight.detach()) / self.scale)
        n_out, n_in = layout.size(weight.shape)
        # The base that a trivialisation starts from would be filled up at random where matrices are not square.
        parametrizations.orthogonal(matrices, use_trivialization=n_out == n_in)
        self.map = matrices.get_submodule("parametrizations.weight.0")

    def forward(self, X: Tensor) -> Tensor:
        """Return the weight that belongs to the free parameters X, (blocks, n_out, n_in)."""
        return self.layout.weight(self.scale * self.map(X), self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the free parameters of a weight."""
        X: Tensor = self.map.right_inverse(self.layout.matrices(weight) / self.scale)
        return X


def steps(
    modules: Mapping[str, nn.Module], owners: Owners, constraint: str, drawn: set[tuple[str, str]]
) -> Iterator[Step]:
    """Plan the parametrisation of every weight of the layers that are known.

    Args:
        modules: by qualified name.
        owners: who holds each parameter.
        constraint: one of `CONSTRAINTS`.
        drawn: module and parameter of each weight that has been made orthogonal by then.
    """
    for name, module in modules.items():
        for attribute, layout in layouts(module):
            fresh = (name, attribute) in drawn
            reason = _obstacle(module, attribute, layout, owners)
            if not reason and constraint == "unit_rows":
                reason = _no_unit_rows(module, attribute, fresh)
            elif not reason:
                reason = _not_orthogonal(module, attribute, layout)
            if reason:
                yield left(name, module, f"no {constraint}: {reason}", attribute)
            elif constraint == "unit_rows":
                act = functools.partial(_register, module, attribute, _unit_rows(module))
                yield Step(name, kind(module), attribute, "unit rows", "", act=act)
            elif not isinstance(layout, str):
                act = functools.partial(_make_orthogonal, module, attribute, layout, fresh)
                yield Step(name, kind(module), attribute, "stays orthogonal", "", act=act)


def _obstacle(module: nn.Module, attribute: str, layout: Layout | str, owners: Owners) -> str:
    """Return why a weight cannot be parametrised; empty if it can."""
    if parametrize.is_parametrized(module, attribute):
        return "it has a parametrisation already"
    if isinstance(module, nn.RNNBase):
        return "its kernels read the weights past any parametrisation; cells, such as LSTMCell, can have one"
    if isinstance(module, nn.Bilinear):
        return str(layout)
    weight = module._parameters.get(attribute)
    if weight is not None and len(owners[id(weight)]) > 1:
        return "the weight is shared, and a parametrisation of one of its layers would part them"
    return unchangeable(weight)


def _no_unit_rows(module: nn.Module, attribute: str, fresh: bool) -> str:
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed and any(step > 1 for step in module.stride):
        return f"a transposed convolution of stride {module.stride} has several rows in one filter"
    rows = _unit_rows(module)(getattr(module, attribute).detach())
    return "" if fresh or rows.isfinite().all() else "a row of zeros has no direction"


def _not_orthogonal(module: nn.Module, attribute: str, layout: Layout | str) -> str:
    if isinstance(layout, str):
        return layout
    if layout.centre:
        return (
            f"a delta-orthogonal kernel of size {module.kernel_size} does not stay so in training, as its other places"
            " leave 0; unit_rows keeps its rows"
        )
    dtype = getattr(module, attribute).dtype
    return "" if dtype in (torch.float32, torch.float64) else f"PyTorch has no such map in {dtype}"


def _unit_rows(module: nn.Module) -> UnitRows:
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
        return UnitRows(dim=1, groups=module.groups)
    return UnitRows(dim=0)


def _register(module: nn.Module, attribute: str, parametrisation: nn.Module) -> None:
    parametrize.register_parametrization(module, attribute, parametrisation)


def _make_orthogonal(module: nn.Module, attribute: str, layout: Layout, fresh: bool) -> None:
    if not fresh:
        assign(module, attribute, nearest(layout, getattr(module, attribute).detach()))
    _register(module, attribute, Orthogonal(layout, getattr(module, attribute)))
