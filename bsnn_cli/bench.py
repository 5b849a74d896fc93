"""Speed: this program, plain PyTorch and the matrix products alone, in turns on the same data.

The floor of a step is its 3·L products over distinct matrices: h = xVᵀ and dV in every layer, and dᵀx, which adds to
the momentum. Each round times one step of every implementation, so that whatever else the machine does meets all of
them, and ratios are taken within a round. Memory is measured in processes of their own.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bsnn_cli import baselines, data, fetch
from bsnn_cli.config import BenchConfig, DatasetConfig, ModelConfig, TrainConfig
from bsnn_cli.data import Dataset, Split
from bsnn_cli.files import write_text
from bsnn_cli.fleet import Fleet, Member
from bsnn_cli.formats import render
from bsnn_cli.network import Phi
from bsnn_cli.progress import say
from bsnn_cli.runner import choose_device, member

TABLE_STEPS = 24 * (50 * 938 + 100 * 782)
"""Updates behind the paper's table: 6 activations, with and without GPN and batch normalisation, on MNIST for 50
epochs and on CIFAR-10 for 100, in batches of 64. Evaluation comes on top."""

GROWTH = {"depth": (50, 100, 200, 400), "width": (125, 250, 500, 1000)}
FLEETS = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 12, 24)}
"""What is varied to see how cost grows; numbers of networks by type of device."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        implementation: `bsnn`, `floor`, `plain` (tensors in memory), `plain_fused` (with the fused optimiser),
            `plain_dataloader`, `plain_compiled`, or `torch_` with one of `baselines.ORTHOGONAL_MAPS`: PyTorch's own
            orthogonal parametrisation.
        networks: trained at once.
        model: shape, norm and weights.
    """

    implementation: str
    networks: int
    model: ModelConfig


def run(config: BenchConfig) -> str:
    """Time everything that is asked for; writes `bench.csv` and `bench.md`, returns the latter.

    Raises:
        ConfigError, DataError: the device is not there, or the data cannot be read.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    dataset = data.load(present(config.dataset)).to(device)
    tables = [compare(specs, config, dataset) for specs in cases(config, dataset)]
    notes = []
    if config.growth:
        for name, specs in growth(config, device):
            tables.append(compare(specs, config, dataset, memory=False))
            ours = tables[-1][tables[-1].implementation == "bsnn"]
            exponent = np.polyfit(np.log(ours[name].astype(float)), np.log(ours.step_ms), 1)[0]
            notes.append(f"Time of a step grows like {name}^{exponent:.2f}.")
    folder = Path(config.output_root) / "bench"
    table = pd.concat(tables, ignore_index=True)
    write_text(folder / "bench.csv", table.to_csv(index=False))
    text = describe(table, dataset, notes)
    write_text(folder / "bench.md", text)
    return text


def present(config: DatasetConfig) -> DatasetConfig:
    """The dataset, or scikit-learn's digits where its files have not been fetched: a benchmark fetches nothing."""
    archives = fetch.ARCHIVES.get(config.kind, ())
    if all((Path(config.root) / archive.path).is_file() for archive in archives):
        return config
    say(f"{config.kind} is not in {config.root}; timing with digits (`bsnn data` fetches)")
    return dataclasses.replace(config, kind="digits", name=None)


def cases(config: BenchConfig, dataset: Dataset) -> Iterator[list[Spec]]:
    """Groups of what is compared with each other; the first of a group with the name is its `plain`, its `floor`."""
    sizes = config.networks or ([1] if dataset.train.images.device.type == "cpu" else [1, 12, 24])
    model = config.model
    ours = [Spec(name, networks, model) for networks in sizes for name in ("bsnn", "floor")]
    if config.quick:
        yield [Spec("plain", 1, model), *ours[:2]]
        return
    others = ["plain", "plain_fused", "plain_dataloader"] + ["plain_compiled"] * config.compile
    yield [*(Spec(name, 1, model) for name in others), *ours]
    for norm in {"none", "batch"} - {model.norm}:
        other = dataclasses.replace(model, norm=norm)
        yield [Spec("plain", 1, other), Spec("bsnn", 1, other), Spec("floor", 1, other)]
    exact = dataclasses.replace(model, weights="orthogonal")
    torchs = Spec(fastest_map(config, dataset), 1, exact)
    yield [Spec("plain", 1, model), Spec("bsnn", 1, model), Spec("bsnn", 1, exact), torchs, Spec("floor", 1, model)]


def fastest_map(config: BenchConfig, dataset: Dataset) -> str:
    """The quickest of PyTorch's ways to an orthogonal matrix, found with a network of four layers."""
    shallow = dataclasses.replace(config.model, depth=4, weights="orthogonal")
    specs = [Spec(f"torch_{name}", 1, shallow) for name in baselines.ORTHOGONAL_MAPS]
    times = timed([build(spec, config, dataset) for spec in specs], 3, dataset.train.images.device)
    return specs[int(np.argmin(np.median(times, axis=0)))].implementation


def growth(config: BenchConfig, device: torch.device) -> Iterator[tuple[str, list[Spec]]]:
    """What is varied, as a column, and what is timed for it: this program, and the floor beside it."""
    model = config.model
    for name, values in GROWTH.items():
        models = [dataclasses.replace(model) for _ in values]
        for varied, value in zip(models, values, strict=True):
            setattr(varied, name, value)
        yield name, [Spec(kind, 1, varied) for varied in models for kind in ("bsnn", "floor")]
    yield "networks", [Spec(kind, size, model) for size in FLEETS[device.type] for kind in ("bsnn", "floor")]


def compare(specs: Sequence[Spec], config: BenchConfig, dataset: Dataset, *, memory: bool = True) -> pd.DataFrame:
    """Time some implementations in turns; one row each."""
    say("timing " + ", ".join(f"{spec.implementation} K={spec.networks}" for spec in specs))
    device = dataset.train.images.device
    times = timed([build(spec, config, dataset) for spec in specs], config.rounds, device)
    peaks = [peak_memory(spec, config, dataset) if memory else None for spec in specs]
    plain = next((i for i, spec in enumerate(specs) if spec.implementation == "plain"), None)
    rows = []
    for i, spec in enumerate(specs):
        shape = (spec.networks, spec.model.depth, spec.model.width)
        floor = next(
            j
            for j, other in enumerate(specs)
            if other.implementation == "floor" and (other.networks, other.model.depth, other.model.width) == shape
        )
        low, median, high = np.quantile(times[:, i], (0.25, 0.5, 0.75))
        speed = spec.networks / median
        rows.append(
            {
                "implementation": spec.implementation,
                "networks": spec.networks,
                "depth": spec.model.depth,
                "width": spec.model.width,
                "batch_size": config.optim.batch_size,
                "norm": spec.model.norm,
                "weights": spec.model.weights,
                "device": str(device),
                "step_ms": 1e3 * median,
                "step_ms_low": 1e3 * low,
                "step_ms_high": 1e3 * high,
                "network_steps_per_s": speed,
                "ratio_to_plain": None if plain is None else spec.networks * ratio(times[:, plain], times[:, i]),
                "ratio_to_floor": ratio(times[:, i], times[:, floor]),
                "peak_memory_mb": peaks[i],
                "table_hours": TABLE_STEPS / speed / 3600,
            }
        )
    return pd.DataFrame(rows)


def ratio(numerator: np.ndarray[Any, Any], denominator: np.ndarray[Any, Any]) -> float:
    """Median over the rounds of the ratio within each."""
    return float(np.median(numerator / denominator))


def timed(steps: Sequence[Step], rounds: int, device: torch.device) -> np.ndarray[Any, Any]:
    """Seconds of each step in each round, (rounds, steps), after one round that does not count."""
    times = np.empty((rounds + 1, len(steps)))
    for turn in times:
        for i, step in enumerate(steps):
            synchronise(device)
            begin = time.perf_counter()
            step()
            synchronise(device)
            turn[i] = time.perf_counter() - begin
    return times[1:]


def synchronise(device: torch.device) -> None:
    """Wait for the work of a GPU; a CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(spec: Spec, config: BenchConfig, dataset: Dataset) -> Step:
    """A function that makes one step, the batch included."""
    if spec.implementation == "floor":
        return build_floor(spec, config.optim.batch_size, dataset.train.images.device)
    settings = TrainConfig(activation=config.activation, dataset=config.dataset, optim=config.optim)
    first, _ = member(settings)
    order = batches(len(dataset.train.labels), spec.networks, config.optim.batch_size, dataset.train.images.device)
    if spec.implementation == "bsnn":
        return build_fleet(spec, config, first, dataset, order)
    weights = spec.implementation.removeprefix("torch_")
    network = baselines.plain_network(
        spec.model,
        Phi(first.activation, first.a, first.b),
        dataset.inputs,
        dataset.classes,
        weights if weights in baselines.ORTHOGONAL_MAPS else spec.model.weights,
    ).to(dataset.train.images.device)
    if spec.implementation == "plain_compiled":
        network.compile()
    fused = True if spec.implementation == "plain_fused" else None
    step = baselines.plain_step(network, config.optim.lr, config.optim.momentum, fused)
    images, labels = dataset.standardise(dataset.train.images), dataset.train.labels
    if spec.implementation == "plain_dataloader":
        samples = TensorDataset(images.cpu(), labels.cpu())
        loader = baselines.endless(DataLoader(samples, config.optim.batch_size, shuffle=True, drop_last=True))
        return lambda: step(*(part.to(images.device) for part in next(loader)))

    def plain() -> Tensor:
        [indices] = next(order)
        return step(images[indices], labels[indices])

    return plain


def build_fleet(spec: Spec, config: BenchConfig, first: Member, dataset: Dataset, order: Iterator[Tensor]) -> Step:
    """A step of this program."""
    fleet = Fleet(
        spec.model,
        [dataclasses.replace(first, seed=seed) for seed in range(spec.networks)],
        inputs=dataset.inputs,
        classes=dataset.classes,
        momentum=config.optim.momentum,
        device=dataset.train.images.device,
    )
    images, labels = dataset.train.images, dataset.train.labels

    def step() -> Tensor:
        indices = next(order)
        return fleet.step(dataset.standardise(images[indices]), labels[indices])

    return step


def build_floor(spec: Spec, batch_size: int, device: torch.device) -> Step:
    """The products of a step alone."""
    K, L, n = spec.networks, spec.model.depth, spec.model.width
    V, M = (torch.randn(L, K, n, n, device=device) for _ in range(2))
    x, d = (torch.randn(L, K, batch_size, n, device=device) for _ in range(2))
    out = torch.empty(K, batch_size, n, device=device)

    def step() -> None:
        for matrix, signal in zip(V, x, strict=True):
            torch.bmm(signal, matrix.mT, out=out)
        for matrix, signal in zip(V, d, strict=True):
            torch.bmm(signal, matrix, out=out)
        for momentum, left, right in zip(M, d, x, strict=True):
            momentum.baddbmm_(left.mT, right, beta=0.5)

    return step


def batches(samples: int, networks: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Indices (K, B) of shuffled batches, without end; the short last one of an epoch is left out."""
    while True:
        orders = torch.stack([torch.randperm(samples) for _ in range(networks)]).to(device)
        yield from torch.split(orders[:, : samples - samples % size], size, dim=1)


def peak_memory(spec: Spec, config: BenchConfig, dataset: Dataset) -> float:
    """Memory that three steps need at most beyond the program and the data, in MB, measured in a process of its own."""
    few = Split(
        dataset.train.images[: 3 * config.optim.batch_size], dataset.train.labels[: 3 * config.optim.batch_size]
    )
    small = dataclasses.replace(dataset, train=few, test=few, validation=None).to("cpu")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, spec, config, small, str(dataset.train.images.device)).result()


def _peak_memory(spec: Spec, config: BenchConfig, dataset: Dataset, device: str) -> float:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_device = dataset.to(device)
    before = _peak_mb(device)
    step = build(spec, config, on_device)
    for _ in range(3):
        step()
    return _peak_mb(device) - before


def _peak_mb(device: str) -> float:
    """Of this process so far: memory of the GPU that tensors take, else resident memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage goes on from the peak of the parent process
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1e3
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def describe(table: pd.DataFrame, dataset: Dataset, notes: Sequence[str]) -> str:
    """A Markdown block: a sentence on the circumstances, the table, the notes."""
    device = dataset.train.images.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    head = (
        f"{machine}, torch {torch.__version__}, fp32, {dataset.name}. step_ms: median, with quartiles. ratio_to_plain:"
        " how many times as fast as plain PyTorch. ratio_to_floor: time over that of the matrix products alone."
    )
    shown = table.drop(columns="device")
    return "\n\n".join([head, render(shown, "markdown"), *notes]) + "\n"
