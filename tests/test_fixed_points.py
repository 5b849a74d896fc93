"""Fixed points of lengths against iteration and closed forms, and the edge of chaos against published curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

import bsnn_cli
from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn.meanfield import Weights, variance_map
from bsnn_cli.theory.activation import given
from bsnn_cli.theory.fixed_points import FixedPoint, fixed_points
from bsnn_cli.theory.phase_diagram import edge


def points(name: str, **weights: float) -> list[FixedPoint]:
    return fixed_points(given(name).transfer(), Weights(**weights))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "end"), [("gelu_gpn", 77.5243), ("silu_gpn", 7.27092), ("softplus_gpn", 3.15937)])
def test_basins_end_where_iterated_lengths_no_longer_return(name: str, end: float) -> None:
    stable, unstable, infinity = points(name)
    assert (stable.stability, unstable.stability, infinity.stability) == ("stable", "unstable", "stable")
    assert stable.q == pytest.approx(1, abs=1e-9)
    assert (stable.basin_low, stable.basin_high) == (0, pytest.approx(end, rel=1e-5))
    assert (unstable.q, infinity.q, infinity.basin_low) == (stable.basin_high, math.inf, stable.basin_high)
    f = given(name).transfer()
    for start, returns in ((1e-6, True), (0.99 * end, True), (1.01 * end, False)):
        q = start
        for _ in range(1000):
            q = variance_map(f, q)
            if q > 1e6:
                break
        assert (q == pytest.approx(1, abs=1e-3)) is returns


def test_lengths_collapse_stay_or_explode_under_relu_as_its_scale_says() -> None:
    [zero] = points("relu", sigma_w=1.0)
    assert (zero.q, zero.basin_high) == (0, math.inf)
    assert zero.slope == pytest.approx(0.5)
    [kept] = points("relu", sigma_w=math.sqrt(2))
    assert (kept.stability, kept.basin_low, kept.basin_high) == ("neutral", 0, math.inf)
    [grown] = points("relu", sigma_w=2.0)
    assert grown.q == math.inf
    assert grown.slope == pytest.approx(2)
    # With biases q = q σ_w²/2 + σ_b²/2.
    [biased] = points("relu", sigma_w=1.0, sigma_b=0.5)
    assert biased.q == pytest.approx(0.25, rel=1e-9)
    assert points("relu", sigma_w=math.sqrt(2), sigma_b=0.1)[-1].q == math.inf


def test_small_biases_move_the_fixed_point_of_tanh_from_zero() -> None:
    [point] = points("tanh", sigma_w=0.5, sigma_b=1e-6)
    assert point.q == pytest.approx(1e-12 / (1 - 0.25), rel=1e-6)


def test_the_fixed_point_of_erf_has_its_closed_form() -> None:
    """F(v) = (2/π) asin(2v/(1 + 2v))."""
    [point] = fixed_points(given(torch.erf).transfer(), Weights(sigma_w=1.5, sigma_b=0.2))

    def excess(q: float) -> float:
        v = 2.25 * q + 0.04
        return 2 / math.pi * math.asin(2 * v / (1 + 2 * v)) - q

    assert point.q == pytest.approx(brentq(excess, 0.01, 1), rel=1e-9)
    slope = (excess(point.q + 1e-6) - excess(point.q - 1e-6)) / 2e-6 + 1
    assert point.slope == pytest.approx(slope, rel=1e-6)


def test_a_length_that_is_only_touched_is_half_stable() -> None:
    """Smooth TAT has F(1) = F'(1) = 1: lengths come to 1 from one side and leave on the other."""
    near = [point for point in fixed_points(given(bsnn_cli.tat("softplus", 20)).transfer()) if abs(point.q - 1) < 1e-3]
    assert [point.stability for point in near] == ["half-stable"]
    assert near[0].slope == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0])
def test_all_lengths_of_a_basin_return_where_the_map_goes_up_and_down(scale: float) -> None:
    f = given(lambda h: scale * h * torch.exp(-h * h) + 0.2 * h).transfer()
    followed = [point for point in fixed_points(f) if point.stability == "stable" and 0 < point.q < math.inf]
    assert followed or scale > 2
    for point in followed:
        for start in np.geomspace(max(point.basin_low, 1e-3) * 1.2, min(point.basin_high, 1e3) / 1.2, 5):
            q = float(start)
            for _ in range(300):
                q = variance_map(f, q)
            assert q == pytest.approx(point.q, rel=1e-3)


@pytest.mark.parametrize(
    ("keys", "phase"),
    [
        ({"activation": "tanh", "sigma_w": 0.9}, "ordered"),
        ({"activation": "tanh", "sigma_w": 1.0}, "edge"),
        ({"activation": "tanh", "sigma_w": 1.1}, "chaotic"),
        ({"activation": "tanh", "sigma_w": 1.1, "sigma_b": 0.3}, "ordered"),
        ({"activation": "relu", "sigma_w": math.sqrt(2)}, "edge"),
        ({"activation": "relu", "sigma_w": 1.5}, "chaotic"),
        ({"activation": "gelu_gpn"}, "edge"),
        ({"activation": "tanh_gpn", "sigma_w": 1.1}, "chaotic"),
        ({"activation": "identity"}, "edge"),
    ],
)
def test_phases(keys: dict[str, object], phase: str) -> None:
    assert bsnn_cli.predict(**(keys | {"depth": 1})).phase == phase  # type: ignore[arg-type]


def gaussian_mean(g: object, v: float) -> float:
    value: float = quad(lambda z: g(math.sqrt(v) * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi), -12, 12)[0]  # type: ignore[operator]
    return value


def test_the_edge_of_tanh_is_the_published_curve() -> None:
    """It starts at σ_w² = 1, σ_b = 0, and obeys the two equations of Schoenholz et al. 2017 by another quadrature."""
    rows = edge("tanh")
    assert rows.sigma_w_squared.iloc[0] == pytest.approx(1, abs=3e-4)
    assert rows.sigma_b_squared.iloc[0] == pytest.approx(0, abs=1e-7)
    for row in rows.iloc[::20].itertuples():
        v = row.variance
        q = gaussian_mean(lambda h: math.tanh(h) ** 2, v)
        assert row.sigma_w_squared * q + row.sigma_b_squared == pytest.approx(v, rel=1e-7)
        assert row.sigma_w_squared * gaussian_mean(lambda h: math.cosh(h) ** -4, v) == pytest.approx(1, rel=1e-7)
    assert (rows.chi < 1).all()
    assert (rows.sigma_w_squared.diff()[1:] > 0).all()


def test_the_edges_meet_their_closed_forms_and_gpn_at_one() -> None:
    relu = edge("relu", [0.3, 1.0, 5.0])
    assert list(relu.sigma_w_squared) == pytest.approx([2, 2, 2])
    assert list(relu.sigma_b_squared) == [0, 0, 0]
    for name in ("tanh", "elu", "selu", "gelu"):
        [row] = edge(f"{name}_gpn", [1.0]).itertuples()
        assert (row.sigma_w_squared, row.length) == (pytest.approx(1, rel=1e-9), pytest.approx(1, rel=1e-9))
        assert row.sigma_b_squared == 0
    assert len(edge("softplus")) == 0  # no bias is small enough: Softplus never returns less than 0
    with pytest.raises(ConfigError, match="variances: -1"):
        edge("tanh", [-1.0])


@pytest.mark.parametrize("name", ["tanh", "elu", "gelu"])
def test_on_the_edge_a_prediction_says_so(name: str) -> None:
    row = edge(name, [2.0]).iloc[0]
    prediction = bsnn_cli.predict(
        name, 2, sigma_w=math.sqrt(row.sigma_w_squared), sigma_b=math.sqrt(row.sigma_b_squared), start=row.length
    )
    assert prediction.phase == "edge"
    assert prediction.length == pytest.approx(row.length, rel=1e-6)
    assert prediction.chi == pytest.approx(row.chi, rel=1e-6)


def test_the_slope_of_the_correlation_map_at_zero() -> None:
    tanh = bsnn_cli.predict("tanh_gpn", 1)
    assert tanh.correlation_slope_at_0 == pytest.approx(tanh.moments["E[f']"] ** 2, rel=1e-9)
    # erf with biases: E[f'(h₁)f'(h₂)] = (4/π)/√((1 + 2v)² − 4c²).
    biased = bsnn_cli.predict(torch.erf, 1, sigma_w=1.5, sigma_b=0.4)
    v = 2.25 * biased.length + 0.16
    expected = 2.25 * 4 / math.pi / math.sqrt((1 + 2 * v) ** 2 - 4 * 0.16**2)
    assert biased.correlation_slope_at_0 == pytest.approx(expected, rel=1e-8)
