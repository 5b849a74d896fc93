"""Measure signals and gradients in any PyTorch module, as `bsnn propagate` does in the networks of this program.

The numbers and their names are those of `layers.csv`, with a row for each call of a layer. One forward and one backward
pass are made with hooks in place; afterwards the module is as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parameter import is_lazy

from bsnn_cli.common.random_streams import stream
from bsnn_cli.errors import ConfigError
from bsnn_cli.measuring.calls import Call, Recorder, mapped, signals, tensors, type_name
from bsnn_cli.measuring.preserved import preserved, randomness
from bsnn_cli.measuring.quantities import length, mean_square
from bsnn_cli.measuring.records import OUTPUT, CallRecord, summarise_calls, with_weights
from bsnn_cli.measuring.verdict import judge

Loss = Callable[[Any], Tensor]
"""Maps what a module returns to the mean loss of the batch, or to the loss of each sample (B,)."""

COLUMNS = ("layer", "module", "kind", "call", "weights")
"""Columns that identify a row, before those of quantities."""

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


@dataclass(frozen=True)
class ModuleMeasurement:
    """The result of one forward and one backward pass through a module.

    Attributes:
        calls: rows in the order of execution, then one of the output.
        derivatives: {l: all f'(h) of the row l}, float32 on the CPU, of activations; empty unless they are wanted.
        unreached: qualified names of layers that a signal enters, but to which no gradient comes back.
    """

    calls: list[CallRecord]
    derivatives: dict[int, Tensor]
    unreached: list[str]


def measure(
    module: nn.Module, inputs: Any, loss: Loss | None = None, *, batch_dim: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Measure the signals and gradients of every layer of a module on one batch.

    A layer is a module without children (those that compute parametrised weights do not count), a `GPN`, an
    `nn.MultiheadAttention`, or another module that calls none of its children. The module is measured in the mode that
    it is in, and everything about it is restored: parameters with their `grad`, buffers, hooks, modes; so are the
    inputs and the states of random number generators. It takes the memory of a training step and a copy of the module.

    Args:
        module: any network, on any device and in any precision. Of a compiled one the original is measured.
        inputs: B samples: a tensor, a tuple of positional or a dict of keyword arguments.
        loss: of what the module returns: the mean E over the batch, or E_b of each sample (B,). None: the gradient of
            each output tensor of a floating dtype is standard Gaussian for each sample.
        batch_dim: dimension that counts the samples.
        seed: of the Gaussian gradient, and of what is random in the forward pass, such as dropout.

    Returns:
        One row for each call of a layer in the order of execution, the last one for the first tensor that the module
        returns. `module` is the qualified name, `kind` the class, `call` the index of the call of this module,
        `weights` the number of entries of its matrices and kernels; the other columns are those of `layers.csv`, NaN
        where they are not defined. `forward_norm` and `one_minus_cosine` are of the first tensor of a floating dtype
        that enters the call. `backward_norm` is of the gradient of the samples' losses at this tensor, over all ways
        from it to the loss: where it also enters a residual connection, both branches count. `gradient_norm` is of the
        weights in this call alone, without biases; of a parametrised layer, of the weight that is used.

    Raises:
        ConfigError: the module or its inputs cannot be measured, or one of the two passes fails.

    Warns:
        UserWarning: no gradient comes back to some layers, since their signal is detached or has no part in the loss;
            their `backward_norm` is 0, or NaN where there is no graph at all.
    """
    measurement = measure_calls(module, inputs, loss, batch_dim=batch_dim, seed=seed)
    if measurement.unreached:
        warnings.warn(unreached_in_words(measurement.unreached), stacklevel=2)
    return frame_of(measurement.calls)


def verdict(frame: pd.DataFrame) -> list[str]:
    """Judge a measured module in two to four sentences: signal, gradients, linearity and angles where they are lost.

    Args:
        frame: as `measure` returns it, or the `layers.csv` of a network; other columns do not matter.
    """
    fields = [entry.name for entry in dataclasses.fields(CallRecord)]
    calls = [CallRecord(**dict(zip(fields, row, strict=True))) for row in frame[fields].itertuples(index=False)]
    summary = {name: value if math.isfinite(value) else None for name, value in vars(summarise_calls(calls)).items()}
    return judge(summary | {"depth": len(with_weights(calls))})


def frame_of(calls: Sequence[CallRecord]) -> pd.DataFrame:
    """Return the rows as a table, first the columns that identify them."""
    frame = pd.DataFrame([dataclasses.asdict(row) for row in calls])
    return frame[[*COLUMNS, *(name for name in frame if name not in COLUMNS)]]


def unreached_in_words(names: Sequence[str]) -> str:
    """Return the text of the warning about layers without a gradient."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"no gradient comes back to {shown}: the signal is detached there, computed without gradients, or has no part"
        " in the loss"
    )


def measure_calls(
    module: nn.Module,
    inputs: Any,
    loss: Loss | None = None,
    *,
    batch_dim: int = 0,
    seed: int = 0,
    keep_derivatives: bool = False,
) -> ModuleMeasurement:
    """Measure a module as `measure` does, and return the rows as records; arguments and errors as there."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"measure: takes an nn.Module, not {type(module).__name__}; pass the network itself")
    compiled = module._modules.get("_orig_mod")
    module = module if compiled is None else compiled
    refuse_unsupported(module)
    batch = batch_size(inputs, batch_dim)
    used = [*module.parameters(), *module.buffers(), *tensors(inputs)]
    number = stream(seed, "forward pass").initial_seed()
    with torch.inference_mode(False), torch.enable_grad(), _eager(), preserved(module), randomness(number, used):
        recorder = Recorder(module, batch, batch_dim, keep_derivatives)
        recorder.attach()
        output = _forward(module, inputs, recorder)
        first = next(signals(output), None)
        if first is None:
            kinds = ", ".join(str(tensor.dtype) for tensor in tensors(output)) or type(output).__name__
            raise ConfigError(f"measure: {type_name(module)} returns no tensor of a floating dtype, but {kinds}")
        end = recorder.signal(first)
        calls = recorder.calls
        gradients = _backward(module, output, loss, calls, batch, seed)
        rows = [
            _record(index, call, entering, of_weights, batch)
            for index, (call, (entering, of_weights)) in enumerate(zip(calls, gradients, strict=True), 1)
        ]
    last = CallRecord(layer=len(rows) + 1, module=OUTPUT, kind=type_name(module), call=0, weights=0, **end)
    unreached = [
        call.module or call.kind
        for call, (entering, _) in zip(calls, gradients, strict=True)
        if call.takes_signal and entering is None
    ]
    derivatives = {index: call.derivative for index, call in enumerate(calls, 1) if call.derivative is not None}
    return ModuleMeasurement([*rows, last], derivatives, list(dict.fromkeys(unreached)))


def refuse_unsupported(module: nn.Module) -> None:
    """Raise `ConfigError` for a module whose layers hooks cannot follow, with the reason."""
    for name, child in module.named_modules():
        where = f"measure: {name or 'the module'} is"
        if isinstance(child, torch.jit.ScriptModule):
            raise ConfigError(f"{where} a TorchScript module, without layers to follow; measure the one it was made of")
        if {kind.__name__ for kind in type(child).__mro__} & {*WRAPPERS}:
            raise ConfigError(f"{where} wrapped for several devices ({type(child).__name__}); measure what is inside")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ConfigError(f"measure: {name} has no shape yet; call the lazy module once before")
        if tensor.is_inference():
            raise ConfigError(f"measure: {name} was made in inference mode, where no gradients are; make it outside")
        if tensor.is_meta:
            raise ConfigError(f"measure: {name} has no values, being on the device meta; create the module on another")


def batch_size(inputs: Any, batch_dim: int) -> int:
    """Return the number of samples.

    Raises:
        ConfigError: there is no tensor, or it has no such dimension or no samples.
    """
    first = next(tensors(inputs), None)
    if first is None:
        raise ConfigError(f"measure: inputs has no tensor, but is {type(inputs).__name__}; pass a batch, such as x")
    if batch_dim < 0 or first.dim() <= batch_dim or not first.shape[batch_dim]:
        raise ConfigError(
            f"measure: the first input, of shape {tuple(first.shape)}, has no samples along batch_dim={batch_dim}"
        )
    return int(first.shape[batch_dim])


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Call what is compiled as it was written, since compiled code has no layers."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _forward(module: nn.Module, inputs: Any, recorder: Recorder) -> Any:
    def entering(x: Tensor) -> Tensor:
        x = x.detach()
        if x.is_floating_point():
            x.requires_grad_()
        return x.clone()  # no leaf, which could not be changed in place, and the caller's values stay

    given = mapped(inputs, entering)
    try:
        if isinstance(given, Mapping):
            return module(**given)
        return module(*given) if type(given) is tuple else module(given)
    except Exception as error:
        place = recorder.place_of(error)
        where = f"{type_name(module)}, in {place}" if place else type_name(module)
        raise ConfigError(f"measure: the forward pass fails: {where} ({_reason(error)})") from error


def _backward(
    module: nn.Module, output: Any, loss: Loss | None, calls: Sequence[Call], batch: int, seed: int
) -> list[tuple[Tensor | None, list[Tensor | None] | None]]:
    """Return the gradients of ΣE_b at each call: of what enters, None where none comes back; of the weights."""
    roots, gradients = _top(output, loss, batch, seed)
    edges = [call.edge for call in calls if call.edge is not None]
    weights = [get_gradient_edge(weight) for call in calls for weight in call.weights]
    if not roots or not [*edges, *weights]:
        return [(None, None) for _ in calls]
    try:
        computed = iter(torch.autograd.grad(roots, [*edges, *weights], gradients, allow_unused=True))
    except Exception as error:
        raise ConfigError(f"measure: the backward pass fails: {type_name(module)} ({_reason(error)})") from error
    entering = [None if call.edge is None else next(computed) for call in calls]
    return [(x, [next(computed) for _ in call.weights]) for x, call in zip(entering, calls, strict=True)]


def _top(output: Any, loss: Loss | None, batch: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors where the backward pass begins, with the gradients of ΣE_b there; none without a graph."""
    roots = [tensor for tensor in signals(output) if tensor.requires_grad]
    if loss is None:
        generator = stream(seed, "top gradient")
        return roots, [
            torch.randn(root.shape, generator=generator, dtype=torch.float32, device="cpu").to(root) for root in roots
        ]
    try:
        value = loss(output)
    except Exception as error:
        raise ConfigError(f"measure: the loss fails ({_reason(error)})") from error
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape not in ((), (batch,)):
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"measure: the loss returns {kind}; it must return the mean over the batch or one value for each of the"
            f" {batch} samples"
        )
    if not roots:
        return [], []
    if not value.requires_grad:
        raise ConfigError("measure: the loss has no gradient; compute it by differentiable operations of the output")
    return [value], [torch.full_like(value, batch if value.dim() == 0 else 1)]


def _record(
    index: int, call: Call, entering: Tensor | None, of_weights: list[Tensor | None] | None, batch: int
) -> CallRecord:
    backward = gradient = math.nan
    if entering is not None:
        backward = mean_square(entering)
    elif call.edge is not None and of_weights is not None:
        backward = 0.0
    if call.weights and of_weights is not None:
        gradient = math.hypot(*(0.0 if weight is None else length(weight) for weight in of_weights)) / batch
    return CallRecord(
        layer=index,
        module=call.module,
        kind=call.kind,
        call=call.index,
        weights=sum(weight.numel() for weight in call.weights if weight.dim() > 1),
        **{"forward_norm": math.nan, "one_minus_cosine": math.nan} | call.values,
        backward_norm=backward,
        gradient_norm=gradient,
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
