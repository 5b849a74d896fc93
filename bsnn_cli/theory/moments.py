"""Gaussian moments of activations."""

from __future__ import annotations

import math

from torch import Tensor

from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.functions import Phi, evaluating, second_derivative
from bsnn_cli.gpn.gaussian import IntegrationError, moment_rule
from bsnn_cli.gpn.kinks import corners, kinks
from bsnn_cli.theory.activation import Given, computing, given


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
        return f.phi(scale * z).detach(), scale * f.slope(scale * z).detach()

    with evaluating(f.name), computing():
        try:
            rule = moment_rule(lambda z: f.phi(scale * z), pair)
        except IntegrationError as error:
            raise ActivationError(
                f"activation {f.name}: {error}, so signals have no mean field; needed is a continuous function with"
                " finite E[f²] and E[f'²], such as tanh(5h) in place of sign(h)"
            ) from error
        h = scale * rule.nodes
        value, slope = f.phi(h).detach(), f.slope(h).detach()
        second = second_derivative(f.phi, h)
        smooth = not corners(f.slope, kinks(f.phi, max(1.0, scale)))
    return {
        "E[f]": rule.inner(value, 1),
        "E[f²]": rule.inner(value, value),
        "E[f']": rule.inner(slope, 1),
        "E[f'²]": rule.inner(slope, slope),
        "E[f'⁴]": rule.inner(slope**2, slope**2),
        "E[f''²]": rule.inner(second, second) if smooth else math.inf,
        "E[hff']": rule.inner(h * value, slope),
    }
