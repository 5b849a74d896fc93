from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.activations import ACTIVATIONS, get, normalise
from bsnn_cli.gpn.meanfield import (
    Step,
    Transfer,
    basin,
    pair_step,
    separation,
    separation_map,
    transfer,
    variance_map,
    variance_step,
)
from bsnn_cli.theory.fates import fate_of_angle, fate_of_length

SEPARATIONS = (1.9, 1.0, 0.3, 1e-2, 1e-4, 1e-8, 1e-12)


def arc_cosine(separation: float) -> float:
    """1 − C(c) of √2·relu (Cho and Saul 2009), written so that nothing cancels."""
    theta = 2 * math.asin(math.sqrt(separation / 2))
    if theta < 0.01:
        rest = theta**3 / 3 - theta**5 / 30 + theta**7 / 840
    else:
        rest = math.sin(theta) - theta * math.cos(theta)
    return 2 * math.sin(theta / 2) ** 2 - rest / math.pi


def clipped(c: float, low: float, high: float) -> float:
    """E[f(z₁)f(z₂)] of f = clip(z, low, high), by one integral over a closed form of the other."""
    s = math.sqrt(1 - c * c)

    def cumulative(x: float) -> float:
        return (1 + float(erf(x / math.sqrt(2)))) / 2

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def inner(x: float) -> float:
        a, b = (low - c * x) / s, (high - c * x) / s
        inside = c * x * (cumulative(b) - cumulative(a)) + s * (density(a) - density(b))
        return low * cumulative(a) + high * (1 - cumulative(b)) + inside

    def outer(x: float) -> float:
        return density(x) * min(max(x, low), high) * inner(x)

    return sum(quad(outer, *ends, epsabs=1e-13)[0] for ends in ((-12, low), (low, high), (high, 12)))


@pytest.mark.parametrize("value", SEPARATIONS)
def test_a_linear_activation_keeps_every_angle(value: float) -> None:
    assert separation_map(transfer("identity"), value) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("value", SEPARATIONS)
@pytest.mark.parametrize("root", ["upper", "lower"])
def test_relu_has_the_arc_cosine_kernel_however_close_the_signals(value: float, root: str) -> None:
    assert separation_map(transfer("relu", root=root), value) == pytest.approx(arc_cosine(value), rel=1e-11)


@pytest.mark.parametrize("value", SEPARATIONS)
def test_erf_has_its_closed_form(value: float) -> None:
    f = transfer(lambda h: torch.erf(h), gpn=False)
    # (2/π)(asin a − asin b), with a = 2/3 and b = 2c/3, as the angle between (√(1−a²), a) and (√(1−b²), b).
    a, b = 2 / 3, 2 * (1 - value) / 3
    cosines = math.sqrt(1 - a * a), math.sqrt(1 - b * b)
    sine = (
        2 * value / 3 * (a + b) / (a * cosines[1] + b * cosines[0])
        if value < 1.5
        else math.sin(math.asin(a) - math.asin(b))
    )
    assert separation_map(f, value) == pytest.approx(2 / math.pi * math.asin(sine), rel=1e-10)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, math.sqrt(2)), (0.25, 2.0)])
@pytest.mark.parametrize("c", [0.0, 0.4, 0.99, -0.7])
def test_kinks_of_one_function_anywhere_are_found_and_handled(low: float, high: float, c: float) -> None:
    f = transfer(lambda h: h.clamp(low, high), gpn=False)
    assert f.kinks == pytest.approx((low, high), abs=3e-6)
    common, opposed = pair_step(f, (1 + c) / 2, (1 - c) / 2).state
    assert common - opposed == pytest.approx(clipped(c, low, high), abs=1e-9)
    assert common + opposed == pytest.approx(variance_map(f, 1.0), abs=1e-9)


@pytest.mark.parametrize("name", ["elu", "selu", "relu", "lrelu"])
def test_kinks_of_named_activations_are_at_zero_exactly(name: str) -> None:
    assert transfer(name).kinks == (0.0,)


@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 7.0, 1e4, 1e12])
def test_the_variance_map_has_its_closed_forms(q: float) -> None:
    assert variance_map(transfer("relu", gpn=False), q) == pytest.approx(q / 2, rel=1e-12)
    smooth = transfer(lambda h: torch.erf(h), gpn=False)
    assert variance_map(smooth, q) == pytest.approx(2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-9)


@pytest.mark.parametrize("root", ["upper", "lower"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_normalised_lengths_are_a_fixed_point_with_slope_chi(name: str, root: str) -> None:
    step = variance_step(transfer(name, root=root), 1.0)
    assert step.state == pytest.approx([1], abs=1e-9)
    assert step.jacobian == pytest.approx(np.array([[normalise(name, root).chi]]), abs=1e-8)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_near_equal_signals_the_slope_of_the_correlation_map_is_one(name: str) -> None:
    assert separation_map(transfer(name), 1e-10) == pytest.approx(1e-10, rel=2e-5)


@pytest.mark.parametrize("name", ["tanh", "relu", "elu"])
def test_the_jacobian_is_the_derivative_of_the_map(name: str) -> None:
    f, state, h = transfer(name), np.array([0.8, 0.3]), 1e-5
    for column in range(2):
        shift = np.exp(h * np.eye(2)[column])
        up, down = pair_step(f, *state * shift).state, pair_step(f, *state / shift).state
        slope = (np.log(up) - np.log(down)) / (2 * h)
        assert pair_step(f, *state).jacobian[:, column] == pytest.approx(slope, abs=1e-8)


def test_noise_by_hand() -> None:
    assert variance_step(transfer("identity"), 1.0).noise == pytest.approx(0, abs=1e-12)
    assert pair_step(transfer("identity"), 0.7, 0.2).noise == pytest.approx(np.zeros((2, 2)), abs=1e-12)
    # f² = 2·relu² has mean 1 and variance 4·3/2 − 1 = 5; χ = 1 takes 2χ² off.
    assert variance_step(transfer("relu"), 1.0).noise == pytest.approx(3, abs=1e-12)
    # On average a rotation leaves half of the squared length to relu, at any width.
    assert variance_step(transfer("relu"), 1.0).shift == pytest.approx(0, abs=1e-12)


def rotated(name: str, n: int, draws: int) -> tuple[np.ndarray, Step]:
    """Means over n units of squared common and opposed parts, relative to those of infinite width, (2, draws)."""
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, draws, n, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    v = v - (v * u).sum(1, keepdim=True) * u
    s, t = math.sqrt(0.7 * n) * u, math.sqrt(0.3 * n) * v / v.norm(dim=1, keepdim=True)
    f, step = transfer(name).f, pair_step(transfer(name), 0.7, 0.3)
    parts = torch.stack([((f(s + t) + f(s - t)) / 2).square(), ((f(s + t) - f(s - t)) / 2).square()])
    return parts.mean(2).numpy() / step.state[:, None], step


@pytest.mark.parametrize("name", ["tanh", "softplus", "elu"])
def test_noise_is_that_of_rotated_signals(name: str) -> None:
    relative, step = rotated(name, n=400, draws=10_000)
    assert 400 * np.cov(relative) == pytest.approx(step.noise, rel=0.06, abs=0.02)


@pytest.mark.parametrize("name", ["tanh", "softplus"])
def test_shift_is_that_of_rotated_signals(name: str) -> None:
    n, draws = 20, 160_000
    relative, step = rotated(name, n, draws)
    error = np.sqrt(n * np.diag(step.noise) / draws)
    assert (np.abs(step.shift) > 8 * error).any()
    assert (np.abs(n * (relative.mean(1) - 1) - step.shift) < 4 * error + 0.1 * np.abs(step.shift)).all()


@pytest.mark.parametrize("name", ["tanh", "relu", "elu", "gelu"])
@pytest.mark.parametrize("start", [1.0, 0.2])
def test_separation_iterates_the_map(name: str, start: float) -> None:
    value = start
    for _ in range(20):
        value = separation_map(transfer(name), value)
    assert separation(name, 20, start) == pytest.approx(value, rel=1e-9)


def test_separation_of_limits() -> None:
    assert separation("tanh", 0, 0.4) == 0.4
    assert separation("identity", 200) == pytest.approx(1, abs=1e-12)
    assert separation("relu", 1) == pytest.approx(1 - 1 / math.pi, abs=1e-12)


def test_angles_are_lost_like_1_over_depth_if_smooth_and_1_over_its_square_with_a_kink() -> None:
    assert separation("tanh", 4000) / separation("tanh", 8000) == pytest.approx(2, rel=0.01)
    assert separation("relu", 4000) / separation("relu", 8000) == pytest.approx(4, rel=0.01)


def test_separation_orders_activations_as_their_published_accuracies() -> None:
    assert separation("elu", 200) > 2 * separation("tanh", 200) > 10 * separation("relu", 200)


@pytest.mark.parametrize("slope", [0.8, 0.5])
def test_separation_of_leaky_relu_follows_from_the_arc_cosine_kernel(slope: float) -> None:
    value = 1.0
    for _ in range(200):
        value = (slope * value + (1 - slope) ** 2 * arc_cosine(value) / 2) / ((1 + slope * slope) / 2)
    assert separation(lambda h: torch.nn.functional.leaky_relu(h, slope), 200) == pytest.approx(value, rel=1e-9)


def test_a_gentler_tanh_keeps_more_of_the_angle() -> None:
    assert separation(lambda h: torch.tanh(0.3 * h), 200) == pytest.approx(0.370, abs=0.001)


@pytest.mark.parametrize(
    ("name", "root", "expected"),
    [
        ("gelu", "lower", 77.5243),
        ("gelu_exact", "lower", 105.107),
        ("silu", "lower", 7.27092),
        ("softplus", "lower", 3.15937),
        ("mish", "lower", 381.482),
        ("gelu", "upper", 1),
        ("softplus", "upper", 1),
        ("tanh", "upper", math.inf),
        ("elu", "upper", math.inf),
        ("selu", "upper", math.inf),
        ("sigmoid", "upper", math.inf),
        ("relu", "upper", math.inf),
        ("identity", "upper", math.inf),
    ],
)
def test_the_basin_of_lengths_ends_where_they_begin_to_grow(name: str, root: str, expected: float) -> None:
    f = transfer(name, root=root)
    q = basin(f)
    assert q == pytest.approx(expected, rel=1e-5)
    if 1 < q < math.inf:
        assert fate_of_length(f, 400, 100, 0.98 * q).predicted[-1] == pytest.approx(1, abs=0.01)
        assert fate_of_length(f, 400, 100, 1.02 * q).predicted[-1] > 2 * q


def test_at_a_small_gain_the_basin_is_that_of_a_line_with_a_parabola() -> None:
    """For h + βh², β → 0, F(q) = q is 3q² − (6 + 2√2)q + (1 + √2)² = 0: q is 1 or (1 + √2)²/3."""
    for name in ("silu", "softplus", "gelu_exact"):
        phi = get(name).phi
        assert basin(transfer(lambda h, phi=phi: phi(0.03 * h))) == pytest.approx((1 + math.sqrt(2)) ** 2 / 3, rel=5e-3)


def test_steep_functions_are_resolved_or_refused() -> None:
    f = transfer(lambda h: torch.tanh(20 * h), gpn=False)
    assert f.grain < 1
    # An independent rule: many equal panels.
    z = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 20_000 - 10
    assert variance_map(f, 1.0) == pytest.approx(
        float((torch.tanh(20 * z).square() * torch.exp(-z * z / 2)).sum() / 20_000 / math.sqrt(2 * math.pi)), abs=1e-9
    )
    with pytest.raises(ActivationError, match="too steep away from h = 0"):
        transfer(lambda h: torch.tanh(50 * (h - 2)), gpn=False)
    with pytest.raises(ActivationError, match="no mean-field maps"):
        transfer(lambda h: 1 / h, gpn=False)


def test_what_float64_cannot_follow_ends_as_zero_or_infinity() -> None:
    halved = fate_of_length(Transfer(lambda h: 1e-40 * h), 10, 100)
    grown = fate_of_length(Transfer(lambda h: 1e40 * h), 10, 100)
    assert halved.predicted[1] == pytest.approx(1e-160)
    assert (halved.predicted[2:] == 0).all()
    assert np.isinf(grown.predicted[2:]).all()
    collapsed = fate_of_angle(transfer("sigmoid", gpn=False), 60, 100)
    assert collapsed.predicted[2] > 0
    assert (collapsed.predicted[40:] == 0).all()
    for fate in (halved, grown, collapsed):
        low, high = fate.band(4, 4.0)
        assert not np.isnan(low).any()
        assert not np.isnan(high).any()


def test_an_unstable_length_is_not_predicted() -> None:
    low, high = fate_of_length(transfer("silu", root="upper"), 200, 500).band(16, 4.0)
    assert low[-1] == 0
    assert high[-1] == math.inf
    low, high = fate_of_length(transfer("silu", root="lower"), 200, 500).band(16, 4.0)
    assert 0.9 < low[-1] < high[-1] < 1.1


def test_a_band_narrows_with_width_and_with_networks() -> None:
    def half_width(width: int, networks: int) -> float:
        low, high = fate_of_length(transfer("tanh"), 50, width).band(networks, 4.0)
        return math.log(high[-1] / low[-1]) / 2

    assert half_width(1000, 1) < half_width(100, 1) / 3
    assert half_width(1000, 16) < half_width(1000, 1) / 3
