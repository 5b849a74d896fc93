"""Gaussian-Poincaré normalisation: the constants a, b of named and of arbitrary functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.activations import ACTIVATIONS, get, gpn_coefficients, normalise
from bsnn_cli.gpn.gpn_table import gpn_table
from bsnn_cli.gpn.module import GPN
from bsnn_cli.settings.choices import AUTO_ROOT, PAPER_ACTIVATIONS
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS

ROOT2 = math.sqrt(2)
NAMES = list(ACTIVATIONS)

TABLE = {  # a, upper b, χ, lower b, χ: computed independently, to all digits shown
    "tanh": (1.4674135916, 0.3885416701, 0.39, -0.3885416701, 0.39),
    "relu": (1.4142135624, 0, 1.00, -1.1283791671, 0.36),
    "lrelu": (1.4141428570, 0, 1.00, -1.1170395248, 0.38),
    "elu": (1.2234285576, 0.0742203457, 0.88, -0.4669912501, 0.71),
    "selu": (0.9660257770, 0.2584457355, 0.77, -0.2584457355, 0.69),
    "gelu": (1.4914592268, 0.0674837859, 1.11, -0.9096528019, 0.50),
}
UPPER_CHI = {"silu": 1.147, "gelu_exact": 1.1135, "softplus": 1.082, "mish": 1.056, "sigmoid": 0.696, "identity": 1}


def moments(pair: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], kinks: tuple[float, ...]) -> np.ndarray:
    """(E[φ], E[φ²], E[φ'²], E[hφφ'], E[hφ']) by fixed quadrature between known kinks, in NumPy."""
    edges = np.unique(np.concatenate((np.arange(-14, 14.1, 0.25), kinks)))
    points, weights = np.polynomial.legendre.leggauss(40)
    half = np.diff(edges)[:, None] / 2
    h = edges[:-1, None] + half * (points + 1)
    value, derivative = pair(h)
    density = np.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)
    rows = (value, value**2, derivative**2, h * value * derivative, h * derivative)
    return np.array([(half * weights * density * row).sum() for row in rows])


def require_normalised(activation: Callable[[Tensor], Tensor], exact: np.ndarray) -> None:
    """Both roots meet the conditions, as measured by moments that do not come from the program."""
    mean, second, derivative, product, moment = exact
    for root, sign in (("upper", 1), ("lower", -1)):
        solution = normalise(activation, root)
        a, b = solution.a, solution.b
        assert a * a * derivative == pytest.approx(1, abs=1e-9)
        assert a * a * second + 2 * a * b * mean + b * b == pytest.approx(1, abs=1e-9)
        assert sign * (a * mean + b) >= -1e-9
        assert solution.chi == pytest.approx(a * a * product + a * b * moment, abs=1e-9)
        assert (solution.mean, solution.second_moment) == pytest.approx((mean, second), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_constants_of_the_paper_to_ten_digits(name: str) -> None:
    a, *roots = TABLE[name]
    for root, b, chi in (("upper", *roots[:2]), ("lower", *roots[2:])):
        assert gpn_coefficients(name, root) == pytest.approx((a, b), abs=1e-10)
        assert normalise(name, root).chi == pytest.approx(chi, abs=5e-3)
    assert gpn_coefficients(name) == pytest.approx(NAMED_ACTIVATIONS[name].published, abs=1e-4)


@pytest.mark.parametrize("name", UPPER_CHI)
def test_slope_of_the_other_activations(name: str) -> None:
    assert normalise(name, "upper").chi == pytest.approx(UPPER_CHI[name], abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_root_of_auto_is_the_one_the_config_promises(name: str) -> None:
    assert normalise(name).root == AUTO_ROOT[name]
    assert normalise(name) == normalise(name, AUTO_ROOT[name])
    assert normalise(get(name).phi).root == AUTO_ROOT[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_its_function_have_the_same_constants(name: str) -> None:
    for root in ("upper", "lower"):
        assert gpn_coefficients(get(name).phi, root) == pytest.approx(gpn_coefficients(name, root), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_named_constants_meet_the_conditions(name: str) -> None:
    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = torch.from_numpy(h)
        return get(name).phi(places).numpy(), get(name).derivative(places).numpy()

    require_normalised(name, moments(pair, ()))


def test_constants_with_a_closed_form_are_exact() -> None:
    assert gpn_coefficients("identity") == (1, 0)
    assert gpn_coefficients("relu")[1] == 0
    assert gpn_coefficients("relu", "lower") == pytest.approx((ROOT2, -2 / math.sqrt(math.pi)), rel=1e-15)
    assert gpn_coefficients(torch.sin)[0] == pytest.approx(1 / math.sqrt((1 + math.exp(-2)) / 2), rel=1e-15)
    assert gpn_coefficients(lambda h: h**2, "upper") == pytest.approx((0.5, (ROOT2 - 1) / 2), rel=1e-14)


def test_a_nearly_linear_function_keeps_its_digits() -> None:
    # h + ε(h² − 1): E[φ'²] − Var[φ] = 2ε², of which a difference of moments near 1 has no digit left.
    epsilon = 1e-8
    _, b = gpn_coefficients(lambda h: h + epsilon * (h * h - 1))
    assert b == pytest.approx(ROOT2 * epsilon, rel=1e-6)


@given(
    kinks=st.lists(st.floats(-4, 4), min_size=1, max_size=6),
    slopes=st.lists(st.floats(-3, 3), min_size=7, max_size=7),
    offset=st.floats(-10, 10),
)
@settings(max_examples=25, deadline=None)
def test_any_piecewise_linear_function_is_normalised(kinks: list[float], slopes: list[float], offset: float) -> None:
    changes = list(zip(kinks, slopes[1:], strict=False))
    first = 1 + slopes[0] ** 2  # so that it is no constant

    def phi(h: Tensor) -> Tensor:
        return offset + first * h + sum(slope * torch.relu(h - kink) for kink, slope in changes)

    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = offset + first * h + sum(slope * np.maximum(h - kink, 0) for kink, slope in changes)
        return value, first + sum(slope * (h > kink) for kink, slope in changes)

    require_normalised(phi, moments(pair, tuple(kinks)))


@given(terms=st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(-3, 3)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_mixture_of_smooth_functions_is_normalised(terms: list[tuple[float, float, float]]) -> None:
    def phi(h: Tensor) -> Tensor:
        return sum((c * torch.tanh(w * h + d) + torch.cos(d * h) for c, w, d in terms), torch.zeros_like(h))

    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = sum(c * np.tanh(w * h + d) + np.cos(d * h) for c, w, d in terms)
        return value, sum(c * w / np.cosh(w * h + d) ** 2 - d * np.sin(d * h) for c, w, d in terms)

    require_normalised(phi, moments(pair, ()))


@pytest.mark.parametrize("period", [0.5, 0.1 * ROOT2])
def test_hundreds_of_kinks_are_no_obstacle(period: float) -> None:
    def wave(h: Tensor) -> Tensor:  # slope ±1, a kink every half period
        return (torch.remainder(h, period) - period / 2).abs()

    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.remainder(h, period) - period / 2
        return np.abs(inside), np.sign(inside)

    require_normalised(wave, moments(pair, tuple(np.arange(-14 / period, 14 / period).round() * period / 2)))


@pytest.mark.parametrize("place", [-2.9, -0.4321, 1.2345, 3.21])
def test_a_tooth_a_few_thousandths_wide_is_not_missed(place: float) -> None:
    width = 3e-3

    def tooth(h: Tensor) -> Tensor:
        return h + 20 * (width - (h - place).abs()).relu()

    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.abs(h - place) < width
        return h + 20 * np.maximum(width - np.abs(h - place), 0), 1 - 20 * np.sign(h - place) * inside

    require_normalised(tooth, moments(pair, (place - width, place, place + width)))


@pytest.mark.parametrize("kink", [-4.123, 3.7, 6.3])
def test_a_steep_kink_far_out_counts(kink: float) -> None:
    def pair(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return h + 1e4 * np.maximum(h - kink, 0), 1 + 1e4 * (h > kink)

    require_normalised(lambda h: h + 1e4 * torch.relu(h - kink), moments(pair, (kink,)))


def test_a_function_may_write_into_its_input() -> None:
    expected = gpn_coefficients(lambda h: torch.tanh(2 * h - 1))
    assert gpn_coefficients(lambda h: h.mul_(2).sub_(1).tanh_()) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e20])
@pytest.mark.parametrize("shift", [0.0, -100.0, 1e5])
def test_scale_and_shift_of_the_function_do_not_matter(scale: float, shift: float) -> None:
    a, upper = gpn_coefficients("elu", "upper")
    _, lower = gpn_coefficients("elu", "lower")

    def moved(sign: int) -> Callable[[Tensor], Tensor]:
        return lambda h: sign * scale * (nn.functional.elu(h) + shift)

    for root, b in (("upper", upper), ("lower", lower)):
        assert gpn_coefficients(moved(1), root) == pytest.approx((a / scale, b - a * shift), rel=1e-10)
    for root, b in (("upper", -lower), ("lower", -upper)):
        assert gpn_coefficients(moved(-1), root) == pytest.approx((a / scale, b + a * shift), rel=1e-10)


def test_surroundings_of_the_construction_do_not_matter() -> None:
    expected = gpn_coefficients(torch.tanh)
    with torch.no_grad():
        assert gpn_coefficients(torch.tanh) == expected
    with torch.inference_mode():
        assert gpn_coefficients(torch.tanh) == expected
    with torch.device("meta"):
        assert gpn_coefficients(torch.tanh) == expected
    torch.set_default_dtype(torch.half)
    try:
        assert gpn_coefficients(torch.tanh) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def detached(h: Tensor) -> Tensor:
    return h * torch.sigmoid(h).detach()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda h: h + torch.sign(h), "jumps at h = 0"),
        (lambda h: torch.tanh(h) + 0.01 * torch.sign(h), "jumps at h = 0"),
        (lambda h: torch.tanh(h) + 1e-6 * torch.sign(h - ROOT2), "jumps at h = 1.41421"),
        (nn.Hardshrink(0.5), "activation Hardshrink: the function jumps at h = "),
        (detached, "activation detached: the function jumps at h = "),
        (lambda h: torch.full_like(h, 3.0), "its derivative is 0 everywhere"),
        (lambda h: 0 * h + 3, "its derivative is 0 everywhere"),
        (torch.sign, "activation sign: its derivative is 0 everywhere"),
        (lambda h: torch.tanh(h).detach(), "its derivative is 0 everywhere"),
        (torch.log, "is nan at h = -37"),
        (lambda h: torch.where(h > 2, math.nan, h), "is nan at h = 2"),
        (lambda h: torch.sin(h) / h, "is nan at h = 0"),
        (lambda h: torch.exp(torch.exp(h)), "is inf at h = 6.5"),
        (lambda h: 1 / h, "is inf at h = 0"),
        (lambda h: torch.exp(h * h / 4), "E[φ²] is infinite"),
        (lambda h: h.abs().sqrt(), "E[φ'²] does not converge at h = 0"),
        (lambda h: (h - 1).abs() ** 0.5, "E[φ'²] does not converge at h = 1"),
        (lambda h: torch.tanh(h.float()), "returns torch.float32 of shape (64,)"),
        (lambda h: torch.tanh(h.float()).to(h.dtype), "rounds its values to float32"),
        (lambda h: h.sum(), "returns torch.float64 of shape ()"),
        (nn.GLU(), "returns torch.float64 of shape (32,)"),
        (lambda _: 3.0, "returns float"),
        (nn.Softmax(dim=-1), "must be elementwise"),
        (nn.Dropout(), "must be elementwise and not random"),
        (lambda h: F.dropout(torch.tanh(h), 0.001), "must be elementwise and not random"),
        (lambda h: torch.tanh(h) + (torch.rand_like(h) < 0.002) * h, "must be elementwise and not random"),
        (lambda h: torch.relu(h - 30), "is flat but for |h| > 10, where no unit of a network ever is"),
        (lambda h: torch.relu(-h - 15) ** 2, "is flat but for |h| > 10"),
        (lambda h: torch.exp(5.5 * h), "is flat but for |h| > 10"),
        (nn.PReLU(3), "cannot be evaluated and differentiated by torch (RuntimeError: "),
        (lambda h: h if h > 0 else 0 * h, "cannot be evaluated and differentiated by torch (RuntimeError: Boolean"),
        (lambda h: torch.from_numpy(np.tanh(h.numpy())), "call numpy() on Tensor that requires grad"),
        (7, "'int' object is not callable"),
    ],
)
def test_what_has_no_normalised_form_is_refused_in_one_line(function: object, words: str) -> None:
    with pytest.raises(ActivationError) as caught:
        GPN(function)  # type: ignore[arg-type]
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.startswith("activation ")
    assert ";" in message  # the remedy


def test_an_unknown_name_lists_the_choices_and_the_nearest() -> None:
    for call in (get, normalise, gpn_coefficients, GPN, lambda name: gpn_table([name])):
        with pytest.raises(
            ActivationError, match=r"activation=gelo: must be one of tanh, relu, .*; did you mean gelu\?"
        ):
            call("gelo")
    assert issubclass(ActivationError, ConfigError)


def test_an_unknown_root_lists_the_choices() -> None:
    for source in ("tanh", torch.tanh):
        with pytest.raises(
            ActivationError, match=r"root=uper: must be one of auto, upper, lower; did you mean upper\?"
        ):
            GPN(source, root="uper")


def test_the_table_compares_with_the_published_constants() -> None:
    table = gpn_table(NAMES).set_index("activation")
    assert list(table.index) == NAMES
    assert list(table["root"]) == list(AUTO_ROOT.values())
    assert (table[["E[f²]", "E[f'²]"]] - 1).abs().to_numpy().max() < 1e-12
    row = table.loc["selu"]
    assert (row["a"], row["b"]) == gpn_coefficients("selu")
    assert (row["published a"], row["published b"]) == (0.9660, 0.2585)
    assert row["difference b"] == row["b"] - 0.2585
    assert row["chi"] == normalise("selu").chi
    assert table.loc[["tanh", "silu"], "basin"].tolist() == pytest.approx([math.inf, 7.27092], rel=1e-6)
    assert table.loc["relu", ["E[φ]", "E[φ²]", "E[φ'²]"]].tolist() == pytest.approx(
        [1 / math.sqrt(2 * math.pi), 0.5, 0.5]
    )
    unpublished = table.index.difference(PAPER_ACTIVATIONS)
    assert table.loc[unpublished, ["published a", "published b", "difference a", "difference b"]].isna().all(axis=None)
    assert table.loc[list(PAPER_ACTIVATIONS)].notna().all(axis=None)


def test_the_table_compares_nothing_with_the_other_root() -> None:
    table = gpn_table(["tanh", "gelu"], root="lower").set_index("activation")
    assert math.isnan(table.loc["tanh", "difference b"])
    assert abs(table.loc["gelu", "difference b"]) < 1e-4
