"""Follow lengths, angles and gradients over the layers of a network of finite width.

`meanfield` has the map of one layer, and in `Step` the noise that a finite width adds to it. Here these are carried
from layer to layer: a `Fate` is the predicted course of a quantity, and how far one network may be from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bsnn_cli.gpn.meanfield import (
    ORTHOGONAL,
    Step,
    Transfer,
    Weights,
    gradient_step,
    pair_step,
    variance_step,
)

COLLAPSED = 1e-20
"""A smaller 1 − c counts as 0: float64 can hardly tell such signals apart."""

MOST = 460.0
"""Largest logarithm of a length or of its inverse that is followed; beyond, it counts as infinite or as 0."""


@dataclass(frozen=True)
class Fate:
    """The predicted course of a positive quantity over depth: entry l − 1 is after layer l.

    Attributes:
        predicted: at infinite width, (depth,).
        deviation: standard deviation of its logarithm in one network of finite width, to first order, (depth,).
        shift: of the mean of its logarithm at this width, by the lighter tails of units on a sphere, (depth,).
    """

    predicted: np.ndarray
    deviation: np.ndarray
    shift: np.ndarray

    def band(self, networks: int, deviations: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the band that the geometric mean over independent networks must lie in: (low, high), each (depth,).

        The half width, in logarithms, is `deviations` standard errors of the mean, plus what does not average out: the
        shift, and deviation², the order of all that first order leaves out (the logarithm of a quantity that keeps its
        mean moves down by half of its variance; the curvature of the map adds as much again). Where a length is
        unstable the band grows to all there is: nothing is predicted.
        """
        half = deviations * self.deviation / math.sqrt(networks) + self.deviation**2 + np.abs(self.shift)
        factor = np.exp(np.where(half < MOST, half, math.inf))
        return self.predicted / factor, self.predicted * factor


def followed(q: float) -> bool:
    """Return True for a length that is neither as good as 0 nor beyond floats."""
    return 0 < q < math.inf and abs(math.log(q)) < MOST


def fate_of_length(f: Transfer, depth: int, width: int, start: float = 1.0, weights: Weights = ORTHOGONAL) -> Fate:
    """Predict the squared length per unit ‖x‖²/n over layers of one width, for an input of exactly `start`."""
    predicted, deviation, shift = np.empty(depth), np.zeros(depth), np.zeros(depth)
    q, finite = start, FiniteWidth(width, 1)
    for layer in range(depth):
        step = variance_step(f, q, weights)
        q = float(step.state[0])
        if not followed(q):
            predicted[layer:] = 0 if q < 1 else math.inf
            break
        finite.advance(step)
        predicted[layer] = q
        deviation[layer], shift[layer] = finite.along(np.ones(1))
    return Fate(predicted, deviation, shift)


def fate_of_angle(
    f: Transfer, depth: int, width: int, start: float = 1.0, weights: Weights = ORTHOGONAL, length: float = 1.0
) -> Fate:
    """Predict 1 − c over layers of one width, from two inputs of this squared length per unit and 1 − c, in (0, 2).

    The lengths are followed along, so f need not be normalised.
    """
    predicted, deviation, shift = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    common, opposed, finite = length * (1 - start / 2), length * (start / 2), FiniteWidth(width, 2)
    for layer in range(depth):
        step = pair_step(f, common, opposed, weights)
        common, opposed = (float(part) for part in step.state)
        q = common + opposed
        if not (followed(q) and 2 * opposed > COLLAPSED * q):
            break
        finite.advance(step)
        # log(1 − c) = log 2B − log(A + B), so its gradient in (log A, log B) is A/(A + B) · (−1, 1).
        predicted[layer] = 2 * opposed / q
        deviation[layer], shift[layer] = finite.along(common / q * np.array([-1.0, 1.0]))
    return Fate(predicted, deviation, shift)


def fate_of_gradient(f: Transfer, depth: int, width: int, start: float = 1.0, weights: Weights = ORTHOGONAL) -> Fate:
    """Predict ‖∂E/∂h‖² at the preactivations h of each layer, relative to ‖∂E/∂x‖² at what leaves the last layer.

    The gradient at the top has a random direction. Going down, it is multiplied by f' and by the transposed weights,
    whose scale depends on the length of the signal there: a length that fluctuates changes all layers above. So the
    lengths are followed up first, and the sensitivity of the logarithm to a length at layer l is summed up downwards.
    """
    steps, lengths, q, finite = [], [], start, FiniteWidth(width, 1)
    for _ in range(depth):
        step = gradient_step(f, q, weights)
        steps.append(step)
        lengths.append(finite.along(np.ones(1)))
        if followed(float(step.state[0])):  # otherwise slopes stay as they are at this extreme
            q = float(step.state[0])
            finite.advance(Step(step.state[:1], step.jacobian[:1], step.noise[:1, :1], step.shift[:1]))
    predicted, deviation, shift = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    logarithm, sensitivity, variance, moved = 0.0, 0.0, 0.0, 0.0
    for layer in reversed(range(depth)):
        step, (length_deviation, length_shift) = steps[layer], lengths[layer]
        if not 0 < step.state[1] < math.inf:
            predicted[: layer + 1] = step.state[1]
            break
        direction = np.array([sensitivity, 1.0])  # of log(norm) in the logarithms of (F, m) of this layer
        variance += direction @ step.noise @ direction / width
        moved += direction @ step.shift / width
        sensitivity = float(direction @ step.jacobian[:, 0])
        logarithm += math.log(step.state[1])
        predicted[layer] = math.exp(logarithm) if logarithm < MOST else math.inf
        deviation[layer] = math.sqrt(max(variance + (sensitivity * length_deviation) ** 2, 0))
        shift[layer] = moved + sensitivity * length_shift
        logarithm += 2 * math.log(weights.sigma_w)
        variance += 0 if weights.orthogonal else 2 / width  # ‖Wᵀd‖² of a Gaussian W is a χ² of n degrees of freedom
    return Fate(predicted, deviation, shift)


class FiniteWidth:
    """Covariance and mean shift of the logarithms of a state of k variances, exact at the start, layer by layer."""

    def __init__(self, width: int, k: int) -> None:
        self.width, self.covariance, self.shift = width, np.zeros((k, k)), np.zeros(k)

    def advance(self, step: Step) -> None:
        """Propagate covariance and shift through a layer, and add those of the layer."""
        J = step.jacobian
        self.covariance = J @ self.covariance @ J.T + step.noise / self.width
        self.shift = J @ self.shift + step.shift / self.width

    def along(self, gradient: np.ndarray) -> tuple[float, float]:
        """Return standard deviation and mean shift of a quantity with this gradient, (k,)."""
        return math.sqrt(max(gradient @ self.covariance @ gradient, 0)), float(gradient @ self.shift)
