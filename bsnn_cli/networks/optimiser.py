"""The optimiser of a training: its hyperparameters, its rule for one tensor, and the schedule of its learning rate.

Stochastic gradient descent with momentum is also written into the engines (`Optimiser.in_engines`). Everything else
follows from the two tables here: `RULES` and `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsnn_cli.settings.choices import OPTIMISERS
from bsnn_cli.settings.config import OptimConfig

EPS = 1e-8
"""AdamW adds it to the root of the mean square; PyTorch's default."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate as a function of the step alone, so that a resumed training goes on with the same one.

    Attributes:
        kind: one of `SCHEDULES`.
        warmup: steps of a linear rise, which end before the learning rate is reached: 1/(warmup + 1), 2/(warmup + 1), …
        steps: of the whole training.
        decay_steps: after so many steps each, counted from the start of training, `step` multiplies by `decay_rate`.
        decay_rate: this factor.
    """

    kind: str = "constant"
    warmup: int = 0
    steps: int = 1
    decay_steps: int = 1
    decay_rate: float = 0.1

    @property
    def varies(self) -> bool:
        """Return whether the learning rate changes at all."""
        return self.kind != "constant" or self.warmup > 0

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0."""
        rise = min((step + 1) / (self.warmup + 1), 1.0)
        return rise * SCHEDULES[self.kind](self, step)

    def table(self, device: torch.device) -> Tensor:
        """Return the factors of all steps, (steps,) float64: on a GPU a step looks up its own."""
        factors = [self.factor(step) for step in range(self.steps)]
        return torch.tensor(factors, dtype=torch.float64, device=device)


def _constant(schedule: Schedule, step: int) -> float:  # noqa: ARG001
    return 1.0


def _cosine(schedule: Schedule, step: int) -> float:
    """Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts and down to 0."""
    done = max(step - schedule.warmup, 0) / max(schedule.steps - schedule.warmup, 1)
    return (1 + math.cos(math.pi * done)) / 2


def _step(schedule: Schedule, step: int) -> float:
    factor: float = schedule.decay_rate ** (step // schedule.decay_steps)
    return factor


SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {"constant": _constant, "cosine": _cosine, "step": _step}
"""The factor of the learning rate in a step, but for the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How the networks of a fleet are trained, all in the same way; `Member` has what may differ between them.

    Attributes:
        kind: one of `RULES`.
        momentum, nesterov: of SGD; μ of the gradient sum, and whether a step looks ahead along it.
        beta1, beta2: of AdamW.
        schedule: of every member's learning rate.
    """

    kind: str = "sgd"
    momentum: float = 0.5
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Schedule = field(default_factory=Schedule)

    @classmethod
    def of(cls, config: OptimConfig, steps_per_epoch: int) -> Optimiser:
        """Return the optimiser of a config whose `epochs` are known; epochs become steps, rounded.

        Args:
            config: of the training.
            steps_per_epoch: updates in an epoch.
        """
        assert config.epochs is not None
        decay_epochs = config.epochs / 3 if config.decay_epochs is None else config.decay_epochs
        schedule = Schedule(
            kind=config.schedule,
            warmup=round(config.warmup * steps_per_epoch),
            steps=config.epochs * steps_per_epoch,
            decay_steps=max(round(decay_epochs * steps_per_epoch), 1),
            decay_rate=config.decay_rate,
        )
        return cls(
            kind=config.kind,
            momentum=config.momentum,
            nesterov=config.nesterov,
            beta1=config.beta1,
            beta2=config.beta2,
            schedule=schedule,
        )

    @property
    def label(self) -> str:
        """Return its name for a message."""
        return OPTIMISERS[self.kind].label + (" with Nesterov's momentum" if self.nesterov else "")

    @property
    def buffers(self) -> tuple[str, ...]:
        """Return what it keeps for each trained tensor; `BUFFER.NAME` is the name of it."""
        return OPTIMISERS[self.kind].buffers

    @property
    def in_engines(self) -> bool:
        """Return whether engines make its update themselves: M ← μM + G and V ← V − lr·M, with the gradient G."""
        return self.kind == "sgd" and not self.nesterov

    def start(self, tensors: dict[str, Tensor], trained: Iterable[str]) -> dict[str, Tensor]:
        """Return its buffers by name at the start of a training: zeros."""
        names = tuple(trained)
        return {f"{buffer}.{name}": torch.zeros_like(tensors[name]) for buffer in self.buffers for name in names}

    def update(self, parameter: Tensor, gradient: Tensor, buffers: Sequence[Tensor], step: Step) -> None:
        """Change a parameter and its buffers in place by one step. Nothing waits for a device here.

        Args:
            parameter: any shape; or that of several networks, stacked.
            gradient: of the same shape.
            buffers: in the order of `self.buffers`, of the same shape.
            step: what differs between networks, in shapes that fit the parameter.
        """
        RULES[self.kind].update(self, parameter, gradient, buffers, step)

    def of_torch(
        self, parameters: Iterable[Tensor], decayed: Iterable[Tensor], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return PyTorch's own optimiser for a network that autograd trains, with buffers that are zero.

        Args:
            parameters: that it changes.
            decayed: those of them that weight decay acts on.
            lr: the learning rate before the schedule.
            weight_decay: λ.
        """
        marked, parts = {id(parameter) for parameter in decayed}, list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [part for part in parts if id(part) in marked], "weight_decay": weight_decay},
            {"params": [part for part in parts if id(part) not in marked], "weight_decay": 0.0},
        ]
        optimiser = RULES[self.kind].of_torch(self, groups, lr)
        for parameter in parts:
            optimiser.state[parameter] = {
                "step": torch.zeros(()),
                **{name: torch.zeros_like(parameter) for name in RULES[self.kind].torch_buffers},
            }
        return optimiser


class Step(NamedTuple):
    """Numbers that a rule needs beside tensors, one entry for each network, in a shape that fits the parameter.

    Attributes:
        size: −lr in this step; 0 for a network that has diverged, whose gradient is 0 as well.
        weight_decay: λ; None where nothing decays.
        number: of this step, counted from 1; float64, since β^count is close to 1.
    """

    size: Tensor
    weight_decay: Tensor | None
    number: Tensor


@dataclass(frozen=True)
class Rule:
    """One optimiser.

    Attributes:
        update: as `Optimiser.update`.
        of_torch: (optimiser, groups of parameters, lr) → the same of `torch.optim`.
        torch_buffers: what PyTorch calls the buffers.
    """

    update: Callable[[Optimiser, Tensor, Tensor, Sequence[Tensor], Step], None]
    of_torch: Callable[[Optimiser, list[dict[str, Any]], float], torch.optim.Optimizer]
    torch_buffers: tuple[str, ...]


def _sgd(optimiser: Optimiser, parameter: Tensor, gradient: Tensor, buffers: Sequence[Tensor], step: Step) -> None:
    """Sutskever et al. 2013 as PyTorch writes it: M ← μM + G + λV, V ← V − lr·M, or − lr(G + λV + μM) with Nesterov."""
    [momentum] = buffers
    if step.weight_decay is not None:
        gradient = torch.addcmul(gradient, step.weight_decay, parameter)
    momentum.mul_(optimiser.momentum).add_(gradient)
    direction = torch.add(gradient, momentum, alpha=optimiser.momentum) if optimiser.nesterov else momentum
    parameter.addcmul_(direction, step.size)


def _adamw(optimiser: Optimiser, parameter: Tensor, gradient: Tensor, buffers: Sequence[Tensor], step: Step) -> None:
    """Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2; the schedule is in lr."""
    first, second = buffers
    if step.weight_decay is not None:
        parameter.mul_(1 + step.size * step.weight_decay)
    first.lerp_(gradient, 1 - optimiser.beta1)
    second.mul_(optimiser.beta2).addcmul_(gradient, gradient, value=1 - optimiser.beta2)
    first_share, second_share = (
        (1 - beta**step.number).to(parameter.dtype) for beta in (optimiser.beta1, optimiser.beta2)
    )
    root = second.sqrt().mul_(second_share.rsqrt()).add_(EPS)  # one new tensor of this size, no more
    parameter.addcmul_(torch.div(first, root, out=root), step.size / first_share)


def _torch_sgd(optimiser: Optimiser, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr, optimiser.momentum, nesterov=optimiser.nesterov)


def _torch_adamw(optimiser: Optimiser, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr, (optimiser.beta1, optimiser.beta2), EPS)


RULES = {
    "sgd": Rule(_sgd, _torch_sgd, ("momentum_buffer",)),
    "adamw": Rule(_adamw, _torch_adamw, ("exp_avg", "exp_avg_sq")),
}
"""The rule of each of `settings.choices.OPTIMISERS`."""


BUFFERS = tuple(f"{buffer}." for spec in OPTIMISERS.values() for buffer in spec.buffers)


def is_buffer(name: str) -> bool:
    """Return whether a stored tensor is a buffer of an optimiser, which no trained network needs."""
    return name.startswith(BUFFERS)


def parameter_of(name: str) -> str:
    """Return the name of the parameter that a stored tensor is, or that it is a buffer of."""
    return name.partition(".")[2] if is_buffer(name) else name
