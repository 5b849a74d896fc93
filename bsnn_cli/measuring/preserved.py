"""Put back whatever a forward pass may change: of a module, and of the sources of randomness."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONTAINERS = (dict, OrderedDict, defaultdict, list)


@contextlib.contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Restore a module at the end: parameters, buffers, modes, hooks, and all other attributes of it and its children.

    Tensors are copied at the start, so this takes the memory of the module once more. Of other values the attributes
    themselves are restored, and the entries of dicts and lists; not what lies deeper in objects of the user's own.
    """
    modules = [(child, type(child), dict(vars(child))) for child in module.modules()]
    containers = {
        id(value): (value, value.copy())
        for _, _, attributes in modules
        for value in attributes.values()
        if type(value) in CONTAINERS
    }
    tensors = [
        (tensor, tensor._version, tensor.detach().clone()) for tensor in [*module.parameters(), *module.buffers()]
    ]
    try:
        yield
    finally:
        for child, kind, attributes in modules:
            if type(child) is not kind:
                child.__class__ = kind
            vars(child).clear()
            vars(child).update(attributes)
        for container, content in containers.values():
            _refill(container, content)
        with torch.no_grad():
            for tensor, version, value in tensors:
                if tensor._version != version or not torch.equal(tensor, value):
                    tensor.copy_(value)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


@contextlib.contextmanager
def randomness(seed: int, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Seed all sources of randomness, and restore them at the end: of PyTorch, its CUDA devices, NumPy and Python.

    Args:
        seed: of the random values in between, such as dropout's.
        tensors: on the devices in use.
    """
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
