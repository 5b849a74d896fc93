from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bsnn_cli.gpn.gaussian import IntegrationError, Rule, adapt, moment_rule, sqrt_density

ROOT2 = math.sqrt(2)


def density(h: Tensor) -> Tensor:
    return sqrt_density(h) ** 2


def fitted(function: Callable[[Tensor], Tensor]) -> Rule:
    """A rule for E[g(h)] of one function."""
    return adapt(lambda h: {"E[g]": function(h) * density(h)})


def expectation(function: Callable[[Tensor], Tensor]) -> float:
    rule = fitted(function)
    return rule.inner(function(rule.nodes), 1)


@pytest.mark.parametrize("power", [0, 2, 4, 8, 16])
def test_even_moments_are_double_factorials(power: int) -> None:
    exact = math.prod(range(power - 1, 0, -2))
    assert expectation(lambda h: h**power) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("power", [-0.8, -0.5, 0.3, 1, 1.5, 3, 7.7])
def test_powers_of_the_modulus_have_their_closed_form(power: float) -> None:
    exact = 2 ** (power / 2) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    assert expectation(lambda h: h.abs() ** power) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("kink", [-5.3, -math.pi / 2, -0.5, 0.0, 1e-7, 1 / 3, ROOT2, 4.0])
def test_a_kink_anywhere_costs_no_accuracy(kink: float) -> None:
    exact = 2 * float(density(torch.tensor(kink, dtype=torch.float64))) + kink * math.erf(kink / ROOT2)
    assert expectation(lambda h: (h - kink).abs()) == pytest.approx(exact, rel=1e-14)


def test_a_jump_of_an_integrand_is_found() -> None:
    assert expectation(lambda h: (h > ROOT2).double()) == pytest.approx(math.erfc(1) / 2, rel=1e-13)


def test_a_hundred_kinks_are_all_found() -> None:
    kinks = torch.linspace(-3, 3, 101, dtype=torch.float64) + 0.01 * ROOT2
    exact = (2 * density(kinks) + kinks * torch.erf(kinks / ROOT2)).sum()
    assert expectation(lambda h: (h[:, None] - kinks).abs().sum(1)) == pytest.approx(float(exact), rel=1e-13)


def test_all_functions_of_a_rule_are_integrated() -> None:
    rule = adapt(lambda h: {"smooth": h**2 * density(h), "kinked": (h - ROOT2).abs() * density(h)})
    exact = 2 * math.exp(-1) / math.sqrt(2 * math.pi) + ROOT2 * math.erf(1)
    assert rule.inner((rule.nodes - ROOT2).abs(), 1) == pytest.approx(exact, rel=1e-14)
    assert rule.inner(rule.nodes, rule.nodes) == pytest.approx(1, rel=1e-14)


def test_a_rule_covers_the_line_and_has_no_node_on_a_kink() -> None:
    for kink in (0.5, ROOT2):
        rule = fitted(lambda h: (h - kink).abs())  # noqa: B023 - called at once
        assert float(rule.weights.sum()) == pytest.approx(76, rel=1e-14)
        assert not (rule.nodes == kink).any()


def test_squares_that_exceed_float64_do_not_overflow() -> None:
    def huge(h: Tensor) -> Tensor:
        return 1e20 * torch.exp(h * h / 4.5)  # reaches 1e159

    rule = adapt(lambda h: {"E[g²]": (huge(h) * sqrt_density(h)) ** 2})
    values = huge(rule.nodes)
    assert not (values * values).isfinite().all()
    assert rule.inner(values, values) == pytest.approx(3e40, rel=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h: torch.log(h - ROOT2), "E[g] is nan at h = -37.9997"),
        (lambda h: torch.where(h > 3, math.inf, h), "E[g] is inf at h = 3.00"),
        (lambda h: torch.exp(h * h / 2.05), "E[g] is infinite or out of reach"),
        (lambda h: 1 / h.abs(), "E[g] does not converge at h = 0"),
        (lambda h: 1 / (h - ROOT2).abs(), "at h = 1.41421"),
        (lambda h: (h - 1).abs() ** -0.9, "E[g] does not converge at h = 1"),
    ],
)
def test_what_cannot_be_integrated_is_named_with_its_place(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(IntegrationError) as caught:
        fitted(function)
    assert message in str(caught.value)


def test_noise_is_refused_rather_than_averaged() -> None:
    with pytest.raises(IntegrationError, match="does not converge"):
        fitted(lambda h: torch.sin(1e13 * h))


def ramp(h: Tensor) -> tuple[Tensor, Tensor]:
    """From 0 to 1 within 1e-4, which is far less than the first nodes' spacing."""
    inside = 1e4 * (h - ROOT2)
    return inside.clamp(0, 1), 1e4 * ((inside > 0) & (inside < 1)).double()


def test_a_flank_between_the_nodes_is_resolved() -> None:
    rule = moment_rule(lambda h: ramp(h)[0], ramp)
    _, derivative = ramp(rule.nodes)
    mass = (math.erfc(1) - math.erfc(1 + 1e-4 / ROOT2)) / 2
    assert rule.inner(derivative, derivative) == pytest.approx(1e8 * mass, rel=1e-10)


@pytest.mark.parametrize("place", [-2.5, 0.0, 0.25, 1 / 3, ROOT2, 4.0])
@pytest.mark.parametrize("size", [1e-3, -1.0])
def test_a_jump_is_reported_wherever_it_is(place: float, size: float) -> None:
    def function(h: Tensor) -> Tensor:
        return h + size * (h > place)

    with pytest.raises(IntegrationError) as caught:
        moment_rule(function, lambda h: (function(h), torch.ones_like(h)))
    assert f"jumps at h = {place:g}," in str(caught.value).replace("1.41421,", f"{ROOT2:g},")


def test_jumps_that_cancel_are_reported() -> None:
    def box(h: Tensor) -> Tensor:
        return h + (h.abs() < 1)

    with pytest.raises(IntegrationError, match=r"jumps at h = -?1,"):
        moment_rule(box, lambda h: (box(h), torch.ones_like(h)))


def test_a_wrong_derivative_is_reported() -> None:
    with pytest.raises(IntegrationError, match="its derivative is wrong"):
        moment_rule(torch.tanh, lambda h: (torch.tanh(h), 1 - 1.001 * torch.tanh(h) ** 2))
