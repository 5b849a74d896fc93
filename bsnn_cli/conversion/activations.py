"""Replace the activations of a network by their normalised forms, wherever they are held by a module."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bsnn_cli.conversion.calls import FUNCTIONS
from bsnn_cli.conversion.plan import LEFT, Step, home, kind, left, may_be_activation, qualified
from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn import activations
from bsnn_cli.gpn.functions import MANY, evaluating, in_double
from bsnn_cli.gpn.module import GPN

KEPT = {
    "batchnorm": "normalises by itself: lengths and gradients are its own; GPN is meant to do without it",
    "instancenorm": "normalises by itself: lengths and gradients are its own; GPN is meant to do without it",
    "normalization": "normalises by itself: lengths and gradients are its own; GPN is meant to do without it",
    "dropout": "random: adds to lengths in training",
    "pooling": "no activation: an average shortens signals, a maximum shifts them",
    "sparse": "an embedding: rows drawn from N(0, 1) have unit length per unit as they are",
}
"""Modules of PyTorch, by their files, that stay though they change norms; other files have no bearing on norms."""

NOT_ELEMENTWISE = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)

ATTRIBUTES = ("activation", "activation_fn", "activation_function", "act", "act_fn", "act_layer", "nonlinearity", "phi")
"""Names under which modules hold a function as their activation."""

Solution = GPN | ActivationError | None
"""The normalised form of an activation, the reason why it has none, or None for a linear function."""


def steps(
    modules: Mapping[str, nn.Module], gates: Container[nn.Module], root: str, depth: int | None
) -> Iterator[Step]:
    """Plan the replacement of every activation that a module or an attribute of a module is, but for gates."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in modules.values()}
    for parent in modules.values():
        for attribute, child in parent._modules.items():
            if child in places:
                places[child].append((parent, attribute))
    known: dict[bytes, Solution] = {}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            yield left(name, module, "compiled TorchScript cannot be changed; normalise what it was compiled from")
        elif isinstance(module, GPN):
            yield left(name, module, "is normalised already", matters=False)
        elif home(module) in KEPT:
            yield left(name, module, KEPT[home(module)], matters=False)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            yield left(name, module, "computes its activations inside, where nothing can replace them")
        elif isinstance(module, NOT_ELEMENTWISE):
            yield left(name, module, "not elementwise", matters=False)
        elif may_be_activation(module) and module in gates:
            yield left(name, module, "a gate: its output is multiplied with another signal", matters=False)
        elif may_be_activation(module):
            yield _step(name, kind(module), module, places[module], root, depth, known)
        for attribute, function in held_functions(module):
            title = f"function {activations.name_of(function)}"
            place = [(module, attribute)]
            yield _step(qualified(name, attribute), title, function, place, root, depth, known)


def held_functions(module: nn.Module) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield the attributes that hold a function, not a module, which by its name or theirs is an activation."""
    for attribute, value in vars(module).items():
        is_function = callable(value) and not isinstance(value, (type, nn.Module))
        if is_function and (attribute in ATTRIBUTES or getattr(value, "__name__", "") in FUNCTIONS):
            yield attribute, value


def _step(
    name: str,
    title: str,
    phi: Any,
    places: list[tuple[nn.Module, str]],
    root: str,
    depth: int | None,
    known: dict[bytes, Solution],
) -> Step:
    key = _content(phi)
    if key not in known:
        known[key] = solve(phi, root, depth)
    solution = known[key]
    if isinstance(solution, ActivationError):
        return Step(name, title, "", LEFT, str(solution), matters=True)
    if solution is None:
        return Step(name, title, "", LEFT, "linear, no activation: its normalised form would be the identity")
    gpn = copy.deepcopy(solution)
    gpn.activation = phi  # itself, with its hooks and its parameters
    gpn.train(not isinstance(phi, nn.Module) or phi.training)

    def act() -> None:
        for parent, attribute in places:
            setattr(parent, attribute, gpn)
            if isinstance(parent, nn.TransformerEncoderLayer):  # its fused kernel has a ReLU and a GELU of its own
                parent.activation_relu_or_gelu = 0

    constants = {**gpn.tailoring.changes(), "a": gpn.a, "b": gpn.b}
    words = ", ".join(f"{key}={value:.4g}" for key, value in constants.items())
    drifts = "a and b are of its parameters as they are now, and drift as these are trained"
    reason = drifts if [*gpn.parameters()] else ""
    return Step(name, title, "", f"activation → GPN({gpn.name}, {words}, root={gpn.root})", reason, act=act)


def _content(phi: Any) -> bytes:
    """Return the same for activations that are the same, so that each is solved once."""
    try:
        return pickle.dumps(phi)
    except Exception:  # noqa: BLE001 - a function without a name, a module with a lock: each has an error of its own
        return b"%d" % id(phi)


def solve(phi: Any, root: str, depth: int | None) -> Solution:
    """Return the normalised form of a module or function, None if it is linear, or the reason why there is none."""
    try:
        with evaluating(activations.name_of(phi)):
            twin = _single(_without_hooks(copy.deepcopy(phi))) if isinstance(phi, nn.Module) else phi
            if isinstance(twin, nn.Module):
                _require_one_function(twin)
            solution = activations.normalise(twin, root)
            variance = solution.second_moment - solution.mean**2
            if math.isclose(variance, solution.derivative_second_moment, rel_tol=1e-12):
                return None
            return GPN(twin, root, depth)
    except ActivationError as error:
        return error


def _without_hooks(module: nn.Module) -> nn.Module:
    """Take the hooks of a module away: they are for the network's signals, not for what is tried here."""
    for name, hooks in vars(module).items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            hooks.clear()
    return module


def _single(module: nn.Module) -> nn.Module:
    """Return a PReLU with one slope for one with many, if they are equal; any other module itself."""
    if not isinstance(module, nn.PReLU) or module.num_parameters == 1:
        return module
    slopes = module.weight.detach().double()
    if slopes.min() < slopes.max():
        raise ActivationError(
            f"activation PReLU: its {len(slopes)} slopes differ, so that no a and b are right for all of its channels;"
            " a PReLU of equal slopes, as at its start, has them"
        )
    return nn.PReLU(init=float(slopes[0]), dtype=torch.float64)


def _require_one_function(module: nn.Module) -> None:
    """Raise if a module is another function in training than in evaluation, as one that is random in training is."""
    name = activations.name_of(module)
    h = torch.linspace(-3, 3, MANY, dtype=torch.float64, device="cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trained, evaluated = (in_double(module.train(mode))(h) for mode in (True, False))
        if not torch.equal(trained.nan_to_num(), evaluated.nan_to_num()):
            raise ActivationError(
                f"activation {name}: is another function in training than in evaluation, or random;"
                " its normalised form could be right for one of them only"
            )
