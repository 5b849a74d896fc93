"""Gaussian moments of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.functions import Phi, evaluating
from bsnn_cli.gpn.gaussian import IntegrationError, moment_rule
from bsnn_cli.gpn.kinks import kinks
from bsnn_cli.theory.activation import Given, given

BESIDE = 1e-9
"""Distance from a kink at which slopes tell a corner from a weaker one, relative to its place or to 1."""


def gaussian_moments(activation: str | Phi | Given, variance: float = 1.0) -> dict[str, float]:
    """Compute the moments of an activation f and its derivatives under h ~ N(0, variance), to about 1e-12.

    Args:
        activation: as in `predict`; a form that is tailored to a depth, such as "tanh_gpn_d", to 200 layers.
        variance: of h, above 0.

    Returns:
        E[f], E[f²], E[f'], E[f'²], E[f'⁴], E[f''²] and E[hff'], by these names. E[f''²] is inf where f has a corner.

    Raises:
        ActivationError: f is no elementwise function, or has no such moments.
        ConfigError: the variance is not a number above 0.

    >>> round(gaussian_moments("relu")["E[f²]"], 6)
    0.5
    """
    if not 0 < variance < math.inf:
        raise ConfigError(f"variance={variance}: must be a number above 0, such as 1.0")
    f = given(activation)
    scale = math.sqrt(variance)

    def pair(z: Tensor) -> tuple[Tensor, Tensor]:
        return f.phi(scale * z), scale * f.slope(scale * z).detach()

    with evaluating(f.name):
        try:
            rule = moment_rule(lambda z: f.phi(scale * z), pair)
        except IntegrationError as error:
            raise ActivationError(
                f"activation {f.name}: {error}, so signals have no mean field; needed is a continuous function with"
                " finite E[f²] and E[f'²], such as tanh(5h) in place of sign(h)"
            ) from error
        h = scale * rule.nodes
        value, slope = f.phi(h).detach(), f.slope(h).detach()
        corners = has_corner(f.slope, kinks(f.phi, max(1.0, scale)))
        curvature = math.inf if corners else rule.inner(second := _second(f.phi, h), second)
    return {
        "E[f]": rule.inner(value, 1),
        "E[f²]": rule.inner(value, value),
        "E[f']": rule.inner(slope, 1),
        "E[f'²]": rule.inner(slope, slope),
        "E[f'⁴]": rule.inner(slope**2, slope**2),
        "E[f''²]": curvature,
        "E[hff']": rule.inner(h * value, slope),
    }


def has_corner(slope: Phi, places: tuple[float, ...]) -> bool:
    """Return True if f' jumps at one of the kinks of f."""
    for place in places:
        step = BESIDE * max(1.0, abs(place))
        left, right = slope(torch.tensor([place - step, place + step], dtype=torch.float64)).detach().tolist()
        if abs(left - right) > 1e-6 * max(abs(left), abs(right)):
            return True
    return False


def _second(phi: Phi, h: Tensor) -> Tensor:
    """Return f'' by autograd, applied twice; what autograd does not follow counts as constant."""
    h = h.detach().requires_grad_()
    value = phi(h)
    if not value.requires_grad:
        return torch.zeros_like(h)
    (slope,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(h)
    (second,) = torch.autograd.grad(slope.sum(), h, allow_unused=True)
    return torch.zeros_like(h) if second is None else second
