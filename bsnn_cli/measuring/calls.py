"""Follow the calls of a module's layers by hooks, with what enters each of them and the weights that it uses.

During a call each weight is replaced by a leaf of the graph that shares its values. So the gradient of a weight is that
of this call alone, of a frozen one too, and the `grad` of the module's parameters stays as it is. What enters a call is
remembered as an edge of the graph: an in-place operation on the tensor does not move it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils import parametrize

from bsnn_cli.gpn.module import GPN
from bsnn_cli.measuring.elementwise import Elementwise, elementwise
from bsnn_cli.measuring.quantities import lengths_and_angle, mean_square, pseudo_linearity, slopes, wide

PARAMETRIZATIONS = "parametrizations"
"""Child of a parametrised module, which computes its weights and is no layer."""


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        module: qualified name of the module.
        kind: name of its class.
        index: of this call among those of the module, from 0.
        values: what is measured in the forward pass, by the names of `CallRecord`.
        takes_signal: whether a tensor of a floating dtype enters.
        edge: of the graph, where this tensor enters; None without a graph, as for integers.
        weights: leaves of the graph in place of the weights, without biases.
        derivative: all f'(h), float32 on the CPU, if they are wanted and it is an activation.
        counts: whether it is a row: no other layer is called inside, and it returns.
    """

    module: str
    kind: str
    index: int
    values: dict[str, float] = field(default_factory=dict)
    takes_signal: bool = False
    edge: GradientEdge | None = None
    weights: list[Tensor] = field(default_factory=list)
    derivative: Tensor | None = None
    counts: bool = True


@dataclass
class _Frame:
    """A call that has not returned yet.

    Attributes:
        call: None inside of a layer.
        restore: puts back the parameters.
        h: what enters an activation.
        view: what the module would have changed in place, had it not been given a copy.
    """

    module: nn.Module
    call: Call | None
    restore: Callable[[], None] = lambda: None
    h: Tensor | None = None
    view: Tensor | None = None


class Recorder:
    """Hooks on all modules of a network that record the calls of its layers, in the order in which they begin.

    A layer is a module without children, an activation or attention that contains one, or any other module in whose
    call no child is called.

    Args:
        module: the network.
        batch: number B of samples.
        batch_dim: dimension of tensors that counts them.
        keep_derivatives: whether to keep all slopes of activations.
    """

    def __init__(self, module: nn.Module, batch: int, batch_dim: int, keep_derivatives: bool) -> None:
        self.batch, self.batch_dim, self.keep_derivatives = batch, batch_dim, keep_derivatives
        self.names = layer_names(module)
        self.leaves = {child for child in self.names if not _children(child) or isinstance(child, WHOLE)}
        self.activations: dict[nn.Module, Elementwise] = {}
        for child in self.leaves:
            slope = elementwise(child)
            if slope is not None:
                self.activations[child] = slope
        self.counts: dict[nn.Module, int] = {}
        self._calls: list[Call] = []
        self._stack: list[_Frame] = []
        self._last: tuple[Tensor, int, dict[str, float]] | None = None
        self._failure: tuple[BaseException, str] | None = None

    @property
    def calls(self) -> list[Call]:
        """The calls of layers so far."""
        return [call for call in self._calls if call.counts]

    def attach(self) -> None:
        """Register the hooks; to be removed with all else that a measurement changes in the module."""
        for module in self.names:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave, always_call=True)

    def signal(self, x: Tensor) -> dict[str, float]:
        """Measure a tensor that enters a layer or leaves the network."""
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:  # it may enter several layers
            rows = self._rows(x.detach())
            if rows is not None:
                square, separation = lengths_and_angle(rows)
            else:
                square, separation = mean_square(x.detach()) if x.numel() else math.nan, math.nan
            self._last = x, x._version, {"forward_norm": square, "one_minus_cosine": separation}
        return self._last[2]

    def _rows(self, x: Tensor) -> Tensor | None:
        """Return (B, n), a row for each sample; None if the tensor does not tell the samples apart."""
        if x.dim() <= self.batch_dim or x.shape[self.batch_dim] != self.batch or not x.numel():
            return None
        return x.movedim(self.batch_dim, 0).reshape(self.batch, -1)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        outer = self._stack[-1] if self._stack else None
        if outer is not None and (outer.call is None or outer.module in self.leaves):
            self._stack.append(_Frame(module, None))
            return None
        index = self.counts[module] = self.counts.get(module, -1) + 1
        call = Call(self.names[module], type_name(module), index)
        self._calls.append(call)
        frame = _Frame(module, call)
        self._stack.append(frame)
        x = next(signals([arguments, named]), None)
        if x is not None:
            call.takes_signal = True
            call.values |= self.signal(x)
            call.edge = get_gradient_edge(x) if x.requires_grad else None
            if module in self.activations:
                frame.h = x.detach().clone()  # it may be changed in place
        call.weights, frame.restore = aliased(module, module in self.leaves)
        if x is not None and arguments and x is arguments[0] and _changes_a_view(module, x):
            # The edge of a view is none of the graph any more once the view is changed in place.
            frame.view = x
            return (x.clone(), *arguments[1:]), named
        return None

    def place_of(self, error: Exception) -> str:
        """Return the qualified name of the module in which an error was raised; empty for the network itself."""
        return self._failure[1] if self._failure is not None and self._failure[0] is error else ""

    @torch.no_grad()
    def _leave(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        frame = self._stack[-1]
        error = sys.exc_info()[1] if output is None else None
        f = next(signals(output), None)
        if frame.call is not None and error is not None:
            frame.call.counts = False
            if self._failure is None or self._failure[0] is not error:  # not yet told by a module inside
                self._failure = error, frame.call.module
        elif frame.call is not None and frame.h is not None and f is not None:
            self._measure_slopes(frame.call, frame.h, f.detach(), self.activations[module])
        self._stack.pop().restore()
        if frame.view is not None and isinstance(output, Tensor):
            with torch.enable_grad():
                frame.view.copy_(output)
        if frame.call is not None and self._stack and self._stack[-1].call is not None:
            self._stack[-1].call.counts = False

    def _measure_slopes(self, call: Call, h: Tensor, f: Tensor, activation: Elementwise) -> None:
        derivative = wide(activation.derivative(h))
        call.values |= slopes(wide(h), derivative, activation.largest)
        of_inputs, of_outputs = self._rows(h), self._rows(f)
        if of_inputs is not None and of_outputs is not None:
            call.values["pseudo_linearity"] = pseudo_linearity(wide(of_inputs), wide(of_outputs))
        if self.keep_derivatives:
            call.derivative = derivative.flatten().float().cpu()


WHOLE = (GPN, nn.MultiheadAttention)
"""Modules with children that count as one layer."""


def layer_names(module: nn.Module) -> dict[nn.Module, str]:
    """Return the modules of a network with their qualified names; compiled ones go by the names of the originals."""
    names = {}
    for name, child in module.named_modules():
        parts = name.split(".")
        if PARAMETRIZATIONS not in parts:
            names[child] = ".".join(part for part in parts if part != "_orig_mod")
    return names


def type_name(module: nn.Module) -> str:
    """Return the name of a module's class, of a parametrised one as it was before."""
    return str(parametrize.type_before_parametrizations(module).__name__)


def _changes_a_view(module: nn.Module, x: Tensor) -> bool:
    return bool(getattr(module, "inplace", False)) and x.requires_grad and x._is_view()


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for name, child in module.named_children() if name != PARAMETRIZATIONS]


def aliased(module: nn.Module, leaf: bool) -> tuple[list[Tensor], Callable[[], None]]:
    """Replace the parameters that a module may use in its call by leaves of the graph that share their values.

    Args:
        module: about to be called.
        leaf: whether it is known to compute by itself. Otherwise parametrised weights, which its children may compute
            in calls of theirs, are left alone.

    Returns:
        the leaves in place of weights, without biases; a function that puts the parameters back.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    kinds: list[tuple[nn.Module, type[nn.Module]]] = []
    leaves: dict[int, Tensor] = {}  # of a tensor that has two names, there is one
    weights: list[Tensor] = []

    def replace(place: dict[str, Any], name: str, tensor: Tensor) -> None:
        if id(tensor) not in leaves:
            leaves[id(tensor)] = tensor.detach().requires_grad_()
            if "bias" not in name:
                weights.append(leaves[id(tensor)])
        replaced.append((place, name, place.get(name)))
        place[name] = leaves[id(tensor)]

    for owner in layer_names(module):
        attributes, registered = vars(owner), vars(owner)["_parameters"]
        computed: dict[str, Tensor] = {}
        if parametrize.is_parametrized(owner):
            if not leaf:
                continue
            computed = {name: getattr(owner, name) for name in getattr(owner, PARAMETRIZATIONS)}
            kinds.append((owner, type(owner)))
            owner.__class__ = parametrize.type_before_parametrizations(owner)  # which has no such property
            for name, tensor in computed.items():
                replace(registered, name, tensor)
        computed_by_hooks = {name: tensor for name, tensor in attributes.items() if _needs_gradient(tensor)}
        sources = tuple(f"{name}_" for name in computed_by_hooks)  # weight_g and weight_v, weight_orig
        parameters = {
            name: tensor
            for name, tensor in registered.items()
            if tensor is not None and name not in computed and not name.startswith(sources)
        }
        for place, used in ((registered, parameters), (attributes, computed_by_hooks)):
            for name, tensor in used.items():
                if tensor.is_floating_point():
                    replace(place, name, tensor)

    def restore() -> None:
        for owner, kind in kinds:
            owner.__class__ = kind
        for place, name, tensor in reversed(replaced):
            if tensor is None:
                del place[name]
            else:
                place[name] = tensor

    return weights, restore


def _needs_gradient(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.requires_grad


def signals(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a floating dtype in nested tuples, lists, mappings and dataclasses."""
    return (tensor for tensor in tensors(value) if tensor.is_floating_point() and tensor.layout == torch.strided)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, entry.name) for entry in dataclasses.fields(value)])


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and dicts with each tensor replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items: Iterable[Any] = (mapped(item, change) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
