"""What lies between the matrix products of a step, as functions that a compiler makes into one kernel each.

A GPU is bound by memory and by the number of kernels here, so every function reads its arguments once, has no
temporaries of its own once compiled, and does all groups of members in one. Nothing depends on the values: dead
members are left out by `where`, since 0 · NaN is NaN. Where there is no compiler the same functions run operation by
operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsnn_cli.networks.batch_norm import Statistics, denormalise, normalise
from bsnn_cli.networks.members import Group
from bsnn_cli.networks.orthogonal import longest_column


@dataclass(frozen=True)
class Functions:
    """In place, all of them; shapes as in `fleet.Signals`, of one layer.

    Attributes:
        lift: (h, inverse_norm, above): the product xVᵀ in h becomes h, and `above` a·φ(h) + b.
        lower: (g, h, scale, d, s): from ∂E/∂x above to d, and s for unit rows.
        lift_normalised: (h, inverse_norm, gain, shift, statistics, y, above): likewise by way of y = γĥ + β.
        lower_normalised: (g, h, gain, scale, statistics, d): d holds γĥ + β before.
        move: (V, M, tangent, step_size, alive, norm): V and M (c, n, n) of one member, M with the gradient in it;
            step_size without dimensions, alive such as fits M, tangent (c, n, 1) and norm (c, n) for unit rows.
        longest_column: (M): as `orthogonal.longest_column`.
    """

    lift: Callable[..., None]
    lower: Callable[..., None]
    lift_normalised: Callable[..., None]
    lower_normalised: Callable[..., None]
    move: Callable[..., None]
    longest_column: Callable[[Tensor], Tensor]


def functions(groups: Sequence[Group], *, unit_rows: bool) -> Functions:
    """For members in these groups."""

    def activate(h: Tensor, above: Tensor) -> None:
        for activation, a, b, group in groups:
            above[group].copy_(a * activation.phi(h[group]) + b)

    def pull_back(g: Tensor, h: Tensor) -> Tensor:
        u = torch.empty_like(g)
        for activation, _, _, group in groups:
            u[group].copy_(activation.pull_back(g[group], h[group]))
        return u

    def lift(h: Tensor, inverse_norm: Tensor, above: Tensor) -> None:
        if unit_rows:
            h.mul_(inverse_norm)
        activate(h, above)

    def lower(g: Tensor, h: Tensor, scale: Tensor, d: Tensor, s: Tensor) -> None:
        u = pull_back(g, h)
        if unit_rows:
            s.copy_((u * h).sum(1))
        d.copy_(u * scale)

    def lift_normalised(
        h: Tensor, inverse_norm: Tensor, gain: Tensor, shift: Tensor, statistics: Statistics, y: Tensor, above: Tensor
    ) -> None:
        if unit_rows:
            h.mul_(inverse_norm)
        normalise(h, gain, shift, statistics, out=y)
        activate(y, above)

    def lower_normalised(g: Tensor, h: Tensor, gain: Tensor, scale: Tensor, statistics: Statistics, d: Tensor) -> None:
        denormalise(pull_back(g, d), h, gain, scale, statistics, out=d)

    def move(V: Tensor, M: Tensor, tangent: Tensor, step_size: Tensor, alive: Tensor, norm: Tensor) -> None:
        if unit_rows:
            M.sub_(tangent * V)
        V.add_(torch.where(alive, step_size * M, 0))
        if unit_rows:
            norm.copy_(torch.linalg.vector_norm(V, dim=-1))

    return Functions(lift, lower, lift_normalised, lower_normalised, move, longest_column)


def compiled(plain: Functions, **options: Any) -> Functions:
    """The same functions compiled, each when it is first called with arguments of a shape.

    What has been compiled for an earlier fleet is forgotten: torch keeps a few versions of a function only.

    Args:
        plain: from `functions`.
        options: of `torch.compile`.
    """
    torch.compiler.reset()
    return Functions(*(_compiled(getattr(plain, name), options) for name in Functions.__dataclass_fields__))


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    fast = torch.compile(function, fullgraph=True, dynamic=False, **options)
    usable = True

    def call(*arguments: Any) -> Any:
        nonlocal usable
        if usable:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="TensorFloat32")  # fp32 is what was asked for
                    return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:  # from compiling: nothing has been computed yet
                usable = False
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"{function.__name__} is not compiled and is slower: {reason}", stacklevel=2)
        return function(*arguments)

    return call
