"""The networks of a fleet: their settings, and which of them share an activation."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bsnn_cli.gpn.activations import Activation
from bsnn_cli.gpn.kernel_form import Family, KernelForm


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The settings that may differ between the trainings that share a process.

    Attributes:
        seed: of initial weights and batch order.
        lr: learning rate, before its schedule.
        weight_decay: λ of matrices; see `parameters.decayed`.
        clip: largest norm of the gradient of all parameters; None: no limit.
    """

    seed: int
    lr: float
    weight_decay: float = 0.0
    clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class Member(Hyperparameters):
    """The settings that may differ between the networks of a fleet.

    Attributes:
        activation: φ and φ'.
        a, b: the network applies a·φ(h) + b; 1 and 0 without GPN.
    """

    activation: Activation
    a: float
    b: float


def uncovered(members: Sequence[Member], families: Collection[Family]) -> list[str]:
    """Return the names of the activations that kernels for some families have no code for, in alphabetical order."""
    activations = [member.activation for member in members]
    return sorted({phi.name for phi in activations if phi.kernel is None or phi.kernel.family not in families})


def kernel_forms(members: Sequence[Member], families: Collection[Family] = tuple(Family)) -> list[KernelForm]:
    """Return what kernels for some families need to know of each member's activation.

    Raises:
        ValueError: there is no code for one of them.
    """
    if names := uncovered(members, families):
        raise ValueError(f"the fast kernels have no code for {', '.join(names)}")
    return [form for form in (member.activation.kernel for member in members) if form is not None]


class Group(NamedTuple):
    """Consecutive members with the same a·φ + b; b as a tensor without dimensions, `place` their indices."""

    activation: Activation
    a: float
    b: Tensor
    place: slice


def grouped(members: Sequence[Member], like: Tensor) -> list[Group]:
    """Group consecutive members with equal activations.

    Args:
        members: of a fleet.
        like: of the type and on the device of the signals.
    """
    groups, first = [], 0
    for (activation, a, b), alike in itertools.groupby(members, lambda member: (member.activation, member.a, member.b)):
        last = first + len(list(alike))
        groups.append(Group(activation, a, like.new_tensor(b), slice(first, last)))
        first = last
    return groups
