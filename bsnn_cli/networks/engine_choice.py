"""The choice of the engine of a fleet."""

from __future__ import annotations

import torch

from bsnn_cli.gpn.kernel_form import ON_GPU, Family
from bsnn_cli.networks import native
from bsnn_cli.networks.c_engine import CEngine
from bsnn_cli.networks.engine import Engine, EngineFactory
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.members import uncovered
from bsnn_cli.networks.rule_engine import with_rule
from bsnn_cli.networks.torch_engine import TorchEngine


def choose(hidden: HiddenLayers) -> tuple[Engine, str | None]:
    """Return the fastest engine that covers these layers, and in words why PyTorch's operations do, if they do."""
    engine, slow_because = _of_signals(hidden)
    if not hidden.optimiser.in_engines:
        rule = (
            f"PyTorch's operations make the updates of {hidden.optimiser.label}, since the kernels know plain SGD only"
        )
        retracted = "" if hidden.drift is None else "; orthogonal matrices are retracted after every step of it"
        slow_because = rule + retracted if slow_because is None else f"{slow_because}{retracted}"
    return with_rule(engine), slow_because


def _of_signals(hidden: HiddenLayers) -> tuple[Engine, str | None]:
    on_gpu = hidden.device.type == "cuda"
    if names := uncovered(hidden.members, ON_GPU if on_gpu else tuple(Family)):
        return TorchEngine(hidden), f"the fast kernels have no code for the activation {', '.join(names)}"
    factory = _of_gpu(hidden) if on_gpu else _of_cpu(hidden)
    if isinstance(factory, str):
        return TorchEngine(hidden), factory
    return factory(hidden), None


def _of_cpu(hidden: HiddenLayers) -> EngineFactory | str:
    code = native.library(hidden.dtype)
    return code if isinstance(code, str) else CEngine


def _of_gpu(hidden: HiddenLayers) -> EngineFactory | str:
    try:
        from bsnn_cli.networks.triton_engine import TritonEngine
    except ImportError:
        return "Triton is not installed"
    if hidden.dtype != torch.float32:
        return "the fast kernels compute in float32"
    if torch.cuda.get_device_capability(hidden.device) < (8, 0):
        return "this GPU has no tensor cores for TF32"
    return TritonEngine
