"""`network=cnn`: its start pixel by pixel, what GPN keeps over 100 layers, its training, and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli import load_dataset, load_run
from bsnn_cli.networks.autograd_trainer import AutogradTrainer
from bsnn_cli.networks.convolutional import Convolutional
from bsnn_cli.networks.members import Hyperparameters
from bsnn_cli.networks.network import Network, nonlinearity
from bsnn_cli.settings.config import ActivationConfig, ModelConfig
from bsnn_cli.theory.convolution import pixel_lengths
from tests.conftest import Answer, given_once, run_bsnn
from tests.test_train_command import Start, assert_same_end, kill_in_mid_epoch, start  # noqa: F401

IMAGE = (1, 28, 28)


def made(activation: str = "selu", gpn: bool = True, seed: int = 0, **model: object) -> Convolutional:
    phi = nonlinearity(ActivationConfig(name=activation, gpn=gpn))
    return Convolutional(ModelConfig(**model), phi, IMAGE, 10, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["unit_rows", "free"])
def test_at_the_start_every_pixel_passes_the_perceptron_of_the_same_seed(weights: str) -> None:
    model = ModelConfig(depth=6, width=20, weights=weights)
    phi = nonlinearity(ActivationConfig(name="tanh"))
    images = Convolutional(model, phi, IMAGE, 10, seed=3)
    perceptron = Network(model, phi, 5, 10, seed=3)
    x = torch.randn(4, 20, 5, 7, generator=torch.Generator().manual_seed(1))
    pixels = x.permute(0, 2, 3, 1)
    for layer in perceptron.hidden:
        pixels = layer(pixels)
    torch.testing.assert_close(images.hidden(x), pixels.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def passed(network: Convolutional, seed: int, pixels: int = 14, inputs: int = 8) -> tuple[Tensor, Tensor]:
    """Squared lengths per channel and pixel, (height, width): of what leaves, and of the gradient at what enters."""
    generator = torch.Generator().manual_seed(seed)
    width = network.output.in_features
    x = torch.randn(inputs, width, pixels, pixels, generator=generator, requires_grad=True)
    y = network.hidden(x)
    [g] = torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator))
    return y.detach().square().mean((0, 1)), g.square().mean((0, 1))


CASES = [("tanh", True, 30), ("selu", True, 20), ("selu", False, 20), ("gelu", True, 20), ("relu", False, 10)]


@pytest.mark.parametrize("init", ["orthogonal", "lecun_normal"])
@pytest.mark.parametrize(("activation", "gpn", "depth"), CASES)
def test_lengths_of_pixels_are_predicted(activation: str, gpn: bool, depth: int, init: str) -> None:
    """Six networks of 64 channels; the tolerance is the spread of their mean, of the order √(L/6·64·8)."""
    networks = [made(activation, gpn, seed, depth=depth, width=64, init=init) for seed in range(6)]
    signals, gradients = zip(*(passed(network, seed) for seed, network in enumerate(networks)), strict=True)
    predicted = pixel_lengths(activation + ("_gpn" if gpn else ""), depth, delta=init == "orthogonal")
    for measured, wanted in ((signals, predicted.forward[-1]), (gradients, predicted.backward[0])):
        mean = torch.stack(measured).mean(0)
        for place in (slice(0, 1), slice(4, 10)):  # the border, and the middle
            ratio = float(mean[place, 4:10].mean() / wanted[place, 4:10].mean())
            assert abs(math.log(ratio)) < 0.25, f"{place}: {ratio:.3f}"


def test_the_prediction_knows_what_is_exact() -> None:
    """GPN keeps both lengths of each pixel; a straight line loses at the border what the averaging matrix does."""
    for name in ("selu_gpn", "relu_gpn", "gelu_gpn"):
        exact = pixel_lengths(name, 50)
        torch.testing.assert_close(exact.forward, torch.ones_like(exact.forward), rtol=0, atol=1e-9)
        torch.testing.assert_close(exact.backward, torch.ones_like(exact.backward), rtol=0, atol=1e-9)
    line = pixel_lengths(lambda h: h, 7, (5, 6), delta=False)
    rows, columns = (torch.ones(n, n).tril(1).triu(-1).double() / 3 for n in (5, 6))
    wanted = torch.linalg.matrix_power(rows, 7).sum(1)[:, None] * torch.linalg.matrix_power(columns, 7).sum(1)
    torch.testing.assert_close(line.forward[-1], wanted)
    torch.testing.assert_close(line.backward[0], wanted)


def test_gpn_keeps_signal_and_gradients_over_100_layers_and_the_narrower_the_more_they_spread(
    tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    words = ["model.depth=100", "model.width=16,32", "propagate.repeats=4", "propagate.inputs=5", "threads=1"]
    for activation in ("selu_gpn", "selu"):
        told = bsnn("propagate", "-m", "network=cnn", f"activation={activation}", "network.shape=null", *words)
        assert told.returncode == 0, told.stderr
    found = {}
    for path in tmp_path.glob("outputs/propagation/*/*/summary.json"):
        summary = json.loads(path.read_text())
        assert (summary["network"], summary["depth"], summary["calls"]) == ("cnn", 100, 200)
        found[summary["label"]] = summary
    kept, lost = found["SELU-GPN cnn, 32 channels"], found["SELU cnn, 32 channels"]
    assert 1 / 2 < kept["forward_norm_last"] < 2
    assert 1 < kept["gradient_norm_ratio"] < 4
    assert lost["gradient_norm_ratio"] > 20
    assert found["SELU-GPN cnn, 16 channels"]["gradient_norm_ratio"] > kept["gradient_norm_ratio"]


def test_a_step_is_that_of_plain_convolutions() -> None:
    """Filters of unit length, divided out by hand; momentum, in float64."""
    network = made(depth=3, width=6).double()
    V = [block.conv.parametrizations.weight.original.detach().clone() for block in network.hidden]
    ends = {name: value.detach().clone() for name, value in network.named_parameters() if "hidden" not in name}
    trainer = AutogradTrainer([network], [Hyperparameters(seed=0, lr=0.1)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(5, 784, generator=generator, dtype=torch.float64) for _ in range(3)]
    labels = torch.arange(5)
    for x in batches:
        trainer.step(x[None], labels[None])
    values = [value.requires_grad_() for value in (*V, *ends.values())]
    optimizer = torch.optim.SGD(values, 0.1, 0.5)
    phi = network.hidden[0].activation
    for x in batches:
        signal = F.conv2d(x.view(5, *IMAGE), ends["input.weight"], ends["input.bias"], stride=2, padding=1)
        for v in V:
            W = v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            signal = phi(F.conv2d(signal, W, padding=1))
        loss = F.cross_entropy(signal.mean((2, 3)) @ ends["output.weight"].T + ends["output.bias"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for block, v in zip(network.hidden, V, strict=True):
        torch.testing.assert_close(block.conv.parametrizations.weight.original, v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(network.output.weight, ends["output.weight"], rtol=1e-9, atol=1e-12)


BRIEF = ["network=cnn", "dataset=digits", "model.depth=4", "model.width=10", "optim.lr=0.05", "threads=1"]


def test_it_trains_and_is_loaded(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    for norm in ("none", "batch"):
        told = bsnn("train", *BRIEF, "optim.epochs=12", f"model.norm={norm}", "activation=tanh_gpn")
        assert told.returncode == 0, told.stderr
    for name, accuracy in (("tanh_gpn-cnn", 60), ("tanh_gpn-cnn-bn", 80)):
        [run] = tmp_path.glob(f"outputs/runs/digits/{name}/*")
        result = json.loads((run / "result.json").read_text())
        assert result["test_accuracy"] > accuracy
        assert (result["activation"], result["gpn"], result["depth"], result["width"]) == ("tanh", True, 4, 10)
        digits, network = load_dataset(run), load_run(run)
        hits = network(digits.standardise(digits.test.images)).argmax(1) == digits.test.labels
        assert 100 * hits.double().mean() == pytest.approx(result["test_accuracy"])
    [plain] = tmp_path.glob("outputs/runs/digits/tanh_gpn-cnn/*")
    for source in ("dataset", "gaussian"):
        told = bsnn("propagate", f"run={plain}", f"propagate.source={source}", "propagate.inputs=9")
        assert told.stdout.startswith("Tanh-GPN cnn, 10 channels, "), told.stderr
    assert "network.kind=cnn" in bsnn("runs", "format=markdown").stdout
    assert bsnn("table").returncode == 0
    rehearsal = bsnn("train", *BRIEF, "seed=1", "dry_run=true")
    assert f"disk: {4 * 4 * 9 * 100 / 1e6:.1f} MB to keep" in rehearsal.stdout, rehearsal.stderr


def test_it_goes_on_after_a_kill_and_ends_the_same_to_the_byte(start: Start, tmp_path: Path) -> None:  # noqa: F811
    words = given_once([*BRIEF, "model.depth=2", "optim.epochs=15", "checkpoint.every_s=0.05", "optim=adamw"])
    whole = run_bsnn("train", *words, "output_root=whole/outputs", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    kill_in_mid_epoch(start(*words), tmp_path)
    assert "resuming after" in run_bsnn("train", *words, cwd=tmp_path).stderr
    [ours] = tmp_path.glob("outputs/runs/*/*/*")
    [theirs] = tmp_path.glob("whole/outputs/runs/*/*/*")
    assert_same_end(ours, theirs)


BAD = {
    ("model.weights=orthogonal",): "model.weights=orthogonal: does not go with network=cnn; use one of unit_rows, free",
    ("model.norm=layer",): "model.norm=layer: does not go with network=cnn",
    ("model.weights=free", "model.init=lsuv"): "model.init=lsuv: does not go with network=cnn",
    ("network.kwargs.depth=3",): "network.kwargs: means nothing without network=FILE.py:FUNCTION",
}


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("verb", ["train", "propagate"])
def test_bad_input_gets_one_line_and_2(words: tuple[str, ...], verb: str, bsnn: Callable[..., Answer]) -> None:
    told = bsnn(verb, "network=cnn", *words)
    assert told.returncode == 2
    [line] = told.stderr.splitlines()
    assert line.startswith("error: ")
    assert BAD[words] in line


def test_gains_of_batch_normalisation_are_drawn_where_they_are_asked_for() -> None:
    norms = [block.norm for block in made(depth=2, width=200, norm="batch", norm_init="uniform").hidden]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    gains = torch.stack([norm.weight for norm in norms])
    assert 0.45 < float(gains.detach().mean()) < 0.55
    assert not torch.equal(gains[0], gains[1])
