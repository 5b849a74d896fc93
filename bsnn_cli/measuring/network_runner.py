"""Measure a network that is no perceptron for `bsnn propagate network=`, with the files of all other measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.common.random_streams import stream
from bsnn_cli.common.terminal import say
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.errors import ConfigError
from bsnn_cli.measuring.calls import mapped
from bsnn_cli.measuring.modules import Loss, ModuleMeasurement, batch_size, measure_calls, unreached_in_words
from bsnn_cli.measuring.records import CallRecord, Measurement
from bsnn_cli.networks import network_file
from bsnn_cli.networks.convolutional import Convolutional
from bsnn_cli.networks.network import nonlinearity
from bsnn_cli.networks.trainable import Module
from bsnn_cli.runs.loading import load_run
from bsnn_cli.settings.config import PropagateConfig

SIGNALS_KEPT = 4
"""Signals of each hidden layer that are kept for the backward pass: of its product, and of the activation's steps."""


def measure(
    config: PropagateConfig, trained: Mapping[str, Tensor] | None, dataset: Dataset | None, device: torch.device
) -> list[Measurement]:
    """Measure all repeats of a network that is no perceptron: one of another kind, or of the user's own.

    Args:
        config: of the measurement; its `network` says which.
        trained: tensors of a finished run; None for the start of training.
        dataset: whose training samples are sent through the network, with the cross-entropy as loss; None: the inputs
            that the user's function returns, or Gaussian ones, with a Gaussian gradient at the top. Of a network of
            another kind these enter the first hidden layer and leave the last one.
        device: where to compute.

    Raises:
        ConfigError: the network cannot be built or measured, or its layers differ between repeats.
    """
    measurements: list[Measurement] = []
    for seed in range(config.seed, config.seed + config.propagate.repeats):
        module, given = _network(config, trained, dataset, seed)
        module = module.to(device)
        loss = None
        if dataset is not None:
            given, loss = _samples(config, dataset, module, seed, device)
        elif given is None:
            given = _gaussian(config, module, seed, device)
        elif config.network.shape is not None:
            raise ConfigError(f"network.shape: network={config.network.path} returns its inputs; leave it out")
        given = mapped(given, lambda tensor: tensor.to(device))
        measured = measure_calls(module, given, loss, seed=seed, keep_derivatives=True)
        if measured.unreached and not measurements:
            say(f"warning: {unreached_in_words(measured.unreached)}")
        rows = measured.calls
        if measurements and _places(rows) != _places(measurements[0].layers):
            raise ConfigError(f"network={config.network.path}: calls other layers at seed {seed} than at {config.seed}")
        measurements.append(Measurement(rows, _chosen(config, measured), inputs=batch_size(given, 0)))
    return measurements


def _network(
    config: PropagateConfig, trained: Mapping[str, Tensor] | None, dataset: Dataset | None, seed: int
) -> tuple[nn.Module, Any]:
    """Return the module to be measured, and the inputs that the user's function returns, if it does."""
    if trained is not None:
        network = load_run(str(config.run))
    elif config.network.path is not None:
        return network_file.build(config.network, str(network_file.source(config.network)), seed)
    else:
        shape, classes = ((1, 28, 28), 10) if dataset is None else (dataset.shape, dataset.classes)
        network = Convolutional(config.model, nonlinearity(config.activation), shape, classes, seed)
    if isinstance(network, Module):
        return network.module, None
    return network.hidden if dataset is None and isinstance(network, Convolutional) else network, None


def estimate_bytes(config: PropagateConfig) -> int:
    """Return the main memory that the measurement of a convolutional network needs."""
    pixels = math.prod(_shape_of_signals(config)[1:])
    return 4 * SIGNALS_KEPT * config.model.depth * config.propagate.inputs * config.model.width * pixels


def _shape_of_signals(config: PropagateConfig) -> list[int]:
    """Return the shape of one signal in the hidden layers of a convolutional network; 14 × 14 pixels are MNIST's."""
    return [config.model.width, 14, 14] if config.network.shape is None else config.network.shape


def _places(rows: Any) -> list[tuple[str, str, int]]:
    return [(row.module, row.kind, row.call) for row in rows if isinstance(row, CallRecord)]


def _chosen(config: PropagateConfig, measured: ModuleMeasurement) -> dict[int, Tensor]:
    """Return the slopes that get a histogram: of the rows asked for, or of the first, middle and last activation."""
    rows = sorted(measured.derivatives)
    wanted = config.propagate.histogram
    if wanted is None:
        wanted = sorted({rows[0], rows[(len(rows) - 1) // 2], rows[-1]}) if rows else []
    for layer in wanted:
        if layer not in rows:
            known = ", ".join(map(str, rows)) or "none here"
            raise ConfigError(f"propagate.histogram={layer}: must be the row of an activation: {known}")
    return {layer: measured.derivatives[layer] for layer in wanted}


def _gaussian(config: PropagateConfig, module: nn.Module, seed: int, device: torch.device) -> Tensor:
    shape = _shape_of_signals(config) if config.network.path is None else config.network.shape
    if shape is None:
        raise ConfigError(
            f"network={config.network.path}: returns no inputs; return a module and its inputs, or say the shape of one"
            " input, such as network.shape=[3,32,32]"
        )
    x = torch.randn(config.propagate.inputs, *shape, generator=stream(seed, "propagated inputs"), dtype=torch.float32)
    return x.to(device, _dtype(module))


def _samples(
    config: PropagateConfig, dataset: Dataset, module: nn.Module, seed: int, device: torch.device
) -> tuple[Tensor, Loss]:
    """Return training images (B, channels, height, width), and the cross-entropy of their labels."""
    order = torch.randperm(len(dataset.train.labels), generator=stream(seed, "propagated inputs"))
    chosen = order[: config.propagate.inputs]
    labels = dataset.train.labels[chosen].to(device)
    images = dataset.standardise(dataset.train.images[chosen]).view(-1, *dataset.shape)
    return images.to(device, _dtype(module)), lambda output: F.cross_entropy(output, labels)


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the floating dtype of a module's first parameter; float32 if it has none."""
    floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(floating, torch.float32)
