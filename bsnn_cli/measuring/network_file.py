"""Load a network of the user's own from a Python file: `bsnn propagate network=FILE.py:FUNCTION`.

The function returns an `nn.Module`, or a module and its inputs. The file stands for itself, as that of a custom
activation does: its content, the name of the function and its arguments are what a measurement is identified by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import decode_source
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsnn_cli.common.random_streams import stream
from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn import activation_file, custom
from bsnn_cli.settings.config import NetworkConfig


def source(config: NetworkConfig) -> str | None:
    """Return the text of the file; None if no file is named.

    Raises:
        ConfigError: it cannot be read.
    """
    if config.path is None:
        return None
    path, _ = _parts(config)
    try:
        return decode_source(path.read_bytes())
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"network={config.path}: cannot read {path}: {reason}") from error


def fingerprint(text: str, config: NetworkConfig) -> str:
    """Return sixteen hexadecimal digits of the file's content and the function's name, not of the file's place."""
    return activation_file.fingerprint(text, _parts(config)[1])


def builder(text: str, config: NetworkConfig) -> Callable[[int], tuple[nn.Module, Any]]:
    """Execute the text, and return a function that maps a seed to the module and its inputs, None if it has none.

    PyTorch's generator is seeded before each call, so that every seed gives weights of its own.

    Raises:
        ConfigError: the text cannot be executed, or has no such function, or the function does not take the arguments
            of `network.kwargs`, fails, or returns something else.
    """
    key, (path, name) = f"network={config.path}", _parts(config)
    names = custom.executed(text, str(path), key)
    function = names.get(name)
    if not callable(function):
        defined = ", ".join(known for known, value in names.items() if callable(value) and known[0] != "_")
        raise ConfigError(f"{key}: {path} defines no function {name}; there is {defined or 'none'}")
    try:
        signature = inspect.signature(function)
        signature.bind(**config.kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: {name}{signature}: {error}; arguments are given as network.kwargs.NAME=…") from error

    def build(seed: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(stream(seed, "network").initial_seed())
        try:
            made = function(**config.kwargs)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{key}: {name} fails ({reason})") from error
        module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(module, nn.Module):
            kind = type(made).__name__
            raise ConfigError(f"{key}: {name} returns {kind}; it must return an nn.Module, or a module and its inputs")
        return module, inputs

    return build


def _parts(config: NetworkConfig) -> tuple[Path, str]:
    file, _, function = str(config.path).rpartition(":")
    return Path(file), function
