"""The steps of a conversion, and the modules of a network that they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from bsnn_cli.gpn.module import GPN

LEFT = "left"


@dataclass(frozen=True)
class Step:
    """One row of the table that `normalise` returns, and what has to be done for it.

    Attributes:
        module: qualified name.
        kind: name of the class of the module.
        parameter: the parameter that is concerned; empty if it is the module.
        change: what is done; "left" if nothing is.
        reason: why it is left, or what the change brings with it.
        matters: whether `strict` objects to its being left.
        act: makes the change; None if there is none.
    """

    module: str
    kind: str
    parameter: str
    change: str
    reason: str
    matters: bool = False
    act: Callable[[], None] | None = None


def left(name: str, module: nn.Module, reason: str, parameter: str = "", matters: bool = True) -> Step:
    """Return the step that leaves a module, or one parameter of it, as it is."""
    return Step(name, kind(module), parameter, LEFT, reason, matters)


def kind(module: nn.Module) -> str:
    """Return the name of the class of a module, without what parametrisations make of it."""
    return parametrize.type_before_parametrizations(module).__name__


def home(module: nn.Module) -> str:
    """Return the file of `torch.nn.modules` that the class comes from, such as "conv"; "module" for anybody else's."""
    files = (cls.__module__ for cls in type(module).__mro__)
    return next(file for file in files if file.startswith("torch.nn.modules.")).rpartition(".")[2]


def may_be_activation(module: nn.Module) -> bool:
    """Return whether it is an activation of PyTorch, or a user's module of one forward and at most single numbers."""
    if home(module) == "activation":
        return not isinstance(module, nn.MultiheadAttention)
    if home(module) != "module" or module._modules or type(module).forward is nn.Module.forward:
        return False
    return all(parameter.numel() == 1 for parameter in module._parameters.values() if parameter is not None)


def walk(module: nn.Module, name: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once, with the first of its qualified names, in the order of their definition.

    What is inside of a GPN activation, of a parametrisation or of compiled TorchScript belongs to that.
    """
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if isinstance(module, (GPN, torch.jit.ScriptModule)):
        return
    inside = module.parametrizations if parametrize.is_parametrized(module) else None
    for attribute, child in module._modules.items():
        if child is not None and child is not inside:
            yield from walk(child, qualified(name, attribute), seen)


def qualified(name: str, attribute: str) -> str:
    """Return the qualified name of an attribute of a module."""
    return f"{name}.{attribute}" if name else attribute
