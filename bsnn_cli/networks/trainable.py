"""The interface of a network that autograd trains, and the wrapper that gives it to a user's own module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from bsnn_cli.errors import ConfigError
from bsnn_cli.networks.parameters import State
from bsnn_cli.networks.workers import threads_for


class Trainable(nn.Module):
    """A classifier that takes flat inputs, with what a trainer has to know about it.

    The defaults are right for any module; `network.Network` states more.
    """

    def tensors(self) -> State:
        """Return by name what a run stores: parameters and buffers, also those that `state_dict` leaves out."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def state(self) -> State:
        """Return the values of `tensors` without a graph, to be read and written."""
        return {
            name: value.detach() if isinstance(value, Tensor) else [tensor.detach() for tensor in value]
            for name, value in self.tensors().items()
        }

    def decayed(self) -> list[Tensor]:
        """Return the parameters that weight decay acts on: matrices and kernels, not biases and gains."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def matrices(self) -> list[Tensor]:
        """Return the weights whose distance to orthogonality is recorded; none by default."""
        return []

    def settle(self, x: Tensor) -> None:
        """Fix what depends on the first batch of training, (batch, inputs); nothing by default."""

    def threads(self) -> int:
        """Return how many threads an operation of the network shall use."""
        return threads_for(sum(parameter.numel() for parameter in self.parameters()))

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `stored` has returned; returns self."""
        restore(self.tensors(), state)
        return self


def stored(tensors: State) -> dict[str, Tensor]:
    """Return tensors as a run stores them, without a graph.

    Those of a list are stacked, such as `hidden.weight`. Where their shapes differ, each has an entry of its own, with
    its layer, counted from 1, behind the name: `hidden.weight.1`, …
    """
    entries: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            entries[name] = value.detach()
        elif len({tensor.shape for tensor in value}) == 1:
            entries[name] = torch.stack(list(value)).detach()
        else:
            entries |= {f"{name}.{layer}": tensor.detach() for layer, tensor in enumerate(value, 1)}
    return entries


def of_layer(state: Mapping[str, Tensor], name: str, layer: int) -> Tensor:
    """Return the entry of one hidden layer, counted from 0, from what `stored` has returned."""
    return state[name][layer] if name in state else state[f"{name}.{layer + 1}"]


@torch.no_grad()
def restore(tensors: State, state: Mapping[str, Tensor]) -> None:
    """Give tensors the values that `stored` has returned for them."""
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            value.copy_(state[name])
        else:
            for layer, tensor in enumerate(value):
                tensor.copy_(of_layer(state, name, layer))


class Module(Trainable):
    """Any module as a classifier of images, which keep their shape for it.

    Args:
        module: (batch, channels, height, width) → logits (batch, classes).
        shape: (channels, height, width) of an image.
        classes: number of outputs.
        name: for messages.

    Raises:
        ConfigError: it fails on two images, returns something else, or has nothing to train.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], classes: int, name: str) -> None:
        super().__init__()
        self.module, self.shape = module.to("cpu", torch.float32), shape
        self._check(classes, name)

    @torch.no_grad()
    def _check(self, classes: int, name: str) -> None:
        images = " × ".join(map(str, self.shape))
        try:
            logits = self.eval()(torch.zeros(2, *self.shape))  # also gives lazy layers their shapes
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{name}: fails on images of {images} (channels × height × width): {reason}") from error
        kind = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.shape != (2, classes) or not logits.is_floating_point():
            raise ConfigError(
                f"{name}: returns {kind} for two images; a classifier of {classes} classes returns (2, {classes})"
            )
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(f"{name}: has no parameters to train")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) or (batch, channels, height, width) → logits (batch, classes)."""
        return cast(Tensor, self.module(x.view(len(x), *self.shape)))
