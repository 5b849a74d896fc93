"""What is measured: one dataclass for each kind of record; names, order and units of every column stand here."""

from __future__ import annotations

import math
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
class LayerRecord:
    """Signals of one layer l over a batch; each is one column of `layers.csv`. NaN = not defined there.

    x^l enters the layer, h^l is what its activation acts on and d^l = ∂E_b/∂h^l is of the loss of one sample b. The row
    l = L + 1 has only the first two: x^{L+1} leaves the last hidden layer.

    Attributes:
        layer: l, counted from 1.
        forward_norm: ‖x^l‖²/n, mean over the batch.
        one_minus_cosine: 1 − c, with c the mean cosine between two different x^l of the batch.
        backward_norm: ‖d^l‖²/n, mean over the batch.
        gradient_norm: ‖∂E/∂W^l‖_F of the batch mean E of the loss.
        preactivation_mean, preactivation_variance: of h^l_i over the batch and all units.
        derivative_mean, derivative_std: of f'(h^l_i) over the batch and all units; f is the activation in use.
        pseudo_linearity: squared correlation of h^l_i with f(h^l_i) over the batch, averaged over the units.
        saturated: share of the h^l_i with |f'(h)| below `propagation.SATURATION` of the largest slope of f.
    """

    layer: int
    forward_norm: float
    one_minus_cosine: float
    backward_norm: float = math.nan
    gradient_norm: float = math.nan
    preactivation_mean: float = math.nan
    preactivation_variance: float = math.nan
    derivative_mean: float = math.nan
    derivative_std: float = math.nan
    pseudo_linearity: float = math.nan
    saturated: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One passage through a network of L hidden layers. NaN = not defined, such as a ratio to a gradient of 0.

    Attributes:
        forward_norm_first, forward_norm_last: ‖x^1‖²/n and ‖x^{L+1}‖²/n.
        backward_norm_first, backward_norm_last: ‖d^1‖²/n and ‖d^L‖²/n.
        gradient_norm_first, gradient_norm_last: ‖∂E/∂W^1‖_F and ‖∂E/∂W^L‖_F.
        gradient_norm_max, gradient_norm_ratio: over the layers, the largest, and the largest over the smallest.
        zero_gradients: number of layers whose gradient is exactly 0.
        preactivation_mean, preactivation_variance, derivative_mean, derivative_std, pseudo_linearity,
            saturated: of h^L, as in `LayerRecord`.
        one_minus_cosine_last: of x^{L+1}.
    """

    forward_norm_first: float
    forward_norm_last: float
    backward_norm_first: float
    backward_norm_last: float
    gradient_norm_first: float
    gradient_norm_last: float
    gradient_norm_max: float
    gradient_norm_ratio: float
    zero_gradients: int
    preactivation_mean: float
    preactivation_variance: float
    derivative_mean: float
    derivative_std: float
    pseudo_linearity: float
    saturated: float
    one_minus_cosine_last: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of `result.json`. Metrics are of the end of the run, accuracies in percent; null where diverged.

    Attributes:
        status: `done` or `diverged`.
        activation: base name, such as "selu".
        root: which solution b was used, null without GPN.
        batch_norm: whether `norm` is `batch`.
        parameters: number of trained values.
        networks: in the fleet that took `elapsed_s`; null in results from before this was noted.
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
    networks: int | None = None
