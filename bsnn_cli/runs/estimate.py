"""Estimates of how long runs take here: from stored runs of the same shape and hardware, else from a few timed steps.

Nothing is promised: a machine that is busy with other work is slower than a quiet one, and the estimate says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsnn_cli.common.files import read_text
from bsnn_cli.common.machine import choose_device, cores
from bsnn_cli.common.terminal import duration
from bsnn_cli.errors import BsnnError
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.config import ModelConfig, TrainConfig
from bsnn_cli.settings.widths import matrix_entries, resized, widths

PROBE_LAYERS = (8, 24)
"""Depths of the networks that are timed; a deeper network's time lies on the line through both. More layers than a
processor's cache holds count for the second."""

PROBE_WIDTH = 2000
"""The networks that are timed have at most this width, since wider ones may not fit into the memory."""

PROBE_S, PROBE_STEPS = 0.2, 5
"""Seconds and steps, at least, that are spent on timing a network."""


@dataclass(frozen=True)
class Estimate:
    """A number of seconds.

    Attributes:
        typical, low, high: the median, and how far the values that it comes from spread.
        runs: stored runs that they come from; 0 if steps were timed now.
    """

    typical: float
    low: float
    high: float
    runs: int = 0


class Estimator:
    """Estimate the time of runs; what has been timed or read once is kept."""

    def __init__(self) -> None:
        self._steps: dict[tuple[Any, ...], Estimate] = {}
        self._stored: dict[str, dict[tuple[Any, ...], list[float]]] = {}

    def step(self, config: TrainConfig) -> Estimate:
        """Return the seconds of a training step of a resolved run, alone on this machine."""
        key = (config.output_root, *shape(config), *hardware(config))
        if key not in self._steps:
            if config.output_root not in self._stored:
                self._stored[config.output_root] = stored(Path(config.output_root))
            seconds = self._stored[config.output_root].get(key[1:], [])
            if seconds:
                self._steps[key] = Estimate(statistics.median(seconds), min(seconds), max(seconds), len(seconds))
            else:
                self._steps[key] = timed(config)
        return self._steps[key]

    def source(self) -> str:
        """Say what the estimates so far come from, and whether this machine is busy."""
        runs = sum(step.runs for step in self._steps.values())
        timed_now = any(step.runs == 0 for step in self._steps.values())
        sources = [f"{runs} stored run{'s' if runs > 1 else ''}"] if runs else []
        sources += ["a few steps timed now"] if timed_now else []
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = f"; this machine is busy (load {load:.1f} on {cores()} processors)" if load > cores() + 0.5 else ""
        return f"from {' and '.join(sources)}{busy if timed_now else ''}" if sources else "nothing to run"


def shape(config: TrainConfig) -> tuple[Any, ...]:
    """Return what the time of a step depends on, besides the hardware."""
    optim = config.optim
    update = (optim.kind, optim.nesterov, optim.weight_decay > 0, optim.clip is not None)
    network = config.network
    other = () if network.kind == "mlp" and network.path is None else (config.dataset.kind, config.dataset.root)
    kind = (network.kind, network.fingerprint, str(network.kwargs), *other)
    return str(config.model), kind, optim.batch_size, config.precision, update


def hardware(config: TrainConfig) -> tuple[str, int]:
    """Return the device that a run will have here, and its threads."""
    import torch

    from bsnn_cli.common import provenance

    device = choose_device(config.device)
    threads = torch.get_num_threads() if config.threads is None else config.threads
    return provenance.device_name(device), threads if device.type == "cpu" else 0


def stored(output_root: Path) -> dict[tuple[Any, ...], list[float]]:
    """Return the seconds of a step in each finished run of a folder, by shape and hardware.

    The time of a fleet is divided among its networks.
    """
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for path in sorted((output_root / "runs").glob("*/*/*/result.json")):
        try:
            directory = RunDirectory(path.parent)
            result, config = directory.result(), directory.config()
            origin = json.loads(read_text(path.with_name("provenance.json")))
            if result is None or result.status != "done" or origin["earlier_sessions"]:
                continue
            threads = origin["threads"] if origin["cuda"] is None else 0
            key = (*shape(config), origin["device"], threads)
            step = result.elapsed_s / (result.networks or 1) / steps_equivalent(config)
            seconds.setdefault(key, []).append(step)
        except (BsnnError, OSError, ValueError, KeyError, TypeError):  # an older or damaged one tells nothing
            continue
    return seconds


def epochs(config: TrainConfig) -> int:
    """Return the epochs of a resolved config."""
    assert config.optim.epochs is not None
    return config.optim.epochs


def samples(config: TrainConfig) -> tuple[int, int]:
    """Return the numbers of samples in the training and the test split; those of an image folder are counted."""
    known = DATASETS[config.dataset.kind].samples
    if known is not None:
        return known
    from bsnn_cli.datasets import image_folder

    files = image_folder.scan(Path(config.dataset.root))
    return len(files.train), len(files.test)


def steps_equivalent(config: TrainConfig) -> float:
    """Return the steps of a whole run, with evaluations counted as the share of a step that they take.

    The products of a step are 6·L·n² floating-point operations a sample, those of an evaluation 2·L·n².
    """
    train, test = samples(config)
    validation = config.dataset.validation * train
    every = config.eval.train_every
    whole = 1 if every is None else epochs(config) / every
    evaluated = epochs(config) * (test + validation) + whole * (train - validation)
    return (epochs(config) * (train - validation) + evaluated / 3) / config.optim.batch_size


def timed(config: TrainConfig) -> Estimate:
    """Return the seconds of an update on random data, from networks of a few layers."""
    if config.network.path is not None:
        low, typical, high = probe(config, config.model)
        return Estimate(typical, low, high)
    scale = min(1.0, PROBE_WIDTH / max(widths(config.model)))
    depths = sorted({min(config.model.depth, depth) for depth in PROBE_LAYERS})
    times = [probe(config, resized(config.model, depth, scale)) for depth in depths]
    low, typical, high = times[-1]
    rest = config.model.depth - depths[-1]
    per_layer = (typical - times[0][1]) / (depths[-1] - depths[0]) if rest > 0 else 0.0
    larger = matrix_entries(config.model) / matrix_entries(resized(config.model, config.model.depth, scale))
    whole = (typical + rest * max(per_layer, 0.0)) * larger
    return Estimate(whole, whole * low / typical, whole * high / typical)


def probe(config: TrainConfig, model: ModelConfig) -> tuple[float, float, float]:
    """Return the first, the fifth and the ninth decile of the seconds that steps of a run with this model take."""
    import torch

    from bsnn_cli.datasets import data
    from bsnn_cli.networks import building
    from bsnn_cli.networks.optimiser import Optimiser
    from bsnn_cli.networks.workers import intra_op_threads

    shape, classes = (1, 1, model.width), 10
    if config.network.path is not None or config.network.kind != "mlp":
        dataset = data.load(config.dataset, progress=False)
        shape, classes = dataset.shape, dataset.classes
    device = choose_device(config.device)
    with intra_op_threads(config.threads or torch.get_num_threads()):
        trainer = building.trainer(
            [dataclasses.replace(config, model=model)],
            shape,
            classes,
            optimiser=Optimiser.of(dataclasses.replace(config.optim, epochs=epochs(config)), steps_per_epoch=1),
            device=device,
        )
        inputs = torch.randn(1, config.optim.batch_size, math.prod(shape), device=device)
        labels = torch.zeros(1, config.optim.batch_size, dtype=torch.int64, device=device)
        seconds: list[float] = []
        with intra_op_threads(trainer.threads):  # as in training
            trainer.step(inputs, labels)  # the first one is slow
            while len(seconds) < PROBE_STEPS or sum(seconds) < PROBE_S:
                begin = time.perf_counter()
                float(trainer.step(inputs, labels).sum())  # reading the loss waits for a GPU
                seconds.append(time.perf_counter() - begin)
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return deciles[0], deciles[4], deciles[8]


def total(estimates: Sequence[Estimate]) -> str:
    """Return the sum of estimates with how far they spread, such as `about 38 s (30 s to 47 s)`."""
    typical, low, high = (
        duration(sum(getattr(estimate, name) for estimate in estimates)) for name in ("typical", "low", "high")
    )
    return f"about {typical}" + (f" ({low} to {high})" if low != high else "")
