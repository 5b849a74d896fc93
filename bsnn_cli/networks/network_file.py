"""Load a network of the user's own from a Python file: `network=FILE.py:FUNCTION`, to train or to measure it.

The function returns an `nn.Module`, or a module and its inputs. The file stands for itself, as that of a custom
activation does: its content, the name of the function and its arguments are what a run is identified by, not what it
imports.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsnn_cli.common import source_file
from bsnn_cli.common.random_streams import stream
from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn import custom
from bsnn_cli.settings.config import NetworkConfig
from bsnn_cli.settings.identity import network_name


def source(config: NetworkConfig) -> str | None:
    """Return the text of the file; None if no file is named.

    Raises:
        ConfigError: it cannot be read, or is not the one that `config.fingerprint` tells.
    """
    return None if config.path is None else source_file.source("network", config.path, config.fingerprint)


def identified(config: NetworkConfig, text: str) -> NetworkConfig:
    """Check the network of a config, add the fingerprint of its file, and separate arguments from defaults.

    Raises:
        ConfigError: the text cannot be executed or has no such function, or the function does not take the arguments.
    """
    parameters = inspect.signature(_function(config, text)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    kwargs = {
        name: value
        for name, value in config.kwargs.items()
        if name not in defaults or (type(value), value) != (type(defaults[name]), defaults[name])
    }
    return dataclasses.replace(
        config,
        kwargs=kwargs,
        defaults={name: value for name, value in defaults.items() if isinstance(value, (bool, int, float, str))},
        fingerprint=source_file.fingerprint(text, str(network_name(config))),
    )


def build(config: NetworkConfig, text: str, seed: int) -> tuple[nn.Module, Any]:
    """Build the module and its inputs, None if it has none, with PyTorch's generator at a function of the seed.

    Raises:
        ConfigError: as `identified`; or the function fails, or returns something else.
    """
    key, name = f"network={config.path}", network_name(config)
    function = _function(config, text)
    torch.manual_seed(stream(seed, "network").initial_seed())
    try:
        made = function(**config.kwargs)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{key}: {name} fails ({reason})") from error
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        kind = type(made).__name__
        raise ConfigError(f"{key}: {name} returns {kind}; it must return an nn.Module, or a module and its inputs")
    return module, inputs


def _function(config: NetworkConfig, text: str) -> Callable[..., Any]:
    """Return the function that a config names, and make sure that it takes its arguments."""
    key, name = f"network={config.path}", str(network_name(config))
    path, _ = source_file.parts(str(config.path))
    names = _executed(text, str(path), key)
    function = names.get(name)
    if not callable(function):
        defined = ", ".join(known for known, value in names.items() if callable(value) and known[0] != "_")
        raise ConfigError(f"{key}: {path} defines no function {name}; there is {defined or 'none'}")
    signature = inspect.signature(function)
    try:
        signature.bind(**config.kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: {name}{signature}: {error}; arguments are given as network.kwargs.NAME=…") from error
    return function


@functools.cache
def _executed(text: str, path: str, key: str) -> dict[str, object]:
    """Execute a text, once for all jobs of a sweep and all repeats; it may import what lies beside its file."""
    sys.path.append(str(Path(path).absolute().parent))
    return custom.executed(text, path, key)
