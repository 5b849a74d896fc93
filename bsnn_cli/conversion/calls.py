"""Find activations that a module calls as functions in its forward, where nothing can replace them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from bsnn_cli.conversion.plan import Step, left
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


def steps(modules: Mapping[str, nn.Module]) -> Iterator[Step]:
    """Report the activations called in a forward that is not PyTorch's, and the forwards that cannot be traced."""
    for name, module in modules.items():
        if isinstance(module, (GPN, torch.jit.ScriptModule)) or type(module).forward.__module__.startswith("torch.nn."):
            continue
        calls, failure = functional_activations(module)
        if calls:
            times = ", ".join(function if count == 1 else f"{function} × {count}" for function, count in calls.items())
            yield left(name, module, f"calls {times} in its forward; a module in its place can be replaced")
        if failure:
            more = "further functional activations" if calls else "functional activations"
            yield left(name, module, f"{more} not looked for: forward cannot be traced ({failure})")


def functional_activations(module: nn.Module) -> tuple[Counter[str], str]:
    """Return how often a forward calls which activations, and the reason if it cannot be followed to its end."""
    tracer = _Forward()
    failure = ""
    with torch.random.fork_rng(devices=[]):
        try:
            tracer.trace(_expendable(module))
        except Exception as error:  # noqa: BLE001 - a forward may do anything
            failure = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    graph = getattr(tracer, "graph", None)
    names = [_name(node.target) for node in graph.nodes if node.op in ("call_function", "call_method")] if graph else []
    return Counter(name for name in names if name in FUNCTIONS), failure


def _name(target: Any) -> str:
    return str(target if isinstance(target, str) else getattr(target, "__name__", "")).removesuffix("_")


def _expendable(module: nn.Module) -> nn.Module:
    """Return a copy whose attributes a forward may change; it shares its tensors and the modules that it calls."""
    shared = [*module._parameters.values(), *module._buffers.values(), *module._modules.values()]
    return copy.deepcopy(module, {id(value): value for value in shared if value is not None})
