"""`bsnn_cli.predict` against networks whose weights are drawn, against SVDs, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import ks_2samp
from torch import Tensor, nn

import bsnn_cli
from bsnn_cli.errors import ActivationError, ConfigError
from bsnn_cli.gpn.activations import get
from bsnn_cli.gpn.meanfield import Weights, gradient_step, pair_step, transfer
from bsnn_cli.settings.config import TheoryConfig
from bsnn_cli.theory.activation import given
from bsnn_cli.theory.prediction import QUANTITIES, Prediction, inside
from bsnn_cli.theory.simulation import simulate
from bsnn_cli.theory.spectrum import spectrum
from bsnn_cli.theory.study import depth_view
from tests.conftest import Answer

Network = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Network] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu_gpn": bsnn_cli.GPN("elu"),
    "gelu": nn.GELU(),
    "sin": torch.sin,
}
SCALES = ((0.8, 0.0), (1.0, 0.0), (1.4, 0.3))


def orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """A Haar-uniform matrix (Mezzadri 2007), by other means than the program's."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q * torch.diagonal(r).sign()


def drawn(kind: str, n: int, generator: torch.Generator) -> Tensor:
    if kind == "orthogonal":
        return orthogonal(n, generator)
    return torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)


def measured_by_hand(
    kind: str, n: int, depth: int, networks: int, scales: tuple[float, float], f: Network
) -> dict[str, np.ndarray]:
    """Length, angle and gradient of networks with drawn weights, by autograd: (layer, network) each."""
    generator = torch.Generator().manual_seed(n)
    values = {quantity: np.zeros((depth, networks)) for quantity in QUANTITIES}
    for network in range(networks):
        x = (orthogonal(n, generator)[:, :2] * math.sqrt(n)).requires_grad_()
        preactivations = []
        for layer in range(depth):
            bias = torch.randn(n, 1, generator=generator, dtype=torch.float64)
            preactivations.append(scales[0] * drawn(kind, n, generator) @ x + scales[1] * bias)
            x = f(preactivations[-1])
            first, second = x.detach().T
            values["length"][layer, network] = first @ first / n
            values["one_minus_cosine"][layer, network] = 1 - first @ second / (first.norm() * second.norm())
        top = torch.randn(n, generator=generator, dtype=torch.float64)
        for layer, gradient in enumerate(torch.autograd.grad(x[:, 0] @ top, preactivations)):
            values["gradient"][layer, network] = gradient[:, 0].square().sum() / top.square().sum()
    return values


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks_with_drawn_weights_are_inside_the_bands(name: str, scales: tuple[float, float], kind: str) -> None:
    """None of 57,600 such means was outside: ten activations at widths 100 and 300 over 20 layers."""
    f, networks, depth = ACTIVATIONS[name], 8, 6
    for width in (40, 80):
        measured = measured_by_hand(kind, width, depth, networks, scales, f)
        layers = bsnn_cli.predict(f, depth, width, kind, *scales, networks=networks).layers
        for quantity, values in measured.items():
            mean = np.exp(np.log(values).mean(1))
            assert ((layers[f"{quantity}_low"] < mean) & (mean < layers[f"{quantity}_high"])).all(), (quantity, width)


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
def test_what_is_measured_without_drawing_weights_has_the_law_of_drawn_ones(kind: str) -> None:
    n, depth, networks, scales = 4, 3, 4000, (1.3, 0.2)

    def leaky(h: Tensor) -> Tensor:  # under which a gradient along the signal passes better than others
        return nn.functional.leaky_relu(h, 0.05)

    by_hand = measured_by_hand(kind, n, depth, networks, scales, leaky)
    signals = simulate(given(leaky).transfer(), n, depth, networks, 0, weights=Weights(kind, *scales))
    ours = {"length": signals.lengths[0], "one_minus_cosine": signals.separations, "gradient": signals.gradients}
    for quantity, values in ours.items():
        for layer in range(depth):
            assert ks_2samp(values[layer].numpy(), by_hand[quantity][layer]).pvalue > 1e-3, (quantity, layer)


@pytest.mark.parametrize(
    "weights", [Weights("orthogonal", 1.3, 0.6), Weights("gaussian", 1.3, 0.6), Weights("gaussian")]
)
def test_noise_of_a_layer_is_that_of_drawn_signals(weights: Weights) -> None:
    """First order in 1/n, of lengths, of pairs and of gradients; 6 % is 4 standard errors of 10,000 draws."""
    n, draws, generator = 400, 10_000, torch.Generator().manual_seed(0)
    u, v, y, bias = torch.randn(4, draws, n, generator=generator, dtype=torch.float64)
    v = v - (u * v).sum(1, keepdim=True) / u.square().sum(1, keepdim=True) * u
    y = y / y.norm(dim=1, keepdim=True) * math.sqrt(n)
    if weights.orthogonal:
        u, v = (part / part.norm(dim=1, keepdim=True) * math.sqrt(n) for part in (u, v))
    s = weights.sigma_w * math.sqrt(0.7) * u + weights.sigma_b * bias
    t = weights.sigma_w * math.sqrt(0.3) * v
    f = transfer("softplus")
    pair = torch.stack([((f.f(s + t) + f.f(s - t)) / 2).square(), ((f.f(s + t) - f.f(s - t)) / 2).square()]).mean(2)
    step = pair_step(f, 0.7, 0.3, weights)
    assert n * np.cov((pair / pair.mean(1, keepdim=True)).numpy()) == pytest.approx(step.noise, rel=0.06, abs=0.03)
    assert f.slope is not None
    down = torch.stack([f.f(s).square(), (f.slope(s) * y).square()]).mean(2)
    step = gradient_step(f, 0.7, weights)
    assert down.mean(1).numpy() == pytest.approx(step.state, rel=0.01)
    assert n * np.cov((down / down.mean(1, keepdim=True)).numpy()) == pytest.approx(step.noise, rel=0.06, abs=0.03)


def test_the_jacobian_of_a_step_with_biases_is_the_derivative_of_the_map() -> None:
    f, weights, h = transfer("elu"), Weights("gaussian", 1.2, 0.5), 1e-5
    for column in range(2):
        shift = np.exp(h * np.eye(2)[column])
        up, down = (pair_step(f, *np.array([0.8, 0.3]) * change, weights).state for change in (shift, 1 / shift))
        slope = (np.log(up) - np.log(down)) / (2 * h)
        assert pair_step(f, 0.8, 0.3, weights).jacobian[:, column] == pytest.approx(slope, abs=1e-8)
    up, down = (gradient_step(f, 0.8 * change, weights).state for change in (math.exp(h), math.exp(-h)))
    slope = (np.log(up) - np.log(down)) / (2 * h)
    assert gradient_step(f, 0.8, weights).jacobian[:, 0] == pytest.approx(slope, abs=1e-5)


def squared_singular_values(name: str, depth: int, n: int, kind: str, scale: float, seed: int) -> Tensor:
    generator, f = torch.Generator().manual_seed(seed), given(name)
    x = orthogonal(n, generator)[:, 0] * math.sqrt(n)
    jacobian = torch.eye(n, dtype=torch.float64)
    for _ in range(depth):
        matrix = scale * drawn(kind, n, generator)
        h = matrix @ x
        jacobian, x = f.slope(h)[:, None] * (matrix @ jacobian), f.phi(h)
    return torch.linalg.svdvals(jacobian).square()


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
@pytest.mark.parametrize("name", ["tanh_gpn", "elu_gpn", "relu"])
def test_the_spectrum_is_that_of_drawn_jacobians(name: str, kind: str) -> None:
    """Measure 4 Jacobians of 300 units. The largest value comes to its limit from below.

    Means over some networks were 0 to 7 % below it at 100 units, 1 to 3 % at 400, 0 to 3 % at 800, in single networks
    with a standard deviation of 1 to 3 % at 200 to 400 units: the mean of 4 is within -7 and +2 %.
    """
    drawn_values = [squared_singular_values(name, 4, 300, kind, 1.1, seed) for seed in range(4)]
    predicted = spectrum(given(name).transfer(), 4, 1.0, Weights(kind, 1.1))
    means = np.array([float(values.mean()) for values in drawn_values])
    assert means.mean() == pytest.approx(predicted.mean[-1], rel=0.15)
    variances = [float(values.var(correction=0)) for values in drawn_values] / means**2
    assert variances.mean() == pytest.approx(predicted.variance[-1], rel=0.1)
    edges = [math.sqrt(float(values[0])) for values in drawn_values] / np.sqrt(means)
    assert 0.93 < edges.mean() * math.sqrt(predicted.mean[-1]) / predicted.largest[-1] < 1.02


def test_the_largest_singular_value_has_its_closed_forms() -> None:
    """Products of l Gaussian matrices end at (l + 1)^(l + 1)/l^l (Fuss-Catalan), their variance is l."""
    gaussian = spectrum(given("identity").transfer(), 20, weights=Weights("gaussian"))
    for layer in (1, 2, 5, 20):
        expected = (layer + 1) ** (layer + 1) / layer**layer
        assert gaussian.largest[layer - 1] ** 2 == pytest.approx(expected, rel=1e-4)
        assert gaussian.variance[layer - 1] == pytest.approx(layer, rel=1e-12)
    orthogonal_ones = spectrum(given("identity").transfer(), 20)
    assert orthogonal_ones.largest == pytest.approx(1, rel=1e-6)
    # ReLU's slopes squared are 0 or 1 with probability ½: l layers of D have S = ((1 + m)/(½ + m))^l.
    relu = spectrum(given("relu").transfer(), 3)
    m = np.geomspace(1e-3, 1e5, 2_000_001)
    edge = ((1 + m) / m * ((0.5 + m) / (1 + m)) ** 3).min()
    assert relu.largest[-1] ** 2 == pytest.approx(edge, rel=1e-5)


def test_slopes_without_bound_have_no_largest_singular_value_that_counts() -> None:
    assert spectrum(given(lambda h: h**3).transfer(), 2).largest[-1] > 50


@pytest.mark.parametrize("variance", [0.25, 1.0, 9.0])
def test_moments_are_those_of_another_quadrature(variance: float) -> None:
    s = math.sqrt(variance)

    def mean(g: Callable[[float], float]) -> float:
        value: float = quad(lambda z: g(s * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi), -12, 12, epsabs=1e-13)[
            0
        ]
        return value

    def slope(h: float) -> float:
        return 1 / math.cosh(h) ** 2

    moments = bsnn_cli.gaussian_moments("tanh", variance)
    assert moments["E[f]"] == pytest.approx(0, abs=1e-12)
    assert moments["E[f²]"] == pytest.approx(mean(lambda h: math.tanh(h) ** 2), rel=1e-10)
    assert moments["E[f']"] == pytest.approx(mean(slope), rel=1e-10)
    assert moments["E[f'²]"] == pytest.approx(mean(lambda h: slope(h) ** 2), rel=1e-10)
    assert moments["E[f'⁴]"] == pytest.approx(mean(lambda h: slope(h) ** 4), rel=1e-10)
    assert moments["E[f''²]"] == pytest.approx(mean(lambda h: (2 * math.tanh(h) * slope(h)) ** 2), rel=1e-10)
    assert moments["E[hff']"] == pytest.approx(mean(lambda h: h * math.tanh(h) * slope(h)), rel=1e-10)


def test_a_corner_has_no_second_moment_of_curvature_and_a_weaker_kink_has() -> None:
    assert bsnn_cli.gaussian_moments("relu")["E[f''²]"] == math.inf
    # ELU: f'' is exp(h) below 0 and 0 above; E[exp(2h); h < 0] = e² Φ(−2).
    expected = math.exp(2) * 0.5 * math.erfc(2 / math.sqrt(2))
    assert bsnn_cli.gaussian_moments("elu")["E[f''²]"] == pytest.approx(expected, rel=1e-9)
    assert bsnn_cli.gaussian_moments("identity")["E[f''²]"] == 0


@pytest.mark.parametrize(
    ("form", "module"),
    [("tanh_gpn", bsnn_cli.GPN("tanh")), ("silu", nn.SiLU()), ("elu_gpn_d", bsnn_cli.GPN("elu", depth=12))],
)
def test_names_and_modules_of_the_same_activation_are_predicted_alike(form: str, module: nn.Module) -> None:
    by_name, by_module = bsnn_cli.predict(form, 12, 50).layers, bsnn_cli.predict(module, 12, 50).layers
    np.testing.assert_allclose(by_name, by_module, rtol=1e-6)


def test_gradients_of_plain_tanh_vanish_as_the_product_of_slopes() -> None:
    prediction = bsnn_cli.predict("tanh", 3, sigma_w=1.2)
    q, slopes = 1.0, []
    for _ in range(3):
        moments = bsnn_cli.gaussian_moments("tanh", 1.44 * q)
        q = moments["E[f²]"]
        slopes.append(moments["E[f'²]"])
    expected = [slopes[0] * 1.44 * slopes[1] * 1.44 * slopes[2], slopes[1] * 1.44 * slopes[2], slopes[2]]
    assert list(prediction.layers.gradient) == pytest.approx(expected, rel=1e-9)
    assert prediction.layers.jacobian_mean.iloc[-1] == pytest.approx(expected[0] * 1.44, rel=1e-9)


def test_the_table_of_the_command_has_the_same_numbers() -> None:
    config = TheoryConfig(depth=4, width=30, networks=3, weights="gaussian", sigma_w=1.2, sigma_b=0.3)
    rows = [row for row in depth_view([get("tanh")], config) if row["root"] == "upper" and row["start"] == 1]
    layers = bsnn_cli.predict("tanh_gpn", 4, 30, "gaussian", 1.2, 0.3, networks=3).layers
    for what, quantity in (("length", "length"), ("angle", "one_minus_cosine"), ("gradient", "gradient")):
        for column in ("predicted", "band_low", "band_high", "measured"):
            ours = layers[
                quantity + {"predicted": "", "band_low": "_low", "band_high": "_high"}.get(column, "_measured")
            ]
            theirs = [row[column] for row in rows if row["what"] == what]
            assert list(ours) == pytest.approx(theirs, rel=1e-9)


@pytest.fixture(scope="module")
def gpn() -> Prediction:
    return bsnn_cli.predict("tanh_gpn", depth=50, width=200, networks=8)


def test_a_prediction_says_what_it_means(gpn: Prediction) -> None:
    text = str(gpn)
    assert "tanh_gpn: 50 layers of 200 units, orthogonal weights; bands: geometric mean over 8 networks" in text
    assert "Lengths return to 1 (χ = 0.3915); the basin is every length." in text
    assert "Measured in 8 networks: inside the bands at every layer." in text
    assert all(inside(gpn.layers, quantity) for quantity in QUANTITIES)
    assert "Lengths collapse to 0." in str(bsnn_cli.predict("silu", 5))
    assert "Lengths grow without end." in str(bsnn_cli.predict("relu", 5, sigma_w=1.6))
    assert "chaotic" in str(bsnn_cli.predict("tanh", 5, sigma_w=1.6))
    assert "are driven away" in str(bsnn_cli.predict(bsnn_cli.GPN("silu", root="upper"), 5))
    assert "chance moves them" in str(bsnn_cli.predict("relu", 5, sigma_w=math.sqrt(2)))


def test_what_is_beyond_floats_ends_as_zero_or_infinity() -> None:
    grown = bsnn_cli.predict("relu", 80, sigma_w=1e4).layers
    assert np.isinf(grown.length.iloc[-1])
    assert np.isinf(grown.gradient.iloc[0])
    gone = bsnn_cli.predict("tanh", 400, sigma_w=0.1, networks=2).layers
    assert gone.length.iloc[-1] == 0
    assert gone.gradient.iloc[0] < 1e-200
    assert gone.gradient.iloc[-1] == pytest.approx(1)
    dead = bsnn_cli.predict(lambda h: (h.abs() - 3).relu(), 20).layers
    assert dead.length.iloc[-1] == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("activation", "depth", "length", "phase"),
    [
        (nn.PReLU(), 10, 0, "ordered"),
        (nn.ReLU(inplace=True), 10, 0, "ordered"),
        (lambda h: h**2 - 1, 30, math.inf, "chaotic"),
        (torch.exp, 5, math.inf, "chaotic"),
        (lambda h: 0 * h + 2, 5, 4, "ordered"),
        (nn.Hardswish(), 10, 0, "ordered"),
    ],
)
def test_activations_of_all_sorts_are_followed_without_a_warning(
    activation: Network, depth: int, length: float, phase: str
) -> None:
    prediction = bsnn_cli.predict(activation, depth, networks=2, width=20)
    assert (prediction.length, prediction.phase) == (pytest.approx(length), phase)
    assert str(prediction)
    assert bsnn_cli.plot(prediction).axes


def test_hard_tanh_brings_lengths_down_to_where_it_is_a_line() -> None:
    prediction = bsnn_cli.predict(nn.Hardtanh(), 3)
    assert 0.01 < prediction.length < 0.1
    assert bsnn_cli.predict(nn.Hardtanh(), 3, start=1e-3).length == 1e-3


def test_a_plot_is_written_and_shows_prediction_and_measurement(gpn: Prediction, tmp_path: Path) -> None:
    figure = bsnn_cli.plot(gpn, tmp_path / "tanh.png")
    assert (tmp_path / "tanh.png").stat().st_size > 10_000
    line, dots = figure.axes[1].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), gpn.layers.one_minus_cosine)
    assert set(dots.get_ydata()) <= set(gpn.layers.one_minus_cosine_measured)
    assert len(bsnn_cli.plot(bsnn_cli.predict("tanh", 5)).axes[0].get_lines()) == 1
    with pytest.raises(ConfigError, match=r"path=x.gif: must be a file that ends in .png, .svg, .pdf"):
        bsnn_cli.plot(gpn, "x.gif")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"activation": "swish"}, "activation=swish: must be one of"),
        ({"activation": "custom"}, "activation=custom: must be one of"),
        ({"activation": 3}, "activation 3: must be a name such as 'tanh_gpn', a module"),
        ({"activation": torch.sign}, "activation sign: .*"),
        ({"activation": nn.Softmax(0)}, "must be elementwise and not random"),
        ({"activation": nn.Dropout(0.01)}, "must be elementwise and not random"),
        ({"activation": lambda h: 1 / h}, "the function is inf at h = 0"),
        ({"activation": lambda h: 0 * h}, "is 0 for all preactivations"),
        ({"activation": lambda h: torch.exp(h * h)}, "infinite|inf at"),
        ({"depth": 0}, "depth=0: must be a whole number at least 1"),
        ({"depth": 2.5}, "depth=2.5: must be a whole number"),
        ({"width": 1}, "width=1: must be a whole number at least 2"),
        ({"networks": -1}, "networks=-1"),
        ({"weights": "orthogonl"}, "weights=orthogonl: must be one of orthogonal, gaussian; did you mean orthogonal"),
        ({"sigma_w": 0.0}, "sigma_w=0.0: must be a number above 0"),
        ({"sigma_b": -1.0}, "sigma_b=-1.0: must be a number at least 0"),
        ({"sigma_w": math.nan}, "sigma_w=nan"),
        ({"start": 0.0}, "start=0.0: must be a number above 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        bsnn_cli.predict(**({"activation": "tanh", "depth": 3} | keys))  # type: ignore[arg-type]
    assert len(str(refused.value).splitlines()) == 1
    assert isinstance(refused.value, ActivationError) == ("activation" in keys)
    with pytest.raises(ConfigError, match="variance=0"):
        bsnn_cli.gaussian_moments("tanh", 0)


def test_a_caller_without_gradients_gets_the_same(gpn: Prediction) -> None:
    with torch.inference_mode(), torch.device("meta"):
        alike = bsnn_cli.predict("tanh_gpn", depth=50, width=200, networks=8)
        bsnn_cli.predict(torch.sin, depth=2)
    np.testing.assert_array_equal(alike.layers, gpn.layers)


@pytest.mark.parametrize("argument", ["weights=haar", "sigma_w=0", "sigma_b=-0.1"])
def test_the_command_refuses_a_law_that_is_none(argument: str, bsnn: Callable[..., Answer]) -> None:
    refused = bsnn("theory", argument)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"error: {argument.split('=')[0]}=")
