"""Where a function is not smooth: to the last digits, and what hangs on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn import meanfield
from bsnn_cli.gpn.kinks import kinks
from bsnn_cli.gpn.module import GPN
from bsnn_cli.gpn.tailored import solve


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (lambda h: torch.relu(h + 0.12345678) + h, (-0.12345678,)),
        (lambda h: torch.relu(h + 1 / 3), (-1 / 3,)),
        (F.hardtanh, (-1, 1)),
        (lambda h: F.elu(h + 1 / 3), (-1 / 3,)),  # continuous in slope, as the next two
        (F.hardswish, (-3, 3)),
        (lambda h: h + torch.relu(h - math.sqrt(0.5)) ** 2, (math.sqrt(0.5),)),
        (lambda h: h.abs() + 2 * (h - 0.01).abs(), (0, 0.01)),
        (lambda h: torch.relu(h - 30), (30,)),
        (torch.tanh, ()),
        (lambda h: torch.sin(30 * h), ()),
    ],
)
def test_kinks_are_found_to_the_last_digits(function: Callable[[Tensor], Tensor], places: tuple[float, ...]) -> None:
    assert kinks(function) == pytest.approx(places, abs=1e-14)


def test_a_gain_brings_kinks_into_sight() -> None:
    assert kinks(lambda h: h + torch.relu(h - 60)) == ()
    assert kinks(lambda h: h + torch.relu(h - 60), 32.0) == pytest.approx((60,), abs=1e-13)


def test_too_many_kinks_are_refused() -> None:
    with pytest.raises(ActivationError, match="more than 512 kinks"):
        kinks(lambda h: (torch.remainder(h, 0.02) - 0.01).abs())


@pytest.mark.parametrize("separation", [1e-10, 1e-5, 0.3, 1.0])
@pytest.mark.parametrize("kink", [-0.12345678, 1 / 3, 1.5])
def test_the_map_of_a_shifted_relu_has_eleven_digits_however_near_two_signals_are(
    kink: float, separation: float
) -> None:
    """1 − C is ∫P(z₁ > k, z₂ > k) over the covariance, and P is Φ(−k) less the integral of a density: no kink left."""
    points, weights = np.polynomial.legendre.leggauss(64)
    x = math.sqrt(separation) * (1 + points) / 2  # covariance 1 − x²
    covariance = 1 - x * x
    density = np.exp(-(kink**2) / (1 + covariance)) / (2 * np.pi * x * np.sqrt(1 + covariance))
    lost = math.sqrt(separation) / 2 * float(weights @ ((separation - x * x) * density * 2 * x))
    expected = separation * math.erfc(kink / math.sqrt(2)) / 2 - lost
    f = meanfield.transfer(lambda h: torch.relu(h - kink), gpn=False)
    assert meanfield.separation_map(f, separation) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    ("function", "depth", "separation"),
    [
        (nn.Hardsigmoid(), 20, 0.3),
        (lambda h: F.hardtanh(h, -1, 2), 20, 0.9),
        (lambda h: F.elu(h + 0.33), 20, 0.7),
        (lambda h: torch.relu(h + 1 / 3), 20, 0.5),
    ],
)
def test_functions_with_kinks_away_from_0_are_tailored(
    function: Callable[[Tensor], Tensor], depth: int, separation: float
) -> None:
    f = meanfield.transfer(functools.partial(solve(function, separation, depth), function))
    left = 1.0
    for _ in range(depth):
        left = meanfield.separation_map(f, left)
    assert left == pytest.approx(separation, abs=1e-8)


def test_hardtanh_at_200_layers() -> None:
    """Solved independently, with quadrature between known kinks."""
    found = GPN(F.hardtanh, depth=200)
    assert (found.tailoring.gain, found.a) == pytest.approx((0.3812636488, 2.6343673671), abs=1e-10)
