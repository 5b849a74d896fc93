"""Optimisers, schedules, weight decay and clipping against those of torch, in float64, on every trainer."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from bsnn_cli.gpn.activations import get, normalise
from bsnn_cli.networks import orthogonal
from bsnn_cli.networks.c_engine import CEngine
from bsnn_cli.networks.engine import EngineFactory
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.network import Network, Phi
from bsnn_cli.networks.optimiser import RULES, SCHEDULES, Optimiser, Schedule
from bsnn_cli.networks.reference_trainer import ReferenceTrainer
from bsnn_cli.networks.rule_engine import RuleEngine
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.networks.triton_engine import TritonEngine
from bsnn_cli.settings.choices import OPTIMISERS
from bsnn_cli.settings.choices import SCHEDULES as NAMES_OF_SCHEDULES
from bsnn_cli.settings.config import ModelConfig, OptimConfig
from tests.test_captured import make, noise, orders, train
from tests.test_kernels import interpreted, with_kernels

__all__ = ["interpreted"]

INPUTS, CLASSES, BATCH, STEPS, WARMUP = 7, 3, 6, 20, 4


def member(name: str, seed: int, lr: float, **values: float | None) -> Member:
    solution = normalise(name)
    return Member(activation=get(name), a=solution.a, b=solution.b, seed=seed, lr=lr, **values)  # type: ignore[arg-type]


THREE = [
    member("selu", 0, 0.05, weight_decay=0.1, clip=0.3),
    member("selu", 1, 0.02),
    member("tanh", 2, 0.03, weight_decay=0.02, clip=1.0),
]
"""Rates, decays and limits of their own; the limits are below the norms of some gradients and above those of others."""

PLAIN = [member("selu", 0, 0.05), member("selu", 1, 0.02), member("tanh", 2, 0.03)]


def schedule(kind: str, warmup: int = 0) -> Schedule:
    return Schedule(kind=kind, warmup=warmup, steps=STEPS, decay_steps=7, decay_rate=0.3)


OPTIMISERS_TRIED = {
    "sgd": Optimiser(momentum=0.5),
    "sgd without momentum": Optimiser(momentum=0.0, schedule=schedule("step")),
    "sgd, cosine": Optimiser(momentum=0.9, schedule=schedule("cosine", WARMUP)),
    "nesterov": Optimiser(momentum=0.9, nesterov=True),
    "nesterov, step": Optimiser(momentum=0.5, nesterov=True, schedule=schedule("step", WARMUP)),
    "adamw": Optimiser(kind="adamw"),
    "adamw, cosine": Optimiser(kind="adamw", beta1=0.8, beta2=0.99, schedule=schedule("cosine", WARMUP)),
    "adamw, warm-up": Optimiser(kind="adamw", schedule=schedule("constant", WARMUP)),
}


def batches(members: int, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Batches for each member and step; every fifth is short."""
    generator = torch.Generator().manual_seed(1)
    sizes = [2 if step % 5 == 4 else BATCH for step in range(steps)]
    return [
        (
            torch.randn(members, size, INPUTS, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (members, size), generator=generator),
        )
        for size in sizes
    ]


def torch_scheduler(optimiser: torch.optim.Optimizer, ours: Schedule) -> lr_scheduler.LRScheduler:
    """The schedule as PyTorch has it."""
    rise: list[lr_scheduler.LRScheduler] = []
    if ours.warmup:
        rise = [lr_scheduler.LinearLR(optimiser, start_factor=1 / (ours.warmup + 1), total_iters=ours.warmup)]
    if ours.kind == "cosine":
        fall = lr_scheduler.CosineAnnealingLR(optimiser, T_max=ours.steps - ours.warmup)
        return lr_scheduler.SequentialLR(optimiser, [*rise, fall], milestones=[ours.warmup]) if rise else fall
    if ours.kind == "step":
        rise.append(lr_scheduler.StepLR(optimiser, ours.decay_steps, ours.decay_rate))
    return lr_scheduler.ChainedScheduler(rise or [lr_scheduler.ConstantLR(optimiser, factor=1.0)])


def torch_optimiser(groups: list[dict[str, Any]], ours: Optimiser, lr: float) -> torch.optim.Optimizer:
    if ours.kind == "sgd":
        return torch.optim.SGD(groups, lr, momentum=ours.momentum, nesterov=ours.nesterov)
    return torch.optim.AdamW(groups, lr, betas=(ours.beta1, ours.beta2))


def decays(name: str, model: ModelConfig) -> bool:
    """The rule that is documented: matrices and the lengths of rows, but for what is kept orthogonal."""
    last = name.rpartition(".")[2]
    if ".norm." in name or last == "bias":
        return False
    return not (name.startswith("hidden") and model.weights == "orthogonal")


def train_with_torch(
    model: ModelConfig, member: Member, ours: Optimiser, start: dict[str, Tensor], data: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Network, list[float]]:
    """The reference network by autograd and PyTorch's optimiser; orthogonal matrices by dense algebra."""
    network = Network(model, Phi(member.activation, member.a, member.b), INPUTS, CLASSES, member.seed).double()
    network.load(start)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in network.named_parameters() if decays(name, model) == decayed], "weight_decay": wd}
        for decayed, wd in ((True, member.weight_decay), (False, 0.0))
    ]
    optimiser = torch_optimiser(groups, ours, member.lr)
    scheduler = torch_scheduler(optimiser, ours.schedule)
    kept = [layer.linear.weight for layer in network.hidden] if model.weights == "orthogonal" else []
    losses = []
    for inputs, labels in data:
        optimiser.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        with torch.no_grad():
            for W in kept:
                W.grad = (W.grad - W @ W.grad.T @ W) / 2
        if member.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), member.clip)
        optimiser.step()
        scheduler.step()
        with torch.no_grad():
            for W in kept:
                W.copy_(torch.from_numpy(scipy.linalg.polar(W.numpy())[0]))
        losses.append(loss.item())
    return network, losses


def assert_trains_as_torch(
    trainer: Fleet | ReferenceTrainer, data: Sequence[tuple[Tensor, Tensor]], tolerance: float = 1e-10
) -> None:
    """All losses, all tensors and the logits of every member."""
    K = len(trainer.members)
    starts = [{name: tensor.clone() for name, tensor in trainer.member_state(k).items()} for k in range(K)]
    with torch.no_grad() if isinstance(trainer, Fleet) else torch.enable_grad():
        losses = torch.stack([trainer.step(x, y) for x, y in data])
    assert trainer.alive.all()
    for k, own in enumerate(trainer.members):
        network, expected = train_with_torch(
            trainer.model, own, trainer.optimiser, starts[k], [(x[k], y[k]) for x, y in data]
        )
        torch.testing.assert_close(losses[:, k], losses.new_tensor(expected), rtol=tolerance, atol=tolerance)
        state = trainer.member_state(k)
        for name, reference in network.state().items():
            if (name, trainer.model.norm, trainer.optimiser.kind) == ("input.bias", "batch", "adamw"):
                continue  # what it adds, batch normalisation takes away: its gradient is rounding, which AdamW enlarges
            wanted = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
            error = (state[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name} of member {k}: {error:.1e}"


def fleet(
    model: ModelConfig, optimiser: Optimiser, engine: EngineFactory, members: Sequence[Member] = THREE, **options: Any
) -> Fleet:
    given = {"dtype": torch.float64} | options
    return Fleet(model, members, inputs=INPUTS, classes=CLASSES, optimiser=optimiser, engine=engine, **given)


ENGINES: dict[str, tuple[EngineFactory, dict[str, Any]]] = {
    "torch": (TorchEngine, {}),
    "c": (CEngine, {}),
    "torch as on a GPU": (functools.partial(TorchEngine, on_gpu=True), {"capture": True}),
}


@pytest.fixture
def retracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retract orthogonal matrices after every step, as the dense algebra does."""
    monkeypatch.setattr(orthogonal, "LIMIT", 0)


@pytest.mark.usefixtures("retracted")
@pytest.mark.parametrize("name", OPTIMISERS_TRIED)
@pytest.mark.parametrize(
    ("weights", "norm"), [("unit_rows", "none"), ("free", "none"), ("orthogonal", "none"), ("unit_rows", "batch"),
                          ("free", "batch"), ("orthogonal", "batch")]
)  # fmt: skip
@pytest.mark.parametrize("kind", ENGINES)
def test_a_fleet_trains_as_torch_does(kind: str, weights: str, norm: str, name: str) -> None:
    """Three members with rates, decays and limits of their own; 20 steps."""
    model = ModelConfig(depth=4, width=5, weights=weights, norm=norm)
    engine, options = ENGINES[kind]
    ours = fleet(model, OPTIMISERS_TRIED[name], engine, **options)
    assert isinstance(ours.engine, RuleEngine) == (OPTIMISERS_TRIED[name].kind != "sgd" or "nesterov" in name)
    assert_trains_as_torch(as_updates(ours), batches(3))


def as_updates(ours: Fleet) -> Fleet:
    """Complete what a step holds back where it is not to wait for the device, as `updates` does."""
    step = ours.step

    def whole(inputs: Tensor, labels: Tensor) -> Tensor:
        loss = step(inputs, labels)
        ours.engine.complete_held_steps()
        return loss

    ours.step = whole  # type: ignore[method-assign]
    return ours


@pytest.mark.parametrize("name", OPTIMISERS_TRIED)
@pytest.mark.parametrize("weights", ["unit_rows", "free", "weight_norm", "spectral_norm"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_reference_network_trains_as_torch_does(norm: str, weights: str, name: str) -> None:
    """With PyTorch's own optimiser, but for groups, limits and schedule."""
    model = ModelConfig(depth=4, width=5, weights=weights, norm=norm)
    ours = ReferenceTrainer(
        model, THREE, inputs=INPUTS, classes=CLASSES, optimiser=OPTIMISERS_TRIED[name], dtype=torch.float64
    )
    assert_trains_as_torch(ours, batches(3))
