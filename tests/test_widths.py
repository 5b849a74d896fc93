"""Networks whose width changes: start, norms, training, storage, measurement, tables, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli import load_run, load_runs
from bsnn_cli.common.random_streams import stream
from bsnn_cli.gpn.activations import get, normalise
from bsnn_cli.measuring.modules import measure as measure_module
from bsnn_cli.measuring.propagation import Layers, dataset_passage, gaussian_passage, measure
from bsnn_cli.networks.building import fleet_covers, reference_trainer
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.memory import training_bytes
from bsnn_cli.networks.network import Network
from bsnn_cli.networks.orthogonal import haar, orthogonality_error, semi_orthogonal
from bsnn_cli.networks.parameters import hidden_start
from bsnn_cli.networks.trainable import of_layer, stored
from bsnn_cli.runs import checkpoint, estimate, plan
from bsnn_cli.settings.config import ActivationConfig, ModelConfig, TrainConfig
from bsnn_cli.settings.identity import identity
from bsnn_cli.settings.validation import resolve
from bsnn_cli.settings.widths import changing, in_words, resized, widths
from tests.conftest import Answer
from tests.test_train_command import Start, assert_same_end, kill_in_mid_epoch, run_directory, start  # noqa: F401

CPU = torch.device("cpu")
NARROWING = ["dataset=digits", "model.depth=2", "model.width=[12,9,6]", "optim.lr=0.01", "optim.epochs=2"]


def model(*sizes: int, **values: object) -> ModelConfig:
    return dataclasses.replace(ModelConfig(depth=len(sizes) - 1, width=sizes[0], widths=list(sizes)), **values)


def test_a_list_and_a_taper_say_all_widths() -> None:
    assert widths(ModelConfig(depth=3, width=7)) == (7, 7, 7, 7)
    assert widths(model(500, 400, 300)) == (500, 400, 300)
    assert widths(ModelConfig(depth=4, width=100, taper=0.0625)) == (100, 50, 25, 12, 6)  # 12.5 and 6.25 units
    assert widths(ModelConfig(depth=2, width=10, taper=4.0)) == (10, 20, 40)
    assert in_words((500, 400, 300)) == "500 to 300"
    assert in_words((50, 20, 60)) == "20 to 60"


def test_equal_widths_are_the_network_of_one_width() -> None:
    plain = TrainConfig(model=ModelConfig(depth=2, width=50))
    for same in ({"widths": [50, 50, 50]}, {"width": 50, "taper": 1.0}, {"width": 50, "widths": [50, 50, 50]}):
        config = TrainConfig(model=ModelConfig(depth=2, **same))  # type: ignore[arg-type]
        assert identity(config) == identity(plain)
        assert resolve(config).model == plain.model
    first_left_out = TrainConfig(model=ModelConfig(depth=2, widths=[12, 9, 6]))
    assert resolve(first_left_out).model == model(12, 9, 6)
    assert identity(first_left_out) == identity(resolve(first_left_out)) != identity(plain)


def test_a_square_start_has_the_bits_that_it_always_had() -> None:
    for layer in range(3):
        expected = haar(20, stream(5, "hidden", layer))
        assert torch.equal(hidden_start(ModelConfig(depth=3, width=20), 5, layer), expected)
        assert torch.equal(
            hidden_start(model(20, 20, 20, 7), 5, min(layer, 1)), haar(20, stream(5, "hidden", min(layer, 1)))
        )


@pytest.mark.parametrize(("n_out", "n_in"), [(30, 50), (50, 30), (1, 4), (4, 1)])
def test_a_start_is_as_orthogonal_as_its_shape_allows_with_rows_of_unit_length_on_average(
    n_out: int, n_in: int
) -> None:
    W = hidden_start(model(n_in, n_out), 0, 0).double()
    assert W.shape == (n_out, n_in)
    assert float(W.square().sum()) == pytest.approx(n_out, rel=1e-5)
    if n_out < n_in:
        torch.testing.assert_close(W @ W.T, torch.eye(n_out, dtype=torch.float64), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(W.T @ W, n_out / n_in * torch.eye(n_in, dtype=torch.float64), rtol=0, atol=1e-5)
    assert orthogonality_error(W) < 1e-5
    assert orthogonality_error(1.1 * W) == pytest.approx(0.21, abs=1e-4)
    spoilt = W.clone()
    spoilt[0, 0] += 0.5
    assert orthogonality_error(spoilt) > 0.02


def test_semi_orthogonal_matrices_are_uniform_on_their_manifold() -> None:
    """Entries of the first rows of Haar matrices of size 5: E w = 0, E w² = 1/5, E w⁴ = 3/(5·7)."""
    generator = stream(0, "test")
    W = torch.stack([semi_orthogonal(2, 5, generator) for _ in range(2000)])
    tall = torch.stack([semi_orthogonal(5, 2, generator) for _ in range(2000)]) * math.sqrt(2 / 5)
    for draws in (W, tall):
        for power, moment in ((1, 0.0), (2, 1 / 5), (4, 3 / 35)):
            values = draws.pow(power)
            error = values.std(0) / math.sqrt(len(values))
            assert ((values.mean(0) - moment).abs() < 4 * error).all()  # of 10 entries and 3 moments: p = 0.002


@pytest.mark.parametrize(
    ("init", "variance"), [("lecun_normal", 1 / 200), ("he_normal", 2 / 200), ("glorot_uniform", 2 / 300)]
)
def test_other_starts_follow_their_fans(init: str, variance: float) -> None:
    W = hidden_start(model(200, 100, init=init), 0, 0)
    assert float(W.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / W.numel()))  # four standard errors


def moments(name: str, gpn: bool, q: float) -> tuple[float, float]:
    """E f(√q z)² and E f'(√q z)², by the sum over a fine grid."""
    phi, z = get(name), torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    a, b = (normalise(name).a, normalise(name).b) if gpn else (1.0, 0.0)
    weight = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    h = math.sqrt(q) * z
    return float(weight @ (a * phi.phi(h) + b) ** 2), float(weight @ (a * phi.derivative(h)) ** 2)


def predicted(network: ModelConfig, name: str, gpn: bool) -> tuple[list[float], list[float]]:
    """‖x^l‖²/n_l for l = 1 … L + 1, and ‖d^l‖²/n_{l+1} for l = 1 … L, at infinite width.

    A matrix keeps ‖x‖² per unit forwards and the whole of ‖d‖² backwards; the activation multiplies both as always.
    """
    sizes, lengths, slopes = widths(network), [1.0], []
    for _ in range(network.depth):
        q, chi = moments(name, gpn, lengths[-1])
        lengths.append(q)
        slopes.append(chi)
    gradients, whole = [], float(sizes[-1])
    for chi, n in zip(reversed(slopes), reversed(sizes[1:]), strict=True):
        whole *= chi
        gradients.append(whole / n)
    return lengths, gradients[::-1]


@pytest.mark.parametrize("taper", [0.5, 2.0])
@pytest.mark.parametrize(("name", "gpn", "within"), [("selu", True, 0.2), ("tanh", False, 0.08)])
def test_norms_are_kept_forwards_per_unit_and_backwards_as_a_whole(
    name: str, gpn: bool, within: float, taper: float
) -> None:
    """Geometric means over 8 networks of 30 layers between 60 and 120 units, free weights and unit rows in turn.

    Their standard error is 0.05 in the logarithm with GPN and 0.015 without, where the mean is off by 0.02 at this
    width: `within` is four of them. Were the gradient kept per unit, it would be off by log 2 = 0.69.
    """
    network = ModelConfig(depth=30, width=120 if taper < 1 else 60, taper=taper)
    activation, sizes = ActivationConfig(name=name, gpn=gpn), widths(network)
    logs: list[Tensor] = []
    for seed in range(8):
        chosen = dataclasses.replace(network, weights=("unit_rows", "free")[seed % 2])
        layers = Layers(chosen, activation, seed, None, CPU, torch.float32)
        passage = gaussian_passage(50, (sizes[0], sizes[-1]), seed, CPU, torch.float32)
        rows = measure(layers, activation, passage, [], lambda: None).layers
        norms = [row.forward_norm for row in rows] + [row.backward_norm for row in rows[:-1]]
        logs.append(torch.tensor(norms, dtype=torch.float64).log())
    lengths, gradients = predicted(network, name, gpn)
    difference = torch.stack(logs).mean(0) - torch.tensor([*lengths, *gradients], dtype=torch.float64).log()
    assert difference.abs().max() < within


def test_a_free_matrix_keeps_one_of_the_two_norms_exactly() -> None:
    generator = stream(0, "signals")
    for n_in, n_out in ((60, 20), (20, 60)):
        W = hidden_start(model(n_in, n_out), 0, 0)
        x, d = torch.randn(9, n_in, generator=generator), torch.randn(9, n_out, generator=generator)
        if n_out > n_in:
            kept, before = (x @ W.T).square().mean(1), x.square().mean(1)  # per unit
        else:
            kept, before = (d @ W).square().sum(1), d.square().sum(1)
        torch.testing.assert_close(kept, before, rtol=1e-5, atol=0)


def member(lr: float) -> Member:
    solution = normalise("selu")
    return Member(activation=get("selu"), a=solution.a, b=solution.b, seed=3, lr=lr)


@pytest.mark.parametrize("sizes", [(12, 9, 6), (6, 9, 12), (8, 5, 8)])
def test_training_is_that_of_a_loop_written_by_hand(sizes: tuple[int, ...]) -> None:
    network = model(*sizes)
    trainer = reference_trainer(network, [member(0.05)], inputs=7, classes=3, dtype=torch.float64)
    begin = {name: value.clone() for name, value in trainer.member_state(0).items()}
    kept = {name: value.clone() for name, value in begin.items()}
    names = ["input.weight", "input.bias", "hidden.weight.1", "hidden.weight.2", "output.weight", "output.bias"]
    A, a, *V, B, b = (begin[name].requires_grad_() for name in names)
    velocity = [torch.zeros_like(value) for value in (A, a, *V, B, b)]
    solution, generator = normalise("selu"), torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (5,), generator=generator)
        signal = x @ A.T + a
        for matrix in V:
            h = signal @ (matrix / matrix.square().sum(1, keepdim=True).sqrt()).T
            signal = (
                solution.a * (1.0507009873554805 * torch.where(h > 0, h, 1.6732632423543772 * h.expm1())) + solution.b
            )
        loss = F.nll_loss(torch.log_softmax(signal @ B.T + b, 1), y)
        gradients = torch.autograd.grad(loss, (A, a, *V, B, b))
        with torch.no_grad():
            for value, sum_, gradient in zip((A, a, *V, B, b), velocity, gradients, strict=True):
                sum_.mul_(0.5).add_(gradient)
                value.sub_(0.05 * sum_)
        torch.testing.assert_close(trainer.step(x[None], y[None])[0], loss.detach(), rtol=1e-10, atol=0)
    end = trainer.member_state(0)
    for name, value in zip(names, (A, a, *V, B, b), strict=True):
        torch.testing.assert_close(end[name], value.detach(), rtol=1e-10, atol=1e-12)
        assert not torch.equal(end[name], kept[name])


OPTIONS: list[dict[str, object]] = [
    {"weights": "free", "norm": "layer"},
    {"weights": "weight_norm", "norm": "batch", "norm_init": "uniform"},
    {"weights": "spectral_norm", "norm": "group"},
    {"weights": "unit_rows", "norm": "batch"},
    {"weights": "free", "init": "lsuv"},
    {"weights": "weight_norm", "init": "he_normal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(40, 20, 30), (20, 40, 40)])
def test_options_train_and_their_state_continues_to_the_bit(sizes: tuple[int, ...], options: dict[str, object]) -> None:
    network = resolve(TrainConfig(model=model(*sizes, **options))).model
    assert not fleet_covers(network)
    x, y = torch.randn(4, 1, 8, 7), torch.randint(3, (4, 1, 8))
    whole = reference_trainer(network, [member(0.05)], inputs=7, classes=3)
    begun = reference_trainer(network, [member(0.05)], inputs=7, classes=3)
    for step in range(4):
        whole.step(x[step], y[step])
        if step == 2:
            begun = reference_trainer(network, [member(0.05)], inputs=7, classes=3, states=[begun.member_state(0)])
        begun.step(x[step], y[step])
    assert bool(whole.alive.all())
    states = whole.member_state(0), begun.member_state(0)
    assert checkpoint.digest(states[0]) == checkpoint.digest(states[1])
    assert {"hidden.weight.1", "hidden.weight.2", "momentum.hidden.weight.2"} <= set(states[0])
    if options.get("init") == "lsuv":
        fresh = Network(network, ActivationConfig(), 7, 3, 0)
        fresh.unit_variance(x[0, 0])
        hidden = fresh.hidden[0].linear(fresh.input(x[0, 0])).detach()  # type: ignore[operator, union-attr]
        assert float(hidden.std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_of_several_entries_those_of_one_shape_are_stacked() -> None:
    network = Network(model(9, 5, 5, norm="layer"), ActivationConfig(), 7, 3, 0)
    state = stored(network.tensors())
    assert {"hidden.weight.1", "hidden.weight.2", "norm.weight", "norm.bias"} <= set(state)
    assert state["norm.weight"].shape == (2, 5)
    assert of_layer(state, "hidden.weight", 0).shape == (5, 9)
    torch.testing.assert_close(of_layer(state, "norm.weight", 1), state["norm.weight"][1])
    assert stored(Network(ModelConfig(depth=2, width=5), ActivationConfig(), 7, 3, 0).tensors())[
        "hidden.weight"
    ].shape == (2, 5, 5)


def test_memory_disk_and_time_are_those_of_the_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(TrainConfig(model=model(300, 20, 100)))
    assert plan.values(config) == 300 * 20 + 20 * 100
    # weights and momentum; of 64 samples five signals that enter a layer, and two of the first
    assert training_bytes(config) == 4 * (2 * 8_000 + 64 * (5 * 320 + 2 * 300))
    assert widths(resized(model(*range(41, 0, -1)), 8)) == (41, 36, 31, 26, 21, 16, 11, 6, 1)
    assert widths(resized(ModelConfig(depth=40, width=100, taper=0.01), 2)) == (100, 10, 1)
    seen: list[ModelConfig] = []

    def probe(_: TrainConfig, probed: ModelConfig) -> tuple[float, float, float]:
        seen.append(probed)
        return (1.0, 1.0, 1.0)

    monkeypatch.setattr(estimate, "probe", probe)
    wide = resolve(TrainConfig(model=ModelConfig(depth=8, width=4000, taper=0.5)))
    assert estimate.timed(wide).typical == pytest.approx(4, rel=1e-3)  # timed at half the widths
    assert widths(seen[0])[::8] == (2000, 1000)
    assert changing(seen[0])


def test_a_killed_run_ends_the_same_to_the_byte(
    start: Start,  # noqa: F811
    tmp_path: Path,
    bsnn: Callable[..., Answer],
) -> None:
    long = [word for word in NARROWING if "epochs" not in word]
    long += ["optim.epochs=20", "model.norm=batch", "optim=adamw", "checkpoint.every_s=0.05", "progress=false"]
    whole = bsnn("train", *long, "output_root=whole/outputs")
    assert whole.returncode == 0, whole.stderr
    assert "this trains more slowly than usual" in whole.stderr
    kill_in_mid_epoch(start(*long), tmp_path)
    resumed = bsnn("train", *long)
    assert "resuming after" in resumed.stderr
    assert_same_end(run_directory(tmp_path), run_directory(tmp_path / "whole"))


def test_from_a_sweep_to_loaded_networks_tables_and_pictures(bsnn: Callable[..., Answer]) -> None:
    words = [word for word in NARROWING if "width" not in word]
    dry = bsnn("train", "-m", *words, "model.width=[12,9,6],12,[12,12,12],[9,9,9]", "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    assert "3 runs: 3 to run" in dry.stdout  # equal widths are one width
    assert "[12,9,6]" in dry.stdout
    listed, one = "model.width=[12,9,6]", "model.width=12"
    for network in ([listed], [listed, "seed=1"], [one], [one, "model.taper=0.5"]):
        trained = bsnn("train", *words, *network, "progress=false")
        assert trained.returncode == 0, trained.stderr
    again = bsnn("train", *words, "model.width=12", "model.taper=1", "progress=false")
    assert "finished already" in again.stderr
    runs = load_runs("outputs").set_index("directory")
    assert sorted(runs["model.widths"].dropna().unique()) == ["[12,9,6]"]
    assert (runs["model.width"] == 12).all()
    assert (runs["width"] == 12).all()

    path = runs[runs["model.widths"].notna()].index[0]
    network, weights = load_run(path), checkpoint.load(Path(path) / "weights.pt")
    assert {name for name in weights if name.startswith("hidden.")} == {"hidden.weight.1", "hidden.weight.2"}
    x = torch.randn(4, 64)
    signal = x @ weights["input.weight"].T + weights["input.bias"]
    for layer in (1, 2):
        signal = nn.functional.selu(signal @ F.normalize(weights[f"hidden.weight.{layer}"], dim=1).T)
        signal = normalise("selu").a * signal + normalise("selu").b
    torch.testing.assert_close(network(x), signal @ weights["output.weight"].T + weights["output.bias"])
    with (Path(path) / "epochs.csv").open() as file:
        errors = [float(row["orthogonality_error"]) for row in csv.DictReader(file)]
    expected = max(float(orthogonality_error(matrix.detach())) for matrix in network.matrices())
    assert errors[-1] == pytest.approx(expected, rel=1e-4)
    assert bsnn("rerun", path).returncode == 0

    for arguments, text in (
        (("rows=model.widths",), "[12,9,6]"),
        (("rows=model.taper", "columns=model.width"), "0.5"),
        (("rows=seed", "columns=model.widths"), "[12,9,6]"),
        ((), "[12,9,6]"),
    ):
        table = bsnn("table", *arguments)
        assert table.returncode == 0, table.stderr
        assert text in table.stdout
    for where, count in (
        ("model.width=[12,9,6]", 2),
        ("model.widths=[12,9,6],[9,9,9]", 2),
        ("model.width=12", 4),
        ("model.taper=0.5", 1),
    ):
        assert len(json.loads(bsnn("runs", where, "format=json").stdout)) == count, where
    drawn = bsnn("figures", "only=curves", "formats=png", "by=model.widths")
    assert drawn.returncode == 0, drawn.stderr


def test_propagate_measures_what_hooks_measure(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    """Measure the same network as a module, by the hooks of `measure`, which know nothing of layers and widths."""
    answer = bsnn("propagate", "model.width=[30,20,40]", "model.depth=2", "propagate.inputs=16", "progress=false")
    assert answer.returncode == 0, answer.stderr
    assert "2 layers of 20 to 40" in answer.stdout
    [path] = (tmp_path / "outputs/propagation").glob("*/*/layers.csv")
    ours = pd.read_csv(path)
    network = Network(model(30, 20, 40), ActivationConfig(), 7, 3, 0)
    x = torch.randn(16, 30, generator=stream(0, "propagated inputs"))
    theirs = measure_module(nn.Sequential(*network.hidden), x)
    hidden = theirs[theirs["weights"] > 0]
    assert ours["forward_norm"][:2].to_numpy() == pytest.approx(hidden["forward_norm"].to_numpy(), rel=1e-5)
    slopes = theirs[theirs["saturated"].notna()]
    assert ours["backward_norm"][:2].to_numpy() == pytest.approx(slopes["backward_norm"].to_numpy(), rel=1e-4)
    summary = json.loads(path.with_name("summary.json").read_text())
    assert (summary["width"], summary["widths"], summary["label"]) == (30, [30, 20, 40], "SELU-GPN, 20 to 40 units")


def test_propagate_measures_data_trained_networks_and_every_option(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    assert bsnn("train", *NARROWING, "model.norm=batch").returncode == 0
    options = ["propagate.inputs=30", "progress=false"]
    run = run_directory(tmp_path)
    for arguments in (
        ("model.width=40", "model.taper=0.5", "model.depth=4", "model.weights=free", "model.init=lsuv"),
        (
            "model.width=40",
            "model.taper=2",
            "model.depth=2",
            "model.weights=spectral_norm",
            "propagate.source=dataset",
            "dataset=digits",
        ),
        (f"run={run}",),
        (f"run={run}", "propagate.source=dataset"),
    ):
        answer = bsnn("propagate", *arguments, *options)
        assert answer.returncode == 0, answer.stderr
    [path] = [
        entry
        for entry in (tmp_path / "outputs/propagation").glob("*/*/summary.json")
        if (content := json.loads(entry.read_text()))["trained"] and content["source"] == "dataset"
    ]
    layers, network = pd.read_csv(path.with_name("layers.csv")), load_run(run)
    from bsnn_cli import load_dataset

    data = load_dataset(run)
    entering = dataset_passage(
        data, load_config(path), 30, 0, checkpoint.load(run / "weights.pt"), CPU, torch.float32
    ).x
    assert layers["forward_norm"][0] == pytest.approx(float(entering.square().mean()), rel=1e-5)
    signal = entering
    for hidden in network.train().hidden:  # type: ignore[union-attr]
        signal = hidden(signal)
    assert layers["forward_norm"][2] == pytest.approx(float(signal.detach().square().mean()), rel=1e-4)
    drawn = bsnn("figures", "only=networks", "formats=png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "outputs/figures/networks.png").exists()


def load_config(path: Path) -> ModelConfig:
    return ModelConfig(**json.loads(path.read_text())["config"]["model"])


BAD = {
    ("model.width=[500,400,300]",): ["model.widths=[500,400,300]", "3 of the 201 widths", "model.depth=2"],
    ("model.width=[50]", "model.depth=1"): ["1 of the 2 widths", "give them all"],
    ("model.width=[50,0]", "model.depth=1"): ["model.widths=[50,0]", "whole numbers from 1"],
    ("model.width=[50,4.5]", "model.depth=1"): ["model.widths=[50,4.5]", "whole numbers from 1"],
    ("model.width=[]", "model.depth=1"): ["model.widths=[]", "whole numbers from 1"],
    ("model.width=7", "model.widths=[5,4]", "model.depth=1"): ["model.width=7", "model.widths=[5,4]", "leave it out"],
    ("model.width=[5,4]", "model.widths=[5,4]", "model.depth=1"): ["model.widths", "given 2 times"],
    ("model.width=[5,4]", "model.taper=0.5", "model.depth=1"): ["model.taper=0.5", "leave one of them out"],
    ("model.taper=0",): ["model.taper=0.0", "above 0 and below 100"],
    ("model.taper=-1",): ["model.taper=-1.0", "above 0 and below 100"],
    ("model.taper=nan",): ["model.taper=nan", "above 0 and below 100"],
    ("model.taper=0.0009", "model.width=100"): ["model.taper=0.0009", "no unit", "at least 0.01"],
    ("model.taper=0.5", "model.depth=0"): ["model.depth=0"],
    ("model.taper=0.5", "model.weights=orthogonal"): ["model.weights=orthogonal", "square", "model.taper=0.5"],
    ("model.width=[5,4]", "model.depth=1", "model.residual=true"): ["model.residual=true", "model.widths=[5,4]"],
    ("model.width=[50,45]", "model.depth=1", "model.norm=group"): ["model.widths=[50,45]", "multiple of 10", "45"],
    ("network=cnn", "model.taper=0.5"): ["model.taper=0.5", "network=cnn"],
    ("network=cnn", "model.width=[5,4]", "model.depth=1"): ["model.widths=[5,4]", "network=cnn"],
}


@pytest.mark.parametrize(
    ("arguments", "verb"), [*((arguments, "train") for arguments in BAD), (next(iter(BAD)), "propagate")]
)
def test_what_makes_no_network_is_refused_in_a_line(
    arguments: tuple[str, ...], verb: str, bsnn: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = bsnn(verb, *arguments, "dataset=digits")
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in BAD[arguments]), line
    assert list(tmp_path.iterdir()) == []


def test_bench_knows_one_width(bsnn: Callable[..., Answer]) -> None:
    assert bsnn("bench", "quick=true", "model.taper=0.5", "model.depth=2", "model.width=20").returncode == 2
