"""Run `bsnn propagate`: make the network and its inputs, measure all repeats, and write the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bsnn_cli.common import provenance
from bsnn_cli.common.machine import choose_device
from bsnn_cli.common.terminal import say
from bsnn_cli.datasets import data
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.errors import CheckpointError, ConfigError
from bsnn_cli.gpn import custom
from bsnn_cli.measuring import matrices, network_runner, propagation, propagation_store
from bsnn_cli.measuring.propagation import Layers
from bsnn_cli.measuring.records import Measurement
from bsnn_cli.networks import memory, network_file
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.settings.config import PropagateConfig
from bsnn_cli.settings.validation import check
from bsnn_cli.settings.widths import matrix_entries, widths

OVERHEAD_BYTES = 550 * 2**20
"""Memory of the program itself with PyTorch."""


def run(config: PropagateConfig) -> tuple[Path, dict[str, Any]]:
    """Measure what the config asks for, unless it is measured already; return the directory and the summary.

    Raises:
        ConfigError: it cannot be measured here, for example because the network is too large for the memory.
        RunDirectoryError: `run` is no run directory.
    """
    config, trained = of_trained_run(config)
    check(config)
    text = network_file.source(config.network)
    perceptron = text is None and config.network.kind == "mlp"
    if text is None:
        config = dataclasses.replace(config, activation=custom.identified(config.activation))
    else:
        config = dataclasses.replace(config, network=network_file.identified(config.network, text))
    device = choose_device(config.device)
    if config.propagate.source == "dataset":
        dataset = dataclasses.replace(config.dataset, fingerprint=data.fingerprint(config.dataset))
        config = dataclasses.replace(config, dataset=dataset)
    path = propagation_store.directory(config)
    summary = propagation_store.finished(path)
    if summary is not None and not config.force:
        say(f"{path}: finished already; force=true measures it again")
        return path, summary
    if text is None:
        needed = estimate_bytes(config) if perceptron else network_runner.estimate_bytes(config)
        memory.require(needed, config.model, f"propagate.inputs={config.propagate.inputs}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    begin = provenance.collect(device)
    samples = load_dataset(config) if config.propagate.source == "dataset" else None
    if perceptron:
        measurements = measure(config, trained, samples, device)
    else:
        measurements = network_runner.measure(config, trained, samples, device)
    return path, propagation_store.write(path, config, measurements, begin | {"ended": provenance.now()}, text)


def measure(
    config: PropagateConfig, trained: Mapping[str, Tensor] | None, dataset: Dataset | None, device: torch.device
) -> list[Measurement]:
    """Measure all repeats of the network that the config describes."""
    options, depth, dtype = config.propagate, config.model.depth, torch.float32
    chosen = options.histogram or sorted({1, (depth + 1) // 2, depth})
    measurements = []
    with tqdm(
        total=2 * depth * options.repeats, unit="layer", disable=None if config.progress else True, dynamic_ncols=True
    ) as bar:
        for seed in range(config.seed, config.seed + options.repeats):
            layers = Layers(config.model, config.activation, seed, trained, device, dtype)
            if dataset is None:
                sizes = widths(config.model)
                passage = propagation.gaussian_passage(options.inputs, (sizes[0], sizes[-1]), seed, device, dtype)
            else:
                passage = propagation.dataset_passage(
                    dataset, config.model, options.inputs, seed, trained, device, dtype
                )
            measurements.append(propagation.measure(layers, config.activation, passage, chosen, bar.update))
    return measurements


def load_dataset(config: PropagateConfig) -> Dataset:
    """Load the dataset, which must have enough training samples."""
    dataset = data.load(config.dataset, progress=config.progress)
    samples = len(dataset.train.labels)
    if config.propagate.inputs > samples:
        raise ConfigError(
            f"propagate.inputs={config.propagate.inputs}: must be at most {samples}, the training samples"
        )
    return dataset


def of_trained_run(config: PropagateConfig) -> tuple[PropagateConfig, dict[str, Tensor] | None]:
    """Return with `run=` the config of that run's network, and its weights; otherwise (config, None).

    Raises:
        ConfigError: the run is not finished, has not kept its weights, or another network is asked for beside it.
    """
    if config.run is None:
        return config, None
    directory = Path(config.run)
    run = RunDirectory(directory)
    run_config, default = run.config(), PropagateConfig()
    for name in ("activation", "model", "dataset", "approach", "network"):
        value = getattr(config, name)
        if name != "dataset" and value not in (getattr(default, name), getattr(run_config, name)):
            raise ConfigError(f"{name}: run={config.run} brings its own; leave out what you have said about it")
    try:
        weights = checkpoint.load(directory / "weights.pt")
    except CheckpointError as error:
        raise ConfigError(f"run={config.run}: needs the weights of a finished run ({error})") from error
    dataset = dataclasses.replace(run_config.dataset, root=config.dataset.root)
    result, network = run.result(), run_config.network
    if network.path is not None and config.propagate.source == "gaussian" and result is not None:
        network = dataclasses.replace(network, shape=result.image)
    return dataclasses.replace(
        config,
        activation=run_config.activation,
        model=run_config.model,
        network=network,
        dataset=dataset,
        approach=run_config.approach,
        weights_digest=checkpoint.digest(weights)[:10],
    ), weights


def estimate_bytes(config: PropagateConfig) -> int:
    """Return the main memory that a measurement needs; signals and matrices that are kept in a file take none."""
    sizes, B = widths(config.model), config.propagate.inputs
    n = max(sizes)
    entering, products, weights = 4 * B * sum(sizes[:-1]), 4 * B * sum(sizes[1:]), 4 * matrix_entries(config.model)
    drawn_ahead = matrices.DRAWERS * 4 * 4 * n * n
    signals = sum(
        0 if kept > matrices.KEPT_BYTES and matrices.fits_on_disk(kept) else kept for kept in (entering, products)
    )
    if config.run is None and weights > matrices.KEPT_BYTES:
        weights = 0
    return signals + weights + drawn_ahead + 8 * 4 * n * n + 16 * 4 * B * n + OVERHEAD_BYTES
