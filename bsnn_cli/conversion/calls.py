"""Find activations that a module calls as functions in its forward, where nothing can replace them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bsnn_cli.conversion.plan import Step, left, may_be_activation
from bsnn_cli.gpn.module import GPN

FUNCTIONS = {
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "threshold", "hardtanh", "hardswish", "hardsigmoid"),
    *("elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "logsigmoid", "tanhshrink", "glu"),
    *("softshrink", "hardshrink", "tanh", "sigmoid", "erf", "sin", "logit", "arctan", "atan"),
}
"""Names of the functions and methods of PyTorch that serve as activations; with `_` behind them they work in place."""


class _Forward(fx.Tracer):
    """Traces one forward: the modules that it calls are leaves, and its parameters and buffers stay untouched."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


@dataclass(frozen=True)
class Calls:
    """The activations that a forward calls.

    Attributes:
        functions: how often it calls which function or method.
        gates: the submodules whose output it multiplies with another signal.
        failure: the reason why it could not be followed to its end; empty if it was.
    """

    functions: Counter[str]
    gates: set[nn.Module]
    failure: str


def follow(modules: Mapping[str, nn.Module]) -> dict[str, Calls]:
    """Trace every forward that is neither PyTorch's own nor that of an activation; by qualified name."""
    return {
        name: _calls_of(module)
        for name, module in modules.items()
        if not isinstance(module, (GPN, torch.jit.ScriptModule))
        and not type(module).forward.__module__.startswith("torch.nn.")
        and not may_be_activation(module)
    }


def steps(modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]) -> Iterator[Step]:
    """Report the activations that are called as functions, and the forwards that cannot be traced."""
    for name, called in calls.items():
        functions = called.functions.items()
        if functions:
            times = ", ".join(function if count == 1 else f"{function} × {count}" for function, count in functions)
            reason = f"calls {times} in its forward; a module in its place can be replaced"
            yield left(name, modules[name], reason)
        if called.failure:
            more = "further functional activations" if functions else "functional activations"
            reason = f"{more} not looked for: forward cannot be traced ({called.failure})"
            yield left(name, modules[name], reason)


def _calls_of(module: nn.Module) -> Calls:
    tracer = _Forward()
    failure = ""
    with torch.random.fork_rng(devices=[]):
        try:
            tracer.trace(_expendable(module))
        except Exception as error:  # noqa: BLE001 - a forward may do anything
            failure = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    nodes = tracer.graph.nodes if hasattr(tracer, "graph") else ()
    names = [_name(node.target) for node in nodes if node.op in ("call_function", "call_method")]
    return Calls(Counter(name for name in names if name in FUNCTIONS), {*_gates(module, nodes)}, failure)


def _gates(module: nn.Module, nodes: Iterable[fx.Node]) -> Iterator[nn.Module]:
    """Yield the submodules whose output is multiplied with another value that is computed from the input."""
    signals: set[fx.Node] = set()
    for node in nodes:  # each after those that it is computed from
        entering = [other for other in node.all_input_nodes if other in signals]
        if node.op == "placeholder" or entering:
            signals.add(node)
        if len(entering) == 2 and _name(node.target) in ("mul", "imul", "multiply"):
            yield from (_last(module.get_submodule(str(x.target))) for x in entering if x.op == "call_module")


def _last(module: nn.Module) -> nn.Module:
    """Return the module that the output comes from."""
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[-1]
    return module


def _name(target: Any) -> str:
    return str(target if isinstance(target, str) else getattr(target, "__name__", "")).removesuffix("_")


def _expendable(module: nn.Module) -> nn.Module:
    """Return a copy whose attributes a forward may change; it shares its tensors and the modules that it calls."""
    shared = [*module._parameters.values(), *module._buffers.values(), *module._modules.values()]
    return copy.deepcopy(module, {id(value): value for value in shared if value is not None})
