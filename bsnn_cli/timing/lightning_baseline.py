"""The plain network trained by Lightning, where it is installed: one more baseline of `bsnn bench`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
"""Both names under which it is published, and the module that holds the trainer."""


def installed() -> bool:
    """Whether there is a Lightning to compare with."""
    return any(importlib.util.find_spec(package) is not None for package in PACKAGES)


def training_loop(
    network: nn.Module, lr: float, momentum: float, batch: Callable[[], tuple[Tensor, Tensor]], device: torch.device
) -> Callable[[Iterator[None]], None]:
    """A function that trains for a step at each item of an iterator, with all that costs time switched off.

    Args:
        network: on the CPU; Lightning moves it.
        lr: learning rate of PyTorch's fused SGD.
        momentum: of the same.
        batch: gives inputs and labels, on the device.
        device: where to train.
    """
    module = next(module for package, module in PACKAGES.items() if importlib.util.find_spec(package) is not None)
    pl: Any = importlib.import_module(module)
    logging.getLogger(module).setLevel(logging.ERROR)  # it lists what it has switched off

    class Plain(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            inputs, labels = batch
            return F.cross_entropy(self.network(inputs), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.SGD(trained, lr=lr, momentum=momentum, fused=True)

    plain = Plain()

    def run(turns: Iterator[None]) -> None:
        where = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's, of what becomes of PyTorch in later versions
            pl.Trainer(barebones=True, max_epochs=1, **where).fit(plain, Batches(batch, turns))

    return run


class Batches:
    """A loader in the sense of Lightning: a batch in memory at each item of `turns`.

    It has a length, so that Lightning need not fetch a batch ahead to know which one is the last.
    """

    def __init__(self, batch: Callable[[], tuple[Tensor, Tensor]], turns: Iterator[None]) -> None:
        self.batch, self.turns = batch, turns

    def __len__(self) -> int:
        return 2**31

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch() for _ in self.turns)
