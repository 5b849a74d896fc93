"""The networks of a fleet: what they may differ in, and their activations, each applied to all members that have it."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bsnn_cli.gpn.activations import ACTIVATIONS, GELU_SHARPNESS, LRELU_SLOPE, SELU_ALPHA, SELU_SCALE, Activation


@dataclass(frozen=True, kw_only=True)
class Member:
    """What may differ between the networks of a fleet.

    Attributes:
        activation: φ and φ'.
        a, b: the network applies a·φ(h) + b; 1 and 0 without GPN.
        seed: of initial weights and batch order.
        lr: learning rate.
    """

    activation: Activation
    a: float
    b: float
    seed: int
    lr: float


class Family(enum.IntEnum):
    """What kernels of our own have code for: functions of h and of two constants p and q."""

    TANH = 0  # tanh(h)
    RECTIFIER = 1  # h, or ph below 0
    ELU = 2  # qh, or qp(exp(h) − 1) below 0
    SWISH = 3  # hσ(ph)


FAMILIES = {
    "tanh": (Family.TANH, 0.0, 0.0),
    "relu": (Family.RECTIFIER, 0.0, 0.0),
    "lrelu": (Family.RECTIFIER, LRELU_SLOPE, 0.0),
    "identity": (Family.RECTIFIER, 1.0, 0.0),
    "elu": (Family.ELU, 1.0, 1.0),
    "selu": (Family.ELU, SELU_ALPHA, SELU_SCALE),
    "gelu": (Family.SWISH, GELU_SHARPNESS, 0.0),
    "silu": (Family.SWISH, 1.0, 0.0),
}
"""Of each activation that there is code for: its family, and p and q of it."""


def covered(members: Sequence[Member]) -> bool:
    """Whether kernels of our own have code for the activations of all members."""
    activations = (one.activation for one in members)
    return all(one.name in FAMILIES and one is ACTIVATIONS[one.name] for one in activations)


class Group(NamedTuple):
    """Consecutive members with the same a·φ + b; b as a tensor without dimensions, `place` their indices."""

    activation: Activation
    a: float
    b: Tensor
    place: slice


def grouped(members: Sequence[Member], like: Tensor) -> list[Group]:
    """As few groups as there are without changing the order.

    Args:
        members: of a fleet.
        like: of the type and on the device of the signals.
    """
    groups, first = [], 0
    for (activation, a, b), alike in itertools.groupby(members, lambda one: (one.activation, one.a, one.b)):
        last = first + len(list(alike))
        groups.append(Group(activation, a, like.new_tensor(b), slice(first, last)))
        first = last
    return groups


def activate(groups: Sequence[Group], h: Tensor, out: Tensor) -> list[Tensor | None]:
    """a·φ(h) + b into `out`, both (K, B, n); returns what `pull_back` wants to know of each group's φ(h)."""
    values = []
    for group, own, above in zip(groups, _parts(groups, h), _parts(groups, out), strict=True):
        value = group.activation.phi(own)
        torch.add(group.b, value, alpha=group.a, out=above)
        values.append(None if group.activation.pull_back_by_value is None else value)
    return values


def pull_back(groups: Sequence[Group], g: Tensor, h: Tensor, values: Sequence[Tensor | None]) -> Tensor:
    """g·φ'(h), all (K, B, n): the gradient of φ(h) becomes that of h. The factor a is left to what comes next."""
    parts = []
    for group, above, own, value in zip(groups, _parts(groups, g), _parts(groups, h), values, strict=True):
        activation = group.activation
        if activation.pull_back_by_value is not None and value is not None:
            parts.append(activation.pull_back_by_value(above, value))
        else:
            parts.append(activation.pull_back(above, own))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(groups: Sequence[Group], signal: Tensor) -> list[Tensor]:
    """Views of what belongs to each group; of one group, the signal itself, as every view takes its time."""
    return [signal] if len(groups) == 1 else [signal[group.place] for group in groups]
