"""Recognise the activations among the modules of a network, and give their slopes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bsnn_cli.gpn.activations import Activation
from bsnn_cli.gpn.functions import autograd_pair, in_double, require_elementwise
from bsnn_cli.gpn.module import GPN
from bsnn_cli.gpn.tailored import Tailoring
from bsnn_cli.measuring.quantities import largest_slope
from bsnn_cli.networks.network import Phi


@dataclass(frozen=True)
class Elementwise:
    """An activation f that maps each entry by itself.

    Attributes:
        derivative: h → f'(h), a new tensor of the shape and dtype of h.
        largest: of |f'| over |h| ≤ 8.
    """

    derivative: Callable[[Tensor], Tensor]
    largest: float


def elementwise(module: nn.Module) -> Elementwise | None:
    """Return the slopes of a module if it is an activation that works entry by entry, otherwise None.

    These are `GPN` and `Phi` of this package, `nn.PReLU`, and modules without children and parameters that map
    float64 numbers entry by entry and always in the same way, but do not return them as they are. Dropout is random
    in training mode and returns its input in evaluation mode, so it is none in either.
    """
    known = _of_ours(module)
    if known is not None:
        return Elementwise(known, largest_slope(known))
    if isinstance(module, nn.PReLU):  # one slope for each channel, and 1
        return Elementwise(_by_autograd(module), max(1.0, float(module.weight.detach().abs().max())))
    if not isinstance(module, GPN) and (any(module.children()) or any(True for _ in module.parameters())):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # softmax remarks that it is not told along which dimension
            phi = in_double(module)
            require_elementwise(type(module).__name__, phi)
            h = torch.linspace(-3, 3, 64, dtype=torch.float64, device="cpu")
            if torch.equal(phi(h), h):
                return None
            return Elementwise(_by_autograd(module), largest_slope(lambda h: autograd_pair(phi, h)[1]))
    except Exception:  # noqa: BLE001 - a module for something else may fail in any way on numbers in a row
        return None


def _of_ours(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return f' of an activation whose derivative is known without autograd, as `propagate` computes it."""
    if isinstance(module, Phi) or (
        isinstance(module, GPN) and isinstance(module.activation, Activation) and module.tailoring == Tailoring()
    ):
        activation, a = module.activation, module.a
        assert isinstance(activation, Activation)
        return lambda h: activation.derivative(h).mul_(a)
    return None


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _by_autograd(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return f' by autograd; `forward` is called by itself, without the hooks of the module."""

    def derivative(h: Tensor) -> Tensor:
        with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):  # not a part of what is checkpointed
            return autograd_pair(module.forward, h)[1]

    return derivative
