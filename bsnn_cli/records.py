"""What is measured: one dataclass for each kind of record; names, order and units of every column stand here."""

from __future__ import annotations

from dataclasses import dataclass

NUMERICS_VERSION = 1
"""Stamped into every result. Raise it by hand when a change moves results; tables warn where versions mix."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A whole split in evaluation mode.

    Attributes:
        loss: mean cross-entropy in nats.
        accuracy: in percent.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of `epochs.csv`. Losses are mean cross-entropies in nats, accuracies percent; None = not measured.

    Attributes:
        epoch: counted from 1.
        step: updates done since the start of the run.
        train_loss: mean over the epoch's batches as seen during training.
        test_loss, test_accuracy: of the whole test split, evaluation mode.
        train_accuracy: of the whole training split, evaluation mode.
        learning_rate: of this epoch.
        orthogonality_error: largest |WᵀW − I| over all entries and layers at the end of the epoch.
        elapsed_s: wall time of the run so far in seconds, all its sessions added up.
        validation_loss, validation_accuracy: of the part of the training split set aside, evaluation mode.
    """

    epoch: int
    step: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    train_accuracy: float | None
    learning_rate: float
    orthogonality_error: float
    elapsed_s: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of `result.json`. Metrics are of the end of the run, accuracies in percent; null where diverged.

    Attributes:
        status: `done` or `diverged`.
        activation: base name, such as "selu".
        root: which solution b was used, null without GPN.
        batch_norm: whether `norm` is `batch`.
        parameters: number of trained values.
        numerics: `NUMERICS_VERSION` of the program that made the result.
        diverged_epoch, diverged_step: where the loss or a gradient ceased to be finite; null where done.
    """

    status: str
    train_accuracy: float | None
    test_accuracy: float | None
    train_loss: float | None
    test_loss: float | None
    epochs: int
    steps: int
    elapsed_s: float
    activation: str
    gpn: bool
    root: str | None
    norm: str
    batch_norm: bool
    dataset: str
    depth: int
    width: int
    weights: str
    seed: int
    parameters: int
    numerics: int = NUMERICS_VERSION
    diverged_epoch: int | None = None
    diverged_step: int | None = None
