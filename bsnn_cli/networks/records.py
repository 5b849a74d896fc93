"""The numbers that a training records. Imports no torch, so that run directories are read without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of a whole split in evaluation mode.

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
        learning_rate: of this epoch's last step.
        orthogonality_error: largest |WᵀW − I| over all entries and layers at the end of the epoch, as
            `orthogonal.orthogonality_error` has it of matrices that are not square; None where there are no matrices.
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
    orthogonality_error: float | None
    elapsed_s: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
