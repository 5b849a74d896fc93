"""Speed: this program, plain PyTorch and the limit of the machine, in turns on the same data.

Each round times a step of every implementation of a comparison, and ratios are taken within a round. Growth with
depth, width and number of networks is measured the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bsnn_cli.common.files import write_text
from bsnn_cli.common.machine import choose_device
from bsnn_cli.common.terminal import say
from bsnn_cli.datasets import data, fetch
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.config import BenchConfig, DatasetConfig, ModelConfig
from bsnn_cli.settings.identity import form
from bsnn_cli.timing import baselines, bench_table, contestants, limits
from bsnn_cli.timing.contestants import BASELINES, BOUNDS, LIMITS, Spec
from bsnn_cli.timing.stopwatch import ratio, timed

GROWTH = {"depth": (50, 100, 200, 400), "width": (125, 250, 500, 1000)}
FLEETS = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 12, 24)}
"""Values of the sizes that are varied to see how cost grows; numbers of networks by type of device."""

TABLE_STEPS = 24 * (50 * 938 + 100 * 782)
"""Updates behind the paper's table: 24 trainings of 50 epochs on MNIST and 24 of 100 on CIFAR-10, in batches of 64."""


def run(config: BenchConfig) -> str:
    """Time everything that is asked for, write `bench.csv` and `bench.md`, and return the latter.

    Raises:
        ConfigError, DataError: the device is not there, the model has no plain counterpart, or the data cannot be read.
    """
    device = choose_device(config.device)
    check(config, device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    dataset = present(config.dataset).to(device)
    rows = [row for name, specs in comparisons(config, dataset) for row in compare(name, specs, config, dataset)]
    if config.growth:
        for name, specs in growth(config.model, device):
            rows += compare(name, specs, config, dataset, memory=False)
    table = pd.DataFrame(rows)
    folder = Path(config.output_root) / "bench"
    write_text(folder / "bench.csv", table.to_csv(index=False))
    text = bench_table.describe(table, dataset.name, device)
    write_text(folder / "bench.md", text)
    return text


def present(config: DatasetConfig) -> Dataset:
    """Load the dataset, or scikit-learn's digits where its files have not been fetched; nothing is fetched here."""
    if not all(fetch.is_here(Path(config.root), archive) for archive in fetch.ARCHIVES.get(config.kind, ())):
        say(f"{config.kind} is not in {config.root}; timing with digits (`bsnn data` fetches)")
        config = dataclasses.replace(config, kind="digits", name=None)
    return data.load(config)


def check(config: BenchConfig, device: torch.device) -> None:
    """Raise a ConfigError for what cannot be compared."""
    model = config.model
    default = ModelConfig(depth=model.depth, width=model.width, norm=model.norm, weights=model.weights)
    if model != default or model.norm not in ("none", "batch") or model.weights not in ("unit_rows", "free"):
        raise ConfigError(
            "model: bench compares networks with model.norm=none or batch and model.weights=unit_rows or free, all "
            "else as it is by default; orthogonal weights are compared too, unless it is quick or in tf32"
        )
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32: needs a CUDA device, and this benchmark is on {device}; use fp32")


def comparisons(config: BenchConfig, dataset: Dataset) -> Iterator[tuple[str, list[Spec]]]:
    """Yield the name of each comparison and its contestants; a limit belongs to the fleets of its size."""
    device = dataset.train.images.device
    sizes = config.networks or ([1] if device.type == "cpu" else [1, 12, 24])
    model, bounds = config.model, bounds_of(device)
    ours = [Spec(name, networks, model) for networks in sizes for name in ("bsnn", *bounds)]
    if config.quick:
        yield "main", [Spec("plain", 1, model), *ours[: 1 + len(bounds)]]
        return
    baselines_timed = [name for name in BASELINES if config.compile or name != "plain_compiled"]
    yield "main", [*(Spec(name, 1, model) for name in baselines_timed), *ours]
    for norm in {"none", "batch"} - {model.norm}:
        other = dataclasses.replace(model, norm=norm)
        yield f"norm={norm}", [Spec(name, 1, other) for name in ("plain", "plain_fused", "bsnn", *bounds)]
    if config.precision == "tf32":  # which has too few digits for weights that are to be orthogonal
        return
    exact = dataclasses.replace(model, weights="orthogonal")
    torchs = Spec(fastest_map(config, dataset), 1, exact)
    plain = [Spec(name, 1, model) for name in ("plain", "plain_fused", "bsnn", *bounds)]
    ours = [Spec(name, 1, exact) for name in ("bsnn", *bounds) if name != "products"]
    yield "weights=orthogonal", [*plain, *ours, torchs]


def bounds_of(device: torch.device) -> tuple[str, ...]:
    """Return what bounds a step on a device: without a C compiler the limits of a CPU are not known."""
    return BOUNDS if limits.are_known(device) else ("products",)


def fastest_map(config: BenchConfig, dataset: Dataset) -> str:
    """Return the quickest of PyTorch's ways to an orthogonal matrix, timed in a network of four layers."""
    shallow = dataclasses.replace(config.model, depth=4, weights="orthogonal")
    specs = [Spec(f"torch_{name}", 1, shallow) for name in baselines.ORTHOGONAL_MAPS]
    steps = [contestants.build(spec, config, dataset) for spec in specs]
    times = timed(steps, 3, dataset.train.images.device)
    return specs[int(np.argmin(np.median(times, axis=0)))].implementation


def growth(model: ModelConfig, device: torch.device) -> Iterator[tuple[str, list[Spec]]]:
    """Yield each column that is varied, and its contestants: this program, and the limit beside it."""
    kinds = ("bsnn", *(LIMITS if limits.are_known(device) else ()))
    for name, values in GROWTH.items():
        models = [dataclasses.replace(model) for _ in values]
        for varied, value in zip(models, values, strict=True):
            setattr(varied, name, value)
        yield name, [Spec(kind, 1, varied) for varied in models for kind in kinds]
    yield "networks", [Spec(kind, size, model) for size in FLEETS[device.type] for kind in kinds]


def compare(
    name: str, specs: Sequence[Spec], config: BenchConfig, dataset: Dataset, *, memory: bool = True
) -> list[dict[str, Any]]:
    """Time contestants in turns and return a row for each, without those that a GPU has no memory for."""
    say(f"{name}: timing " + ", ".join(f"{spec.implementation} K={spec.networks}" for spec in specs))
    device = dataset.train.images.device
    fitting, steps, peaks = [], [], []
    for spec in specs:
        try:
            step, peak = contestants.prepare(spec, config, dataset, memory)
        except torch.OutOfMemoryError:
            say(f"{spec.implementation} K={spec.networks} does not fit into the memory of the GPU and is left out")
            continue
        fitting.append(spec)
        steps.append(step)
        peaks.append(peak)
    times = timed(steps, config.rounds, device)
    return [
        {
            "comparison": name,
            "implementation": spec.implementation,
            "networks": spec.networks,
            "depth": spec.model.depth,
            "width": spec.model.width,
            "batch_size": config.optim.batch_size,
            "norm": spec.model.norm,
            "weights": spec.model.weights,
            "activation": config.activation.name + form(config.activation),
            "precision": config.precision,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "peak_memory_mb": peak,
            **measures(i, fitting, times),
        }
        for i, (spec, peak) in enumerate(zip(fitting, peaks, strict=True))
    ]


def measures(i: int, specs: Sequence[Spec], times: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Return the columns of `bench.csv` that follow from times (rounds, specs) in seconds, for the spec of index i."""
    step_s = times[:, i]

    def columns(names: Sequence[str]) -> list[int]:
        return [j for j, spec in enumerate(specs) if spec.implementation in names]

    def speedup(others: list[int]) -> float | None:
        """Return the speed of spec i over that of the one with the shortest median."""
        if not others:
            return None
        best = min(others, key=lambda j: float(np.median(times[:, j])))
        return specs[i].networks * ratio(times[:, best], step_s)

    def size(spec: Spec) -> tuple[int, int, int, bool]:
        return spec.networks, spec.model.depth, spec.model.width, spec.model.weights == "orthogonal"

    def bound(names: Sequence[str]) -> np.ndarray[Any, Any] | None:
        """Return the time of the slowest of some bounds of this size in each round."""
        of_size = [j for j in columns(names) if size(specs[j]) == size(specs[i])]
        return times[:, of_size].max(axis=1) if of_size else None

    limit, products = bound(LIMITS), bound(("products",))
    low, median, high = np.quantile(step_s, (0.25, 0.5, 0.75))
    return {
        "step_ms": 1e3 * median,
        "step_ms_low": 1e3 * low,
        "step_ms_high": 1e3 * high,
        "network_steps_per_s": specs[i].networks / median,
        "ratio_to_plain": speedup(columns(("plain",))),
        "ratio_to_best": speedup(columns(BASELINES)),
        "ratio_to_products": None if products is None else ratio(step_s, products),
        "limit_ms": None if limit is None else 1e3 * float(np.median(limit)),
        "ratio_to_limit": None if limit is None else ratio(step_s, limit),
        "table_hours": TABLE_STEPS * median / specs[i].networks / 3600,
    }
