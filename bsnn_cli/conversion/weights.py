"""Make the weights of a network orthogonal, each drawn by its name, and set its biases to 0."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from bsnn_cli.conversion.activations import KEPT
from bsnn_cli.conversion.matrices import Layout, draw, layouts, parameter_names, words
from bsnn_cli.conversion.plan import Step, home, kind, left, qualified
from bsnn_cli.gpn.module import GPN

Owners = Mapping[int, list[tuple[nn.Module, str]]]
"""The modules, and the names in them, that hold each parameter, by the parameter's id."""


def owners_of(module: nn.Module) -> Owners:
    """Return who holds each parameter of a module and its submodules."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for attribute, parameter in part._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((part, attribute))
    return owners


def steps(modules: Mapping[str, nn.Module], owners: Owners, seed: int) -> Iterator[Step]:
    """Plan the drawing of all weights; of weights that several layers share, with the first of them."""
    names = {module: name for name, module in modules.items()}
    for name, module in modules.items():
        known = dict(layouts(module))
        for attribute, layout in known.items():
            reason = layout if isinstance(layout, str) else obstacle(module, attribute, layout, owners)
            if reason:
                yield left(name, module, reason, attribute)
            elif not isinstance(layout, str):
                yield _step(name, module, attribute, layout, names, owners, seed)
        for attribute in parameter_names(module) if may_have_weights(module) and not known else ():
            if getattr(module, attribute).dim() >= 2:
                yield left(name, module, "a parameter of a layer that is not known here", attribute)


def may_have_weights(module: nn.Module) -> bool:
    """Return whether parameters of the module itself can be weights: neither of activations nor of normalisations."""
    return home(module) not in (*KEPT, "activation") and not isinstance(module, (GPN, torch.jit.ScriptModule))


def obstacle(module: nn.Module, attribute: str, layout: Layout, owners: Owners) -> str:
    """Return why a weight cannot be assigned; empty if it can."""
    if parametrize.is_parametrized(module, attribute):
        return _obstacle_of_parametrisation(module, attribute, layout)
    weight = module._parameters.get(attribute)
    for holder, name in owners.get(id(weight), ()):
        if dict(layouts(holder)).get(name) != layout:
            return (
                f"shared with the {name} of a module of class {kind(holder)}, which needs another weight than an"
                " orthogonal one"
            )
    return unchangeable(weight)


def unchangeable(weight: Tensor | None) -> str:
    """Return why a parameter, None where there is none of its name, has no values to change; empty if it has."""
    if weight is None:
        return "computed by something else before each forward, such as the old weight_norm; parametrisations are known"
    if isinstance(weight, UninitializedParameter):
        return "not initialised yet; run the network once"
    if not weight.is_floating_point():
        return f"of dtype {weight.dtype}; weights of a floating dtype can be orthogonal"
    if weight.is_inference():
        return "made in inference mode, where PyTorch lets nobody change it; make the network outside"
    if weight.is_meta:
        return "on the meta device, where weights have no values"
    return ""


def _obstacle_of_parametrisation(module: nn.Module, attribute: str, layout: Layout) -> str:
    """Try on a copy whether a parametrisation gives the weight that is assigned to it."""
    twin = copy.deepcopy(module)
    shape = getattr(twin, attribute).shape
    wanted = draw(layout, shape, 0, "trial")
    makers = ", ".join(type(maker).__name__ for maker in twin.get_submodule(f"parametrizations.{attribute}").children())
    try:
        assign(twin, attribute, wanted)
        made = getattr(twin, attribute).detach().double().cpu()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"its parametrisation {makers} takes no assigned weight ({str(error).splitlines()[0]})"
    rounding = 64 * torch.finfo(getattr(twin, attribute).dtype).eps
    if torch.allclose(made, wanted, rtol=0, atol=rounding * layout.scale(shape)):
        return ""
    return f"its parametrisation {makers} makes another weight of the orthogonal one that is assigned"


def _step(
    name: str,
    module: nn.Module,
    attribute: str,
    layout: Layout,
    names: Mapping[nn.Module, str],
    owners: Owners,
    seed: int,
) -> Step:
    shape = getattr(module, attribute).shape
    change, reason = words(layout, shape)
    biases = biases_of(module)
    holders = owners.get(id(module._parameters.get(attribute)), [(module, attribute)])
    first = qualified(names[holders[0][0]], holders[0][1])
    tied = first != qualified(name, attribute)

    def act() -> None:
        if not tied:
            assign(module, attribute, draw(layout, shape, seed, first))
        for bias in biases:
            assign(module, bias, torch.zeros(()))

    return Step(
        module=name,
        kind=kind(module),
        parameter=attribute,
        change=f"{change}; bias 0" if biases else change,
        reason=f"shared with {first}" if tied else reason,
        act=act,
    )


def biases_of(module: nn.Module) -> list[str]:
    """Return the names of the biases of a layer; bias_k and bias_v of attention are tokens, not biases."""
    prefix = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
    return [name for name in parameter_names(module) if name.startswith(prefix)]


def assign(module: nn.Module, attribute: str, value: Tensor) -> None:
    """Give a parameter a value in place, or through its parametrisation; dtype and device stay."""
    with torch.no_grad():
        current = getattr(module, attribute)
        value = value.to(current.device, current.dtype).expand(current.shape)
        if parametrize.is_parametrized(module, attribute):
            setattr(module, attribute, value)
        else:
            current.copy_(value)
