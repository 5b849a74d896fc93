"""The claims of the paper about signals, at full depth; their numbers against autograd and by hand."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bsnn_cli import cli
from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets import data
from bsnn_cli.gpn import activations
from bsnn_cli.measuring import matrices, propagation, propagation_runner
from bsnn_cli.measuring.propagation import (
    Layers,
    dataset_passage,
    gaussian_passage,
    measure,
)
from bsnn_cli.measuring.quantities import lengths_and_angle, pseudo_linearity
from bsnn_cli.measuring.records import Measurement, Summary, summarise
from bsnn_cli.measuring.verdict import judge
from bsnn_cli.networks import parameters
from bsnn_cli.networks.network import Network
from bsnn_cli.networks.orthogonal import haar
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig
from tests.conftest import SMALL, Answer, given_once, run_bsnn

CPU = torch.device("cpu")
L, N, B = 200, 500, 20
"""Depth and width are the paper's. Norms and ratios concentrate with the width; few inputs are enough to see them."""


def passage(
    model: ModelConfig, activation: ActivationConfig, seed: int = 0, inputs: int = B, dtype: torch.dtype = torch.float32
) -> Measurement:
    layers = Layers(model, activation, seed, None, CPU, dtype)
    signals = gaussian_passage(inputs, (model.width, model.width), seed, CPU, dtype)
    return measure(layers, activation, signals, [model.depth], lambda: None)


@functools.cache
def full_depth(name: str, root: str | None = "auto") -> Summary:
    """One passage through 200 Haar matrices of width 500; `root=None` is without GPN."""
    activation = ActivationConfig(name=name, gpn=root is not None, root=root or "auto")
    return summarise(passage(ModelConfig(depth=L, width=N), activation).layers)


def fourth_moments(name: str, root: str) -> tuple[float, float, float]:
    """Var[f²], Var[f'²] and χ for h ~ N(0, 1), by the trapezoidal rule."""
    h = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    density = torch.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    solution = activations.normalise(name, root)
    f = solution.a * activations.get(name).phi(h) + solution.b
    slope = solution.a * activations.get(name).derivative(h)
    fourth = [float(torch.trapezoid(value**4 * density, h)) - 1 for value in (f, slope)]
    return fourth[0], fourth[1], solution.chi


STABLE = [
    ("tanh", "auto"),
    ("elu", "auto"),
    ("selu", "auto"),
    ("gelu", "auto"),
    ("silu", "lower"),
    ("mish", "lower"),
    ("softplus", "lower"),
    ("sigmoid", "auto"),
    ("relu", "lower"),
    ("lrelu", "lower"),
]


@pytest.mark.parametrize(("name", "root"), STABLE)
def test_gpn_with_chi_below_1_keeps_signals_and_gradients_within_what_width_allows(name: str, root: str) -> None:
    """A layer adds noise of variance Var[f²]/n to ‖x‖²/n and shrinks its deviation by χ: a stationary process.

    Nothing pulls ‖d‖² back, so its logarithm walks L steps of variance Var[f'²]/n; a range is some 2 deviations.
    """
    of_value, of_slope, chi = fourth_moments(name, root)
    assert chi < 1
    summary = full_depth(name, root)
    deviation = math.sqrt(of_value / N / (1 - chi**2))
    assert abs(summary.forward_norm_last - 1) < 4 * deviation
    walk = math.sqrt(L * of_slope / N)
    assert summary.gradient_norm_ratio < math.exp(2 * walk)
    assert abs(math.log(summary.backward_norm_first / summary.backward_norm_last)) < 4 * walk


def test_plain_tanh_shrinks_to_a_pseudo_linear_network() -> None:
    summary = full_depth("tanh", None)
    assert summary.forward_norm_last < 0.01
    assert summary.derivative_mean > 0.99
    assert summary.derivative_std < 0.01
    assert summary.pseudo_linearity > 0.999
    assert full_depth("tanh").derivative_std > 0.3


def test_plain_selu_keeps_the_signal_and_explodes_the_gradient() -> None:
    summary = full_depth("selu", None)
    assert 0.8 < summary.forward_norm_last < 1.2
    assert summary.gradient_norm_ratio > 100
    assert summary.gradient_norm_first > 100 * summary.gradient_norm_last


def test_plain_relu_is_dead_at_the_predicted_rate() -> None:
    """Each layer halves ‖x‖², with a relative variance of 5/n: E[relu⁴]/E[relu²]² − 1."""
    halvings = -math.log2(full_depth("relu", None).forward_norm_last)
    assert abs(halvings - L) < 4 * math.sqrt(5 * L / N) / math.log(2) + 5 * L / (2 * N * math.log(2))


def test_where_every_gradient_is_zero_there_is_no_ratio() -> None:
    summary = full_depth("gelu", None)
    assert summary.forward_norm_last == 0
    assert summary.zero_gradients == L
    assert math.isnan(summary.gradient_norm_ratio)


def test_the_upper_root_of_silu_explodes() -> None:
    assert activations.normalise("silu", "upper").chi > 1
    assert full_depth("silu", "upper").forward_norm_last > 1e6


def test_inputs_become_alike_in_the_order_of_the_published_accuracies() -> None:
    left = [full_depth(name).one_minus_cosine_last for name in ("elu", "tanh", "relu")]
    assert left[0] > left[1] > 3 * left[2] > 0
    assert full_depth("tanh", None).one_minus_cosine_last > 0.99  # a linear orthogonal network keeps angles


def test_the_ratio_falls_with_width() -> None:
    """Its logarithm goes with 1/√n: halved from one width to the next, far beyond the spread of a mean of three."""

    def log_ratio(width: int, seed: int) -> float:
        model = ModelConfig(depth=L, width=width)
        return math.log(summarise(passage(model, ActivationConfig(name="tanh"), seed).layers).gradient_norm_ratio)

    means = [sum(log_ratio(width, seed) for seed in range(3)) / 3 for width in (25, 100, 300)]
    assert means[0] > means[1] > means[2]


VARIANTS = {
    "unit_rows": ModelConfig(),
    "he": ModelConfig(init="he_normal"),
    "free glorot": ModelConfig(init="glorot_uniform", weights="free"),
    "free lecun": ModelConfig(init="lecun_normal", weights="free"),
    "batch": ModelConfig(norm="batch"),
    "batch, uniform gains": ModelConfig(norm="batch", norm_init="uniform"),
    "layer": ModelConfig(norm="layer", weights="free"),
    "group": ModelConfig(norm="group"),
    "weight_norm": ModelConfig(weights="weight_norm", init="he_normal"),
    "spectral_norm": ModelConfig(weights="spectral_norm", init="glorot_uniform"),
    "residual": ModelConfig(residual=True, norm="batch"),
    "lsuv": ModelConfig(init="lsuv", weights="free"),
    "lsuv weight_norm": ModelConfig(init="lsuv", weights="weight_norm"),
    "norm_preserving": ModelConfig(input_init="norm_preserving"),
}


@pytest.mark.parametrize("gpn", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_signals_and_gradients_equal_autograd_through_the_whole_network(variant: str, gpn: bool) -> None:
    digits = data.load(DatasetConfig(kind="digits"))
    model, depth, inputs = VARIANTS[variant], 6, 9
    model.depth, model.width = depth, 20
    activation = ActivationConfig(name="elu", gpn=gpn)
    signals = dataset_passage(digits, model, inputs, 3, None, CPU, torch.float64)
    layers = Layers(model, activation, 3, None, CPU, torch.float64)
    measured = measure(layers, activation, signals, [1], lambda: None)

    network = Network(model, activation, digits.inputs, digits.classes, 3).double()
    chosen = torch.randperm(len(digits.train.labels), generator=stream(3, "propagated inputs"))[:inputs]
    images, labels = digits.standardise(digits.train.images[chosen], torch.float64), digits.train.labels[chosen]
    for layer in network.hidden:
        layer.linear.eval()
    if model.init == "lsuv":
        network.unit_variance(images)
    entering: list[Tensor] = []
    preactivations: list[Tensor] = []

    def keep(places: list[Tensor], arguments: tuple[Tensor, ...]) -> None:
        arguments[0].retain_grad()
        places.append(arguments[0])

    network.hidden[0].activation.register_forward_pre_hook(lambda _, given: keep(preactivations, given))
    for layer in network.hidden:
        layer.register_forward_pre_hook(lambda _, given: keep(entering, given))
    with parametrize.cached():
        weights = [layer.linear.weight for layer in network.hidden]
        for weight in weights:
            weight.retain_grad()
        F.cross_entropy(network(images), labels).backward()
    for row, x, h, weight in zip(measured.layers, entering, preactivations, weights, strict=False):
        x, h, d = x.detach(), h.detach(), inputs * h.grad
        assert row.forward_norm == pytest.approx(float(x.square().sum() / x.numel()), rel=1e-10)
        assert row.backward_norm == pytest.approx(float(d.square().sum() / d.numel()), rel=1e-10)
        assert row.gradient_norm == pytest.approx(float(weight.grad.norm()), rel=1e-10)
        if model.init == "lsuv":
            assert float(h.var(correction=0)) == pytest.approx(1, rel=1e-10)
    assert len(measured.layers) == depth + 1


def test_a_linear_orthogonal_network_keeps_everything_exactly() -> None:
    model, activation = ModelConfig(depth=50, width=30, weights="free"), ActivationConfig(name="identity", gpn=False)
    exact = torch.stack([haar(30, stream(0, "exact", layer), torch.float64) for layer in range(50)])
    layers = Layers(model, activation, 0, {"hidden.weight": exact}, CPU, torch.float64)
    x, g = (torch.randn(8, 30, generator=stream(0, name), dtype=torch.float64) for name in "xg")
    rows = measure(layers, activation, propagation.Passage(x, lambda _: g), [50], lambda: None).layers
    for row in rows:
        assert row.forward_norm == pytest.approx(float(x.square().sum()) / 240, rel=1e-12)
        assert row.one_minus_cosine == pytest.approx(rows[0].one_minus_cosine, rel=1e-12)
    for row in rows[:-1]:
        assert row.backward_norm == pytest.approx(float(g.square().sum()) / 240, rel=1e-12)
        assert row.gradient_norm == pytest.approx(rows[0].gradient_norm, rel=1e-12)
        assert row.pseudo_linearity == pytest.approx(1, rel=1e-12)
        assert (row.derivative_mean, row.derivative_std, row.saturated) == (1, 0, 0)


def test_numbers_by_hand() -> None:
    by_hand = (9 + 0.25 + 1) / 6, 4 / 3  # cosines 0, −1, 0
    assert lengths_and_angle(torch.tensor([[3.0, 0], [0, 0.5], [-1, 0]])) == pytest.approx(by_hand)
    assert lengths_and_angle(torch.tensor([[3e-30, 0], [0, 4e-30]]))[0] == pytest.approx(6.25e-60)
    close = torch.tensor([[1.0, 1e-5], [1, -1e-5]])
    assert lengths_and_angle(close)[1] == pytest.approx(2e-10, rel=1e-4)
    assert lengths_and_angle(torch.ones(7, 3))[1] == pytest.approx(0, abs=1e-15)
    assert math.isnan(lengths_and_angle(torch.tensor([[0.0, 0], [1, 0]]))[1])
    h = torch.tensor([[-1.0, -1], [0, 0], [1, 1]])
    assert pseudo_linearity(h, 3 * h + 1) == pytest.approx(1)
    assert pseudo_linearity(h, torch.stack([h[:, 0], h[:, 1] ** 2], 1)) == pytest.approx(0.5)  # 1 and 0
    assert pseudo_linearity(1e-30 * h, 1e-30 * h.relu()) == pytest.approx(0.75)  # r = √3/2


def full_disk(*_: object) -> None:
    """Stand in for what takes room on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_too_large_for_the_memory_lies_in_a_file_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(matrices, "KEPT_BYTES", 4 * 1000)
    assert matrices.stack((10, 100), torch.float32) is not None
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    tensor = matrices.stack((10, 101), torch.float32)
    assert tensor is not None
    tensor[9] = 1
    assert tensor.sum() == 101
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []
    del tensor
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_matrices_are_drawn_once_wherever_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, activation = ModelConfig(depth=5, width=16), ActivationConfig()
    drawn: list[int] = []
    start = parameters.hidden_start

    def counted(model: ModelConfig, seed: int, layer: int) -> Tensor:
        drawn.append(layer)
        return start(model, seed, layer)

    def times() -> int:
        """How often each matrix has been drawn since this was last asked."""
        [count] = {drawn.count(layer) for layer in range(5)}
        drawn.clear()
        return count

    monkeypatch.setattr(parameters, "hidden_start", counted)
    in_memory = [passage(model, ActivationConfig(name=name)) for name in ("selu", "tanh")]
    assert times() == 1
    other = passage(model, activation, seed=1)
    assert times() == 1
    monkeypatch.setattr(matrices, "KEPT_BYTES", 1)
    in_a_file = [passage(model, ActivationConfig(name=name)) for name in ("selu", "tanh")]
    assert times() == 1
    assert str(in_a_file) == str(in_memory)
    assert str(in_memory[0].layers) != str(other.layers)
    for name, stand_in in (("fits_on_disk", lambda _: False), ("stacks", full_disk)):
        monkeypatch.setattr(matrices.drawn, "_network", ())
        monkeypatch.setattr(matrices, name, stand_in)
        assert str(passage(model, activation)) == str(in_memory[0])
        assert times() == 2  # for the backward pass, too


def test_a_disk_that_fills_up_with_signals_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrices, "KEPT_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    assert cli.dispatch(["propagate", *QUICK]) == 1
    assert capsys.readouterr().err == f"error: {tempfile.gettempdir()}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


QUICK = ["model.depth=4", "model.width=12", "propagate.inputs=10"]


def summaries(root: Path) -> list[Path]:
    return sorted(root.glob("outputs/propagation/*/*/summary.json"))


def test_the_command_writes_its_numbers_and_does_not_measure_twice(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    first = run_bsnn("propagate", "activation=tanh_gpn", "propagate.repeats=3", *QUICK, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    [path] = summaries(tmp_path)
    summary, layers = json.loads(path.read_text()), pd.read_csv(path.parent / "layers.csv")
    assert path.parent.parent.name == summary["activation"] == "tanh_gpn"
    assert (summary["depth"], summary["width"], summary["seed"], summary["repeats"]) == (4, 12, 0, 3)
    assert list(layers["layer"]) == [1, 2, 3, 4, 5]
    each = [
        summarise(passage(ModelConfig(depth=4, width=12), ActivationConfig(name="tanh"), seed, 10).layers)
        for seed in range(3)
    ]
    norms = pd.Series([one.forward_norm_last for one in each])
    assert layers["forward_norm"].iloc[-1] == pytest.approx(norms.mean(), rel=1e-5) == summary["forward_norm_last"]
    assert layers["forward_norm_std"].iloc[-1] == pytest.approx(norms.std(), rel=1e-4)
    assert summary["gradient_norm_ratio"] == pytest.approx(sum(one.gradient_norm_ratio for one in each) / 3, rel=1e-5)
    assert summary["gradient_norm_first"] == pytest.approx(layers["gradient_norm"].iloc[0])
    histogram = pd.read_csv(path.parent / "histogram.csv")
    for _, bins in histogram.groupby("layer"):
        assert bins["count"].sum() == 3 * 10 * 12
        assert (bins["density"] * (bins["right"] - bins["left"])).sum() == pytest.approx(1)
    assert sorted(histogram["layer"].unique()) == [1, 2, 4]
    before = path.stat().st_mtime_ns
    second = bsnn("propagate", "activation=tanh_gpn", "propagate.repeats=3", *QUICK)
    assert "finished already" in second.stderr
    assert second.stdout == first.stdout
    assert path.stat().st_mtime_ns == before


def test_a_trained_network_is_measured_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(["train", *SMALL]) == 0
    [run] = tmp_path.glob("outputs/runs/*/*/*")
    options = ["propagate.source=dataset", "propagate.inputs=10", "propagate.histogram=[2,3]", "progress=false"]
    assert cli.dispatch(["propagate", f"run={run}", *options]) == 0
    assert cli.dispatch(["propagate", "dataset=digits", "model.depth=3", "model.width=12", *options]) == 0
    found = [json.loads(path.read_text()) for path in summaries(tmp_path)]
    assert len(found) == 2
    assert sorted(one["trained"] is not None for one in found) == [False, True]
    assert found[0]["forward_norm_last"] != pytest.approx(found[1]["forward_norm_last"], rel=1e-3)
    for path in summaries(tmp_path):
        assert set(pd.read_csv(path.parent / "histogram.csv")["layer"]) == {2, 3}
    assert cli.dispatch(["propagate", f"run={run}", "model.depth=7"]) == 2
    assert cli.dispatch(["propagate", f"run={run}", "propagate.histogram=[4]"]) == 2
    (run / "weights.pt").unlink()
    assert cli.dispatch(["propagate", f"run={run}"]) == 2


BAD = {
    ("propagate.histogram=[1,9]",): ["propagate.histogram=9", "1 to 4"],
    ("propagate.inputs=1",): ["propagate.inputs=1", "at least 2"],
    ("propagate.source=data",): ["propagate.source=data", "gaussian, dataset"],
    ("propagate.source=dataset", "dataset=digits", "propagate.inputs=5000"): ["propagate.inputs=5000", "1442"],
    ("run=nowhere",): ["nowhere"],
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_line_before_anything_is_measured(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(["propagate", *given_once([*QUICK, *arguments])]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(part in line for part in BAD[arguments]), line
    assert list(tmp_path.iterdir()) == []


def test_the_memory_estimate_is_of_the_right_size() -> None:
    from bsnn_cli.settings.config import PropagateConfig

    full = propagation_runner.estimate_bytes(PropagateConfig())
    assert 0.8e9 < full < 1.4e9  # 400 MB of signals, 200 MB of matrices, PyTorch itself
    wide = propagation_runner.estimate_bytes(PropagateConfig(model=ModelConfig(width=1500)))
    assert wide < 1.5e9


@pytest.mark.parametrize(
    ("name", "root", "words"),
    [
        ("tanh", None, ["signal vanishes: ‖x‖²/n = 0.0025", "the network is linear (pseudo-linearity 1.000)"]),
        ("tanh", "auto", ["signal keeps its length", "gradients keep their size"]),
        ("selu", None, ["signal keeps its length", "gradients explode: "]),
        ("relu", None, ["signal vanishes", "gradients vanish"]),
        ("gelu", None, ["exactly 0", "ratio is not defined"]),
        ("silu", "upper", ["signal explodes"]),
        ("relu", "auto", ["inputs become alike"]),
    ],
)
def test_the_verdict_names_what_happens(name: str, root: str | None, words: list[str]) -> None:
    numbers = {key: value if math.isfinite(value) else None for key, value in vars(full_depth(name, root)).items()}
    text = "; ".join(judge(numbers | {"depth": L}))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("norm", "ratio", "words"),
    [
        (1.02, 1.7, ["signal keeps its length: ‖x‖²/n = 1.02 (within a factor of 3)",
                     "gradients keep their size: 1.70× (within a factor of 3)"]),
        (5.0, 3.19, ["signal grows: ‖x‖²/n = 5.00 (above 3)", "gradients differ: 3.19× (above 3)"]),
        (0.2, 12.0, ["signal shrinks: ‖x‖²/n = 0.20 (below 1/3)", "gradients explode: 12× (above 10)"]),
        (0.05, 1.0, ["signal vanishes: ‖x‖²/n = 0.05 (below 1/10)", "gradients keep their size: 1.00×"]),
        (20.0, 1.0, ["signal explodes: ‖x‖²/n = 20 (above 10)", "gradients keep their size"]),
    ],
)  # fmt: skip
def test_a_verdict_states_its_thresholds(norm: float, ratio: float, words: list[str]) -> None:
    sentences = judge(
        {
            "forward_norm_last": norm,
            "gradient_norm_ratio": ratio,
            "gradient_norm_max": 1.0,
            "gradient_norm_first": 1.0,
            "gradient_norm_last": 1 / ratio,
            "zero_gradients": 0,
            "one_minus_cosine_last": 0.5,
            "saturated": 0.0,
            "derivative_std": 1.0,
            "derivative_mean": 1.0,
            "pseudo_linearity": 0.5,
            "depth": L,
        }
    )
    assert len(sentences) == 2
    assert all(sentence.startswith(word) for sentence, word in zip(sentences, words, strict=True)), sentences
