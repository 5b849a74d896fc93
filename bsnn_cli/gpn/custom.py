"""Load an activation of the user's own from a Python file: `activation=custom activation.path=FILE.py:FUNCTION`.

The function maps tensors of any shape and floating dtype, entry by entry, in differentiable torch operations. If the
file also has FUNCTION_derivative, that is φ'; otherwise autograd gives it. The file stands for itself: its content and
the name of the function are what a run is identified by, and a run directory keeps a copy.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bsnn_cli.common import source_file
from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn import activations
from bsnn_cli.gpn.activations import Activation, normalise
from bsnn_cli.gpn.functions import Phi, autograd_pair, evaluating, require_elementwise, require_likeness
from bsnn_cli.gpn.tailored import TailoredActivation, has_corner, tailored
from bsnn_cli.settings.choices import CUSTOM
from bsnn_cli.settings.config import ActivationConfig


@dataclass(frozen=True, kw_only=True)
class CustomActivation(Activation):
    """A function of the user's. Pickles and copies by the source of its file.

    Attributes:
        origin: arguments of `compiled` that make it.
    """

    origin: tuple[str, str, str]

    def __reduce__(self) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
        return compiled, self.origin


def activation(config: ActivationConfig) -> Activation:
    """Return the activation φ of a config, named or from a file, tailored to a depth if the config says so.

    Raises:
        ActivationError: the file has no such function, the function is no activation, or it cannot be tailored so.
        ConfigError: the file cannot be read, or is not the one that `config.fingerprint` tells.
    """
    base = untailored(config)
    if config.separation is None:
        return base
    if config.tailored_depth is None:
        raise ConfigError("activation.tailored_depth: is not known without a network; say how many layers")
    return tailored(base, config.separation, config.tailored_depth, config.parameter)


def untailored(config: ActivationConfig) -> Activation:
    """Return the activation of a config before tailoring; errors as in `activation`."""
    if config.name != CUSTOM:
        return activations.get(config.name)
    text = source_file.source("activation.path", str(config.path), config.fingerprint)
    path, function = source_file.parts(str(config.path))
    return compiled(text, function, str(path))


def identified(config: ActivationConfig) -> ActivationConfig:
    """Check the activation of a config, and add the fingerprint of its file.

    `parameter` becomes "auto" where it is what was moved before there was that key, so that older runs are found again.

    Raises:
        ActivationError, ConfigError: as `activation`.
    """
    base = untailored(config)
    parameter = config.parameter
    if config.separation is not None:
        known = activation(config)  # a separation that is out of reach is found here, before anything is begun
        if isinstance(base, CustomActivation) and isinstance(known, TailoredActivation) and parameter is not None:
            before = "share" if has_corner(base.phi) else "gain"
            parameter = "auto" if known.parameter == before else known.parameter
    if not isinstance(base, CustomActivation):
        return config
    text, function, _ = base.origin
    return dataclasses.replace(config, fingerprint=source_file.fingerprint(text, function), parameter=parameter)


@functools.cache
def compiled(text: str, function: str, path: str) -> Activation:
    """Execute a source text, and return the activation that it defines, checked to be one.

    Args:
        text: Python; executed once in a process.
        function: its name.
        path: where the text comes from, for messages.

    Raises:
        ActivationError: the text cannot be executed, has no such function, or the function is no activation.
    """
    key = f"activation.path={path}:{function}"
    names = executed(text, path, key)
    phi, derivative = names.get(function), names.get(f"{function}_derivative")
    if not callable(phi):
        defined = ", ".join(name for name, value in names.items() if callable(value) and name[0] != "_")
        raise ActivationError(f"{key}: {path} defines no function {function}; there is {defined or 'none'}")
    slope: Phi = derivative if callable(derivative) else lambda h: autograd_pair(phi, h)[1]

    def pull_back(g: Tensor, h: Tensor) -> Tensor:
        with torch.enable_grad():  # signals are measured without
            return g * slope(h)

    custom = CustomActivation(function, function, phi, pull_back, origin=(text, function, path))
    try:
        check(custom)
    except ActivationError as error:
        raise ActivationError(f"{key}: {str(error).removeprefix(f'activation {function}: ')}") from error
    return custom


def executed(text: str, path: str, key: str) -> dict[str, object]:
    """Execute a source text as a module of its own, and return what it defines."""
    module = ModuleType(f"bsnn_activation_{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for what it defines
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ActivationError(f"{key}: {path} cannot be executed ({reason})") from error
    return vars(module)


def check(candidate: Activation) -> None:
    """Raise `ActivationError` unless φ is elementwise, keeps its input and has a GPN form, and φ' is its derivative."""
    with evaluating(candidate.name):
        require_elementwise(candidate.name, candidate.phi)
        for dtype in (torch.float64, torch.float32):
            h = torch.linspace(-3, 3, 64, dtype=dtype, device="cpu").view(4, 16)
            before = h.clone()
            for value in (candidate.phi(h), candidate.derivative(h)):
                require_likeness(candidate.name, value, h)
            if not torch.equal(h, before):
                raise ActivationError(f"activation {candidate.name}: changes its input; return a new tensor instead")
        normalise(candidate)
