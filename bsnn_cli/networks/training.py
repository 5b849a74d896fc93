"""The training loop: batches, steps, evaluation. It yields what happened; it knows no files and no configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets.data import Dataset, Split
from bsnn_cli.networks.members import Hyperparameters
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.records import EpochRecord, Evaluation
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import TrainConfig

EVALUATION_BATCH = 500
EVALUATION_BATCH_ON_GPU = 5000
"""Images at once: as many as stay in a core's cache, and as many as fill a GPU."""


class Trainer(Protocol):
    """Trains K networks: `Fleet`, which explains the attributes, or `AutogradTrainer`."""

    optimiser: Optimiser
    device: torch.device
    dtype: torch.dtype
    slow_because: str | None
    steps: Tensor
    alive: Tensor

    @property
    def members(self) -> Sequence[Hyperparameters]: ...  # noqa: D102

    @property
    def arithmetic(self) -> str: ...  # noqa: D102

    @property
    def threads(self) -> int: ...  # noqa: D102

    @property
    def description(self) -> str: ...  # noqa: D102

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor: ...  # noqa: D102

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]: ...  # noqa: D102

    def anyone_alive(self) -> bool: ...  # noqa: D102

    def logits(self, inputs: Tensor) -> Tensor: ...  # noqa: D102

    def orthogonality_error(self) -> Tensor: ...  # noqa: D102

    def member_state(self, k: int) -> dict[str, Tensor]: ...  # noqa: D102

    def parameter_count(self) -> int: ...  # noqa: D102


@dataclass
class Position:
    """The progress of a fleet; together with the fleet's tensors, all that a resumed run needs.

    Attributes:
        epoch: completed epochs.
        batch: batches of the current epoch that are done.
        loss_sum: (K,) float64, sum of the current epoch's batch losses in nats.
    """

    epoch: int
    batch: int
    loss_sum: Tensor


@dataclass(frozen=True)
class Tick:
    """A moment at which the run may be saved or stopped: after an update, or between two batches of an evaluation.

    Attributes:
        loss: (K,) batch losses of the update in nats; None during an evaluation.
    """

    loss: Tensor | None


def train(
    fleet: Trainer,
    data: Dataset,
    position: Position,
    *,
    batch_size: int,
    steps: int,
    epochs: int,
    train_every: int | None,
    elapsed_s: Callable[[], float],
) -> Iterator[Tick | list[EpochRecord]]:
    """Train from `position` to the end of `epochs`, or until no member is alive.

    Args:
        fleet: K networks; changed in place.
        data: on the fleet's device.
        position: where to go on; kept up to date, so that (fleet, position) is a complete state at every yield.
        batch_size: samples in a batch; the last one of an epoch may be shorter.
        steps: in an epoch, as `steps_per_epoch` gives them.
        epochs: to be completed in total.
        train_every: evaluate the whole training split every so many epochs, and at the end in any case.
        elapsed_s: wall time of the run so far in seconds.

    Yields:
        a `Tick` after every update and evaluated batch; after every epoch the K records of it.
    """
    while position.epoch < epochs and fleet.anyone_alive():
        batches = epoch_batches(fleet, position.epoch, len(data.train.labels), batch_size)[:steps]
        for loss in fleet.updates(data, batches[position.batch :]):
            position.loss_sum += loss
            position.batch += 1
            yield Tick(loss)
            if not fleet.anyone_alive():
                return
        epoch = position.epoch + 1
        with_train = epoch == epochs or (train_every is not None and epoch % train_every == 0)
        test = yield from evaluate(fleet, data, data.test)
        train_split = (yield from evaluate(fleet, data, data.train)) if with_train else None
        validation = (yield from evaluate(fleet, data, data.validation)) if data.validation is not None else None
        records = [
            EpochRecord(
                epoch=epoch,
                step=int(fleet.steps[k]),
                train_loss=float(position.loss_sum[k]) / len(batches),
                test_loss=test[k].loss,
                test_accuracy=test[k].accuracy,
                train_accuracy=None if train_split is None else train_split[k].accuracy,
                learning_rate=fleet.members[k].lr * fleet.optimiser.schedule.factor(int(fleet.steps[k]) - 1),
                orthogonality_error=None if math.isnan(error) else error,
                elapsed_s=elapsed_s(),
                validation_loss=None if validation is None else validation[k].loss,
                validation_accuracy=None if validation is None else validation[k].accuracy,
            )
            for k, error in enumerate(fleet.orthogonality_error().tolist())
        ]
        position.epoch, position.batch = epoch, 0
        position.loss_sum.zero_()
        yield records


def steps_per_epoch(config: TrainConfig, samples: int) -> int:
    """Return the updates in an epoch over so many samples.

    With batch normalisation a last batch of one sample is left out, since it has no statistics; so it is for a user's
    own module, which may have such layers.
    """
    full, rest = divmod(samples, config.optim.batch_size)
    smallest = 2 if config.model.norm == "batch" or config.network.path is not None else 1
    return full + (rest >= smallest)


def epoch_batches(fleet: Trainer, epoch: int, samples: int, batch_size: int) -> tuple[Tensor, ...]:
    """Return shuffled indices (K, B) of each batch; member k's order is a function of its seed and the epoch alone."""
    orders = [torch.randperm(samples, generator=stream(member.seed, "batches", epoch)) for member in fleet.members]
    return torch.split(torch.stack(orders).to(fleet.device), batch_size, dim=1)


def evaluation_batch(device: torch.device) -> int:
    """Images evaluated at once."""
    return EVALUATION_BATCH_ON_GPU if device.type == "cuda" else EVALUATION_BATCH


@torch.no_grad()
def evaluate(fleet: Trainer, data: Dataset, split: Split) -> Generator[Tick, None, list[Evaluation]]:
    """Evaluate every member on a whole split, in evaluation mode; yields a `Tick` after each batch."""
    loss = torch.zeros(len(fleet.members), dtype=torch.float64, device=fleet.device)
    correct = torch.zeros(len(fleet.members), dtype=torch.int64, device=fleet.device)
    size = evaluation_batch(fleet.device)
    batches = (torch.split(tensor, size) for tensor in (split.images, split.labels))
    for images, labels in zip(*batches, strict=True):
        with intra_op_threads(fleet.threads):  # idle threads would wait for each other where other programs compute
            logits = fleet.logits(data.standardise(images, fleet.dtype))
            target = labels.expand(len(fleet.members), -1)
            loss += F.cross_entropy(logits.mT, target, reduction="none").double().sum(1)
            correct += (logits.argmax(-1) == target).sum(1)
        yield Tick(None)
    n = len(split.labels)
    return [
        Evaluation(loss=total / n, accuracy=100 * hits / n)
        for total, hits in zip(loss.tolist(), correct.tolist(), strict=True)
    ]
