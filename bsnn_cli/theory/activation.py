"""Take an activation in any form that a user gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn import custom, meanfield
from bsnn_cli.gpn.activations import Activation, name_of, normalise
from bsnn_cli.gpn.functions import Phi, evaluating, in_double, require_elementwise
from bsnn_cli.settings.choices import CUSTOM, MADE_CHOICES
from bsnn_cli.settings.config import ActivationConfig
from bsnn_cli.settings.options import complaint

USUAL_DEPTH = 200
"""Layers that a depth-aware form is tailored to where no depth is given."""


@dataclass(frozen=True, eq=False)
class Given:
    """An activation f, as it is used in a network.

    Attributes:
        name: for people.
        phi, slope: f and f', of float64 tensors; they keep what they are given.
        base: name of a known activation without "_gpn" or "_gpn_d", which gives it its colour; "" otherwise.
    """

    name: str
    phi: Phi
    slope: Phi
    base: str = ""

    def transfer(self) -> meanfield.Transfer:
        """Prepare f for the integrals over signals; errors as `meanfield.transfer`."""
        return meanfield.prepared(self.phi, self.slope)


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Make new tensors on the CPU and let autograd follow them, whatever the caller has switched.

    What grows beyond floats is followed as infinite, without a warning.
    """
    with torch.inference_mode(False), torch.device("cpu"), np.errstate(over="ignore", invalid="ignore"):
        yield


def given(activation: str | Activation | Phi | Given, depth: int = USUAL_DEPTH) -> Given:
    """Take a name, a module or a function as an activation.

    Args:
        activation: a name as on the command line, such as "tanh", "tanh_gpn" or "tanh_gpn_d"; an `nn.Module`, such as
            `GPN("tanh")`; or an elementwise function of tensors.
        depth: layers that "_gpn_d" is tailored to.

    Raises:
        ActivationError: an unknown name, or no elementwise function that autograd differentiates.
    """
    if isinstance(activation, Given):
        return activation
    if isinstance(activation, str):
        with computing():
            return _named(activation, depth)
    if isinstance(activation, Activation):
        return Given(activation.name, activation.phi, activation.derivative, activation.name)
    if not callable(activation):
        raise ActivationError(
            f"activation {activation!r}: must be a name such as 'tanh_gpn', a module such as torch.nn.SiLU(), or an"
            " elementwise function of tensors"
        )
    name = _module_name(activation) if isinstance(activation, nn.Module) else name_of(activation)
    with evaluating(name), computing():
        phi = in_double(activation)
        require_elementwise(name, phi)
    return Given(name, phi, meanfield.slope_of(phi, phi))


def _named(name: str, depth: int) -> Given:
    choices = {choice: keys for choice, keys in MADE_CHOICES["activation"].items() if keys["name"] != CUSTOM}
    if name not in choices:
        raise ActivationError(complaint("activation", name, "one of " + ", ".join(choices), choices))
    config = ActivationConfig(**choices[name], tailored_depth=depth)
    return of_config(config, name)


def of_config(config: ActivationConfig, name: str = "") -> Given:
    """Take the activation of a config, with its normalisation; errors as in `custom.activation`."""
    phi = custom.activation(config)
    name = name or phi.name + ("_gpn" if config.gpn and config.separation is None else "")
    base = phi.name.removesuffix("_d")
    if not config.gpn:
        return Given(name, phi.phi, phi.derivative, base)
    solution = normalise(phi, config.root)
    a, b = solution.a, solution.b
    return Given(name, lambda h: a * phi.phi(h) + b, lambda h: a * phi.derivative(h), base)


def _module_name(module: nn.Module) -> str:
    """Return what a module calls itself, such as `GPN(tanh)` or `SiLU()`, where that is short, else its class."""
    kind, name, words = type(module).__name__, getattr(module, "name", None), repr(module)
    if isinstance(name, str):
        return f"{kind}({name})"
    return words if "\n" not in words and len(words) <= 30 else kind
