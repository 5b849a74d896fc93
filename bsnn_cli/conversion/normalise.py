"""Turn a network into its GPN version, in place."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import pandas as pd
import torch
from torch import nn

from bsnn_cli.conversion.activations import steps as activation_steps
from bsnn_cli.conversion.calls import follow
from bsnn_cli.conversion.calls import steps as call_steps
from bsnn_cli.conversion.constraints import CONSTRAINTS
from bsnn_cli.conversion.constraints import steps as constraint_steps
from bsnn_cli.conversion.plan import LEFT, Step, kind, walk
from bsnn_cli.conversion.weights import owners_of
from bsnn_cli.conversion.weights import steps as weight_steps
from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn.activations import ROOTS
from bsnn_cli.settings.options import complaint

COLUMNS = ("module", "kind", "parameter", "change", "reason")


def normalise(
    module: nn.Module,
    *,
    root: str = "auto",
    depth: int | None = None,
    weights: str | None = "orthogonal",
    constraint: str | None = None,
    seed: int = 0,
    strict: bool = False,
) -> pd.DataFrame:
    """Turn a network into its GPN version, in place, and return a table of what was changed and what was left.

    Each elementwise activation that a module or an attribute holds becomes `GPN(activation)`, around the activation
    itself: shared ones stay shared, parameters and hooks stay.

    Each weight of `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d`, `MultiheadAttention` and of recurrent layers and
    cells is drawn anew from the orthogonal matrices, uniformly; each gate, group and projection by itself. Of a
    convolution it is the centre of the kernel, the rest of which becomes 0 (delta-orthogonal; Xiao et al. 2018, arXiv
    1806.05393), or the whole kernel where stride and kernel are equal, so that its patches do not overlap. Where n_out
    and n_in differ, the matrices are semi-orthogonal, times √max(1, n_out/n_in): then ‖Wx‖²/n_out is ‖x‖²/n_in on
    average, and squared gradients per unit change by n_out/n_in on their way back. Biases of these layers become 0. The
    numbers depend on the seed and the qualified name of the weight alone; dtype, device, `requires_grad` and ties stay.

    What stays as it is: normalisations, pooling, dropout, embeddings, residual additions, gates (activations whose
    output a forward multiplies with another signal), and activations that a forward calls as functions. The last two
    are looked for by `torch.fx`, which cannot follow every forward; then the table says so. All is planned before
    anything is changed.

    Args:
        module: the network, or a part of one; changed in place.
        root: which solution b, as in `GPN`.
        depth: layers that the activations are tailored to, as in `GPN`; None: they are taken as they are.
        weights: "orthogonal"; None: weights and biases stay.
        constraint: a parametrisation of each weight: "unit_rows" (`UnitRows`, for each output unit) or "orthogonal"
            (exactly, for matrices and for convolutions whose patches do not overlap); None: none.
        seed: of the weights.
        strict: whether to refuse a network of which anything is left that should have been changed.

    Returns:
        A row for each change and for each thing left, with the columns module (qualified name), kind (its class),
        parameter (empty if it is the module itself), change ("left" if there is none) and reason.

    Raises:
        ConfigError: an unknown root, depth, kind of weights or constraint; a module that is no network: an activation,
            compiled TorchScript; with `strict`, all that would be left. Then nothing has been changed.
    """
    _check(module, root, depth, weights, constraint)
    with torch.inference_mode(False), torch.device("cpu"):  # wherever the caller has new tensors made
        steps = _plan(module, root, depth, weights, constraint, seed)
        if strict:
            _refuse_what_is_left(steps)
        for step in steps:
            if step.act is not None:
                step.act()
    for _, part in walk(module):
        # Nested tensors, which an encoder makes of padded batches, are for the fused kernel alone.
        if isinstance(part, nn.TransformerEncoder) and not _all_fused(part):
            part.use_nested_tensor = False
    return pd.DataFrame([[getattr(step, column) for column in COLUMNS] for step in steps], columns=[*COLUMNS])


def _check(module: object, root: str, depth: int | None, weights: str | None, constraint: str | None) -> None:
    if not isinstance(module, nn.Module):
        raise ConfigError(f"normalise({type(module).__name__}): takes an nn.Module, such as torchvision's resnet18()")
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            "normalise(ScriptModule): compiled TorchScript cannot be changed; normalise the module it was compiled"
            " from, and compile that"
        )
    if root not in ROOTS:
        raise ConfigError(complaint("root", root, "one of " + ", ".join(ROOTS), ROOTS))
    if depth is not None and (not isinstance(depth, Integral) or isinstance(depth, bool) or depth < 1):
        raise ConfigError(complaint("depth", depth, "a whole number of layers, at least 1, or None"))
    if weights not in (None, "orthogonal"):
        raise ConfigError(complaint("weights", weights, "orthogonal, or None to leave them", ("orthogonal",)))
    if constraint is not None and constraint not in CONSTRAINTS:
        raise ConfigError(complaint("constraint", constraint, f"one of {', '.join(CONSTRAINTS)}, or None", CONSTRAINTS))


def _plan(
    module: nn.Module, root: str, depth: int | None, weights: str | None, constraint: str | None, seed: int
) -> list[Step]:
    """Return the steps of the conversion, ordered by the modules that they are about; nothing is changed yet."""
    modules = dict(walk(module))
    calls = follow(modules)
    gates = {gate for called in calls.values() for gate in called.gates}
    steps = [*activation_steps(modules, gates, root, depth), *call_steps(modules, calls)]
    if any(step.module == "" and step.act is not None for step in steps):
        raise ConfigError(
            f"normalise({kind(module)}): is itself an activation, which cannot be replaced in place;"
            " bsnn_cli.GPN(module) is its normalised form"
        )
    owners = owners_of(module)
    if weights is not None:
        steps += weight_steps(modules, owners, seed)
    if constraint is not None:
        drawn = {(step.module, step.parameter) for step in steps if step.parameter and step.act is not None}
        steps += constraint_steps(modules, owners, constraint, drawn)
    order = {name: place for place, name in enumerate(modules)}
    steps.sort(key=lambda step: order.get(step.module, order.get(step.module.rpartition(".")[0], 0)))
    return steps


def _refuse_what_is_left(steps: Sequence[Step]) -> None:
    remains = [step for step in steps if step.change == LEFT and step.matters]
    if remains:
        words = "; ".join(
            f"{'.'.join(filter(None, (step.module, step.parameter))) or 'the module'} ({step.kind}): {step.reason}"
            for step in remains
        )
        raise ConfigError(
            f"normalise(strict=True): would leave {len(remains)} of the network as it is: {words}."
            " Nothing has been changed; strict=False converts the rest"
        )


def _all_fused(encoder: nn.TransformerEncoder) -> bool:
    return all(getattr(layer, "activation_relu_or_gelu", 0) for layer in encoder.layers)
