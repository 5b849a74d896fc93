"""How long the paper's whole table takes here, from a minute of training of each of its four fleets.

The table is 48 trainings: six activations, with and without GPN and batch normalisation, on MNIST and on CIFAR-10. The
twelve of a dataset and a normalisation share their shapes and make a fleet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pandas as pd
import torch

from bsnn_cli.common.terminal import say
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks.training import Position, Tick, Trainer, evaluate, evaluation_batch, steps_per_epoch, train
from bsnn_cli.runs.runner import member
from bsnn_cli.runs.session import SAVING_SHARE
from bsnn_cli.settings.choices import DATASETS, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import ActivationConfig, BenchConfig, DatasetConfig, ModelConfig, TrainConfig
from bsnn_cli.timing import bench_data
from bsnn_cli.timing.contestants import fleet_of
from bsnn_cli.timing.stopwatch import synchronise

TABLE_STEPS = 24 * (50 * 938 + 100 * 782)
"""Updates behind the paper's table: 24 trainings of 50 epochs on MNIST and 24 of 100 on CIFAR-10, in batches of 64."""

MEASURED_S = 60.0


def project(config: BenchConfig, device: torch.device) -> pd.DataFrame:
    """One row for each fleet: what its updates and evaluations take, and `hours` of its whole training.

    Saving, which takes `SAVING_SHARE` of the time at most, is counted as taking that much.
    """
    rows = []
    for kind in ("mnist", "cifar10"):
        dataset = bench_data.of_the_paper(DatasetConfig(kind=kind, root=config.dataset.root)).to(device)
        for norm in ("none", "batch"):
            say(f"table: training the fleet of twelve on {dataset.name}, norm={norm}, for {MEASURED_S:.0f} s")
            fleet = twelve(config, norm, dataset, device)
            update_s, evaluation_s, measured_s = rates(fleet, dataset, config.optim.batch_size)
            updates, evaluations = counts(dataset, DATASETS[kind].epochs, config.optim.batch_size, norm)
            total = (updates * update_s + evaluations * evaluation_s) / (1 - SAVING_SHARE)
            rows.append(
                {
                    "dataset": dataset.name,
                    "norm": norm,
                    "networks": len(fleet.members),
                    "precision": config.precision,
                    "device": str(device),
                    "threads": torch.get_num_threads(),
                    "measured_s": measured_s,
                    "step_ms": 1e3 * update_s,
                    "evaluation_ms": 1e3 * evaluation_s,
                    "hours": total / 3600,
                }
            )
            del fleet  # its memory is the next one's
    return pd.DataFrame(rows)


def twelve(config: BenchConfig, norm: str, dataset: Dataset, device: torch.device) -> Trainer:
    """The paper's activations with and without GPN."""
    activations = [ActivationConfig(name=name, gpn=gpn) for name in PAPER_ACTIVATIONS for gpn in (False, True)]
    members = [member(TrainConfig(activation=activation, optim=config.optim))[0] for activation in activations]
    model = ModelConfig(depth=config.model.depth, width=config.model.width, norm=norm)
    return fleet_of(members, model, config.optim, dataset, device)


def rates(fleet: Trainer, dataset: Dataset, batch_size: int) -> tuple[float, float, float]:
    """Seconds of an update, of an evaluated batch, and of training that was measured; of all members together."""
    per_epoch = steps_per_epoch(len(dataset.train.labels), batch_size, fleet.model.norm)
    position = Position(0, 0, torch.zeros(len(fleet.members), dtype=torch.float64, device=fleet.device))
    ticks = train(
        fleet, dataset, position, batch_size=batch_size, epochs=10**9, train_every=None, elapsed_s=lambda: 0.0
    )
    for _ in ticks:
        if fleet.device.type == "cpu" or position.epoch > 0:  # on a GPU the first epoch compiles and captures
            break
    begin = per_epoch * position.epoch + position.batch
    training_s, evaluated = spend(ticks, MEASURED_S, fleet.device)
    updates = per_epoch * position.epoch + position.batch - begin
    evaluation_s, batches = spend(evaluate(fleet, dataset, dataset.test), MEASURED_S / 6, fleet.device)
    each = evaluation_s / batches
    return (training_s - evaluated * each) / updates, each, training_s


def spend(ticks: Iterator[Tick | object], seconds: float, device: torch.device) -> tuple[float, int]:
    """Go on for some time, or to the end; returns the seconds it took, and how many evaluated batches came by."""
    evaluated = 0
    synchronise(device)
    begin = time.perf_counter()
    for tick in ticks:
        evaluated += isinstance(tick, Tick) and tick.loss is None
        if time.perf_counter() - begin > seconds:
            break
    synchronise(device)
    return time.perf_counter() - begin, evaluated


def counts(dataset: Dataset, epochs: int, batch_size: int, norm: str) -> tuple[int, int]:
    """Updates and evaluated batches of a training: the test split in every epoch, the training split at the end."""
    train_samples, test_samples = len(dataset.train.labels), len(dataset.test.labels)
    size = evaluation_batch(dataset.train.images.device)
    evaluations = epochs * -(-test_samples // size) + -(-train_samples // size)
    return epochs * steps_per_epoch(train_samples, batch_size, norm), evaluations
