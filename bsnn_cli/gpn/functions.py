"""Call and differentiate a function that is given as an activation, and check that it is elementwise."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bsnn_cli.errors import ActivationError

Phi = Callable[[Tensor], Tensor]
"""An elementwise function of preactivations h."""


MANY = 20_000
"""Places at which a function must give the same values twice."""


@contextlib.contextmanager
def evaluating(name: str) -> Iterator[None]:
    """Switch gradients on while the function of this name is called, and raise its errors as `ActivationError`."""
    with torch.inference_mode(False):  # switches gradients on as well, should the caller have them off
        try:
            yield
        except ActivationError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ActivationError(
                f"activation {name}: cannot be evaluated and differentiated by torch ({reason});"
                " write it in differentiable torch operations that take a float64 tensor of any shape"
            ) from error


def in_double(phi: Phi) -> Phi:
    """Return φ for float64 on the CPU: a copy of a module, any other function itself. It never changes its input."""
    double = copy.deepcopy(phi).to("cpu", torch.float64) if isinstance(phi, nn.Module) else phi
    return lambda h: double(h.clone())


def autograd_pair(phi: Phi, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return (φ(h), φ'(h)) by autograd; a φ that autograd cannot follow counts as constant."""
    h = h.detach().requires_grad_()
    value = phi(h.clone())  # a copy, for functions that work in place
    if not value.requires_grad:
        return value, torch.zeros_like(value)
    (derivative,) = torch.autograd.grad(value.sum(), h)
    return value.detach(), derivative


def second_derivative(phi: Phi, h: Tensor) -> Tensor:
    """Return φ''(h) by autograd, applied twice; what autograd does not follow counts as constant."""
    h = h.detach().requires_grad_()
    value = phi(h.clone())
    if not value.requires_grad:
        return torch.zeros_like(h)
    (slope,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(h)
    (second,) = torch.autograd.grad(slope.sum(), h, allow_unused=True)
    return torch.zeros_like(h) if second is None else second.detach()


def require_elementwise(name: str, phi: Phi) -> None:
    """Raise unless φ maps each of some float64 places by itself, and always in the same way."""
    h = torch.linspace(-3, 3, 64, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        whole, part = phi(h.clone()), phi(h[20:40].clone())
    require_likeness(name, whole, h)
    if torch.equal(whole, whole.float().double()) and len(set(whole.tolist())) > len(h) // 2:
        raise ActivationError(
            f"activation {name}: rounds its values to float32 or coarser, which leaves too few digits to solve for"
            " the constants; it must compute in the dtype that it is given"
        )
    many = torch.linspace(-3, 3, MANY, dtype=torch.float64, device="cpu")  # what is seldom random shows among many
    with torch.no_grad():
        forwards, backwards = phi(many.clone()), phi(many.flip(0)).flip(0)
    rounding = 1e-9 * float(whole.nan_to_num(0, 0, 0).abs().max())
    if not all(
        torch.allclose(first, second, rtol=0, atol=rounding, equal_nan=True)
        for first, second in ((whole[20:40], part), (forwards, backwards))
    ):
        raise ActivationError(
            f"activation {name}: gives other values for the same h beside other inputs or at another time;"
            " it must be elementwise and not random (not softmax, not dropout)"
        )


def require_likeness(name: str, value: object, h: Tensor) -> None:
    """Raise unless φ(h) is a tensor of the shape and dtype of h."""
    if not isinstance(value, Tensor) or value.shape != h.shape or value.dtype != h.dtype:
        result = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ActivationError(
            f"activation {name}: returns {result} for {h.dtype} of shape {tuple(h.shape)};"
            " it must keep shape and dtype, as torch.tanh does"
        )
