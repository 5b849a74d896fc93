"""The contestants of `bsnn bench`: this program, variants of plain PyTorch, and limits, each as a step function."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bsnn_cli.datasets.data import Dataset, Split
from bsnn_cli.networks import building
from bsnn_cli.networks.captured import WARM_UP
from bsnn_cli.networks.network import Phi
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.training import Trainer
from bsnn_cli.settings.config import BenchConfig, ModelConfig, OptimConfig, TrainConfig
from bsnn_cli.timing import baselines, limits
from bsnn_cli.timing.stopwatch import Step, peak_mb

BASELINES = ("plain", "plain_fused", "plain_dataloader", "plain_compiled")
"""PyTorch for the same training: tensors in memory, then also the fused optimiser, a `DataLoader` and `torch.compile`.
The last two have the fused optimiser too."""

LIMITS = ("arithmetic", "traffic")
"""Two lower bounds of the time of a step, see `limits`; the larger one counts."""

BOUNDS = ("products", *LIMITS)
"""Parts of a step that are timed beside a training: its products by PyTorch's library, and the limits."""


@dataclass(frozen=True)
class Spec:
    """One contestant.

    Attributes:
        implementation: `bsnn`; one of `BASELINES` or of `BOUNDS`; or `torch_` with one of
            `baselines.ORTHOGONAL_MAPS`: PyTorch's own orthogonal parametrisation.
        networks: trained at once.
        model: shape, norm and weights.
    """

    implementation: str
    networks: int
    model: ModelConfig


def build(spec: Spec, config: BenchConfig, dataset: Dataset) -> Step:
    """Return a function that makes one step, the batch included, on the device of the dataset."""
    device = dataset.train.images.device
    if spec.implementation == "products":
        return limits.products(spec.networks, spec.model, config.optim.batch_size, device)
    if spec.implementation == "arithmetic":
        return limits.arithmetic(spec.networks, spec.model, config.optim.batch_size, device)
    if spec.implementation == "traffic":
        return limits.traffic(spec.networks, spec.model, device)
    order = batches(len(dataset.train.labels), spec.networks, config.optim.batch_size, device)
    return (_fleet if spec.implementation == "bsnn" else _baseline)(spec, config, dataset, order)


def training(config: BenchConfig, model: ModelConfig) -> TrainConfig:
    """Return the training whose steps are timed."""
    optim = OptimConfig(**dataclasses.asdict(config.optim))
    return TrainConfig(activation=config.activation, dataset=config.dataset, model=model, optim=optim)


def _fleet(spec: Spec, config: BenchConfig, dataset: Dataset, order: Iterator[Tensor]) -> Step:
    """Return a step of this program. All members start from the same weights: to draw many would take minutes."""
    device, alone = dataset.train.images.device, training(config, spec.model)
    make_fleet: Callable[..., Trainer] = functools.partial(
        building.trainer, shape=dataset.shape, classes=dataset.classes,
        optimiser=Optimiser(momentum=config.optim.momentum),
    )  # fmt: skip
    state = make_fleet([alone]).member_state(0)
    fleet = make_fleet([alone] * spec.networks, states=[state] * spec.networks, device=device)
    epoch = len(dataset.train.labels) // config.optim.batch_size
    losses = itertools.chain.from_iterable(
        fleet.updates(dataset, list(itertools.islice(order, epoch))) for _ in itertools.count()
    )
    for _ in range(WARM_UP + 1 if device.type == "cuda" else 0):
        next(losses)
    return functools.partial(next, losses)


def _baseline(spec: Spec, config: BenchConfig, dataset: Dataset, order: Iterator[Tensor]) -> Step:
    """Return a step of plain PyTorch."""
    member = building.member(training(config, spec.model))
    device = dataset.train.images.device
    weights = spec.implementation.removeprefix("torch_")
    network = baselines.plain_network(
        spec.model,
        Phi(member.activation, member.a, member.b),
        dataset.inputs,
        dataset.classes,
        weights if weights in baselines.ORTHOGONAL_MAPS else spec.model.weights,
    )
    images, labels = dataset.standardise(dataset.train.images), dataset.train.labels

    def batch() -> tuple[Tensor, Tensor]:
        [indices] = next(order)
        return images[indices], labels[indices]

    lr, momentum = config.optim.lr, config.optim.momentum
    if spec.implementation == "plain_compiled":
        # A GPU waits for the launches of so many small kernels: this mode records them in a CUDA graph.
        network.compile(mode="reduce-overhead" if device.type == "cuda" else None)
    fused = None if spec.implementation == "plain" else True
    step = baselines.plain_step(network.to(device), lr, momentum, fused)
    if spec.implementation == "plain_dataloader":
        samples = TensorDataset(images.cpu(), labels.cpu())
        pinned = device.type == "cuda"
        loader = DataLoader(samples, config.optim.batch_size, shuffle=True, drop_last=True, pin_memory=pinned)
        loaded = baselines.endless(loader)
        return lambda: step(*(part.to(device, non_blocking=pinned) for part in next(loaded)))
    return lambda: step(*batch())


def batches(samples: int, networks: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield indices (K, B) of shuffled batches for ever; the short last one of an epoch is left out."""
    while True:
        orders = torch.stack([torch.randperm(samples) for _ in range(networks)]).to(device)
        yield from torch.split(orders[:, : samples - samples % size], size, dim=1)


def prepare(spec: Spec, config: BenchConfig, dataset: Dataset, memory: bool) -> tuple[Step, float | None]:
    """Return a contestant, and the peak memory of building it and of three steps beyond program and data, in MB.

    On a CPU, where memory is measured in a process of its own, this is done only where `memory` asks for it.
    """
    device = dataset.train.images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step = build(spec, config, dataset)
        for _ in range(3):
            step()
        return step, (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return build(spec, config, dataset), peak_memory(spec, config, dataset) if memory else None


def peak_memory(spec: Spec, config: BenchConfig, dataset: Dataset) -> float:
    """Return the peak memory of `prepare` on a CPU, in MB, measured in a process of its own."""
    few = Split(
        dataset.train.images[: 3 * config.optim.batch_size], dataset.train.labels[: 3 * config.optim.batch_size]
    )
    small = dataclasses.replace(dataset, train=few, test=few, validation=None)
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload([__name__])  # PyTorch is imported once, not by each
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, spec, config, small).result()


def _peak_memory(spec: Spec, config: BenchConfig, dataset: Dataset) -> float:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tiny = dataclasses.replace(spec.model, depth=1, width=8)
    build(dataclasses.replace(spec, model=tiny), config, dataset)()  # loads what PyTorch loads on first use
    before = peak_mb()
    step = build(spec, config, dataset)
    for _ in range(3):
        step()
    return peak_mb() - before
