"""TAT and DKS against the conditions they solve, and against published constants."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import bsnn_cli
from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.activations import normalise
from bsnn_cli.gpn.shaped import Shaped

SMOOTH = ("tanh", "softplus", "gelu_exact", "elu")


@pytest.mark.parametrize("name", SMOOTH)
def test_tat_meets_its_conditions(name: str) -> None:
    moments = bsnn_cli.gaussian_moments(bsnn_cli.tat(name, 50, tau=0.4))
    assert moments["E[f²]"] == pytest.approx(1, abs=1e-9)
    assert moments["E[f'²]"] == pytest.approx(1, abs=1e-9)
    assert moments["E[hff']"] == pytest.approx(1, abs=1e-9)
    assert moments["E[f''²]"] == pytest.approx(0.4 / 50, rel=1e-7)


@pytest.mark.parametrize("name", [*SMOOTH, "selu"])
def test_dks_meets_its_conditions(name: str) -> None:
    moments = bsnn_cli.gaussian_moments(bsnn_cli.dks(name, 50, zeta=1.7))
    assert moments["E[f]"] == pytest.approx(0, abs=1e-9)
    assert moments["E[f²]"] == pytest.approx(1, abs=1e-9)
    assert moments["E[hff']"] == pytest.approx(1, abs=1e-9)
    assert moments["E[f'²]"] == pytest.approx(1.7 ** (1 / 50), abs=1e-9)


@pytest.mark.parametrize("name", ["softplus", "tanh"])
def test_smooth_tat_is_gpn_with_chi_one(name: str) -> None:
    f = bsnn_cli.tat(name, 100)
    phi = getattr(torch.nn.functional, name) if name == "softplus" else torch.tanh
    solutions = [normalise(lambda h: phi(f.alpha * h + f.beta), root) for root in ("upper", "lower")]
    solution = min(solutions, key=lambda candidate: abs(candidate.chi - 1))
    assert solution.chi == pytest.approx(1, abs=1e-9)
    assert (solution.a, solution.b) == (pytest.approx(f.gamma, rel=1e-7), pytest.approx(f.gamma * f.delta, rel=1e-7))


@pytest.mark.parametrize(
    ("name", "method", "slope", "constants"),
    [
        # Constants in the tests of google-deepmind/dks, for a residual network. What they make of C'(1) or C''(1) of a
        # layer stands in for its depth.
        ("softplus", "dks", 1.0027709659, (0.18761008168267976, 0.40688063442262007, -0.9213466151, 8.878672543665223)),
        ("tanh", "dks", 1.0027709659, (0.07461073057540868, 0.5566915199964182, -0.5034378768692, 18.002635964442558)),
        ("gelu_exact", "dks", 1.0027709659, (0.07043253126531, 0.2594892979277, -0.158153789619036, 20.2115890231586)),
        (
            "softplus",
            "tat",
            0.00303951353,
            (0.15011489794748328, 0.5374599901127068, -0.996481014465, 10.5488018788057),
        ),
        (
            "tanh",
            "tat",
            0.00303951353,
            (0.0580205218578313, 0.5218639804099805, -0.4796430704354356, 22.36066261763117),
        ),
    ],
)
def test_constants_are_the_published_ones(
    name: str, method: str, slope: float, constants: tuple[float, float, float, float]
) -> None:
    f = bsnn_cli.dks(name, 1, zeta=slope) if method == "dks" else bsnn_cli.tat(name, 1, tau=slope)
    assert (f.alpha, f.beta, f.delta, f.gamma) == pytest.approx(constants, rel=1e-6)


@pytest.mark.parametrize("activation", ["relu", "lrelu", nn.LeakyReLU(0.2)])
def test_tat_of_relu_is_the_leaky_relu_that_keeps_eta(activation: str | nn.Module) -> None:
    prediction = bsnn_cli.predict(bsnn_cli.tat(activation, 60, eta=0.8), depth=60)
    assert prediction.layers.one_minus_cosine.iloc[-1] == pytest.approx(0.2, rel=1e-6)
    assert prediction.moments["E[f²]"] == pytest.approx(1)
    f = bsnn_cli.tat(activation, 60, eta=0.8)
    h = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    slope = -float(f(h)[0] / f(h)[1])
    assert f.gamma == pytest.approx(math.sqrt(2 / (1 + slope**2)))


def test_tat_keeps_angles_as_its_curvature_says() -> None:
    """d(1 − c)/dl = −(τ/L)(1 − c)²/2 for signals that are close, so 1/(1 − c) grows by τ/2 in all."""
    layers = bsnn_cli.predict(bsnn_cli.tat("tanh", 100, tau=0.3), depth=100).layers
    assert 1 / layers.one_minus_cosine.iloc[-1] == pytest.approx(1 + 0.3 / 2, rel=0.02)


def test_shaped_activations_are_modules_like_others() -> None:
    f = bsnn_cli.dks("tanh", 20)
    h = torch.randn(5, 7, requires_grad=True)
    value = f(h)
    expected = f.gamma * (torch.tanh(f.alpha * h + f.beta) + f.delta)
    assert (value.shape, value.dtype) == (h.shape, h.dtype)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert h.grad is not None
    assert f(h.detach().half()).dtype == torch.half
    for clone in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        assert isinstance(clone, Shaped)
        assert torch.equal(clone(h), value)
    assert "tanh, DKS, alpha=" in repr(f)
    assert list(f.parameters()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tat", "selu", 20, {}), "activation selu: has a corner"),
        (("dks", "relu", 20, {}), "activation relu: is a line on either side of 0"),
        (("dks", "identity", 20, {}), "activation identity: no scale α and shift β give these values"),
        (("tat", "tanh", 0, {}), "depth=0: must be a whole number of layers"),
        (("tat", "tanh", 20, {"tau": 0.0}), "tau=0.0, eta=0.9: tau must be above 0"),
        (("tat", "relu", 20, {"eta": 1.0}), "eta=1.0"),
        (("dks", "tanh", 20, {"zeta": 1.0}), "zeta=1.0: must be above 1"),
        (("dks", "tan", 20, {}), "activation=tan: must be one of"),
        (("tat", torch.sign, 20, {}), "activation sign: its derivative is 0 everywhere"),
    ],
)
def test_what_cannot_be_shaped_is_refused(arguments: tuple[str, object, int, dict[str, float]], message: str) -> None:
    method, activation, depth, keys = arguments
    with pytest.raises(ActivationError, match=message):
        getattr(bsnn_cli, method)(activation, depth, **keys)
