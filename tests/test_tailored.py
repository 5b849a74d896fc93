"""Depth-aware GPN: what is solved for is what networks do, in every place that an activation goes."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli import cli
from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn import custom, meanfield
from bsnn_cli.gpn.activations import ACTIVATIONS, get, normalise
from bsnn_cli.gpn.module import GPN
from bsnn_cli.gpn.tailored import WIDE, Tailoring, has_corner, solve, tailored
from bsnn_cli.networks.building import member
from bsnn_cli.networks.network import Network
from bsnn_cli.settings.choices import PAPER_ACTIVATIONS, TAILORED_BY, UNTAILORED
from bsnn_cli.settings.config import ActivationConfig, ModelConfig, TrainConfig
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS
from bsnn_cli.settings.validation import resolve
from bsnn_cli.theory import fates
from bsnn_cli.theory.prediction import DEVIATIONS
from bsnn_cli.theory.simulation import simulate
from tests.conftest import SMALL, Answer, run_bsnn
from tests.handmade import frame, run, seeds
from tests.test_fleet import CLASSES, INPUTS, assert_same, batches, make_fleet
from tests.test_tables import blocks, write

NAMES = [name for name in ACTIVATIONS if name not in UNTAILORED]
DEPTHS = (50, 200)


def iterated(f: meanfield.Transfer, depth: int) -> float:
    """1 − c layer by layer from right angles, without the interpolation that the solver uses."""
    separation = 1.0
    for _ in range(depth):
        separation = meanfield.separation_map(f, separation)
    return separation


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_has_the_separation_and_both_gpn_conditions(name: str, depth: int) -> None:
    phi = tailored(get(name), 0.3, depth)
    solution = normalise(phi)
    assert solution.normalised_second_moment == pytest.approx(1, abs=1e-9)
    assert solution.normalised_derivative_second_moment == pytest.approx(1, abs=1e-9)
    assert iterated(meanfield.transfer(phi), depth) == pytest.approx(0.3, abs=1e-8)


@pytest.mark.parametrize("depth", DEPTHS)
def test_networks_of_500_units_keep_what_is_predicted_inside_the_band(depth: int) -> None:
    width, networks = 500, 8
    transfers = [meanfield.transfer(tailored(get(name), 0.3, depth)) for name in NAMES]
    for name, f in zip(NAMES, transfers, strict=True):
        low, high = fates.fate_of_angle(f, depth, width).band(networks, DEVIATIONS)
        measured = simulate(f, width, depth, networks, seed=0).separations.log().mean(1).exp().numpy()
        assert ((low <= measured) & (measured <= high)).all(), name
        assert high[-1] < 3 * low[-1], name  # a band that says something: GPN alone ends far below it
        if depth == 200:
            assert meanfield.separation(name, depth) < low[-1], name


@pytest.mark.parametrize("name", ["tanh", "gelu", "lrelu", "selu"])
def test_both_roots_keep_the_same_angles(name: str) -> None:
    phi = tailored(get(name), 0.3, 50)
    upper, lower = (iterated(meanfield.transfer(phi, root=root), 50) for root in ("upper", "lower"))
    assert upper == pytest.approx(lower, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_autograds(name: str) -> None:
    phi = tailored(get(name), 0.3, 50)
    h = torch.linspace(-6, 6, 1001, dtype=torch.float64).requires_grad_()
    value = phi.phi(h)
    g = torch.randn(h.shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad(value, h, g)
    before = g.clone()
    torch.testing.assert_close(phi.pull_back(g, h.detach()), expected, rtol=1e-12, atol=1e-13)
    if phi.pull_back_by_value is not None:
        torch.testing.assert_close(phi.pull_back_by_value(g, value.detach()), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(g, before)


def test_what_is_tailored_by_its_nature_is_told_from_what_is_not() -> None:
    corners = {name for name in ACTIVATIONS if has_corner(get(name).phi)}
    assert corners == {name for name, entry in NAMED_ACTIVATIONS.items() if entry.corner}
    assert corners & set(PAPER_ACTIVATIONS) == {"relu", "lrelu", "selu"}
    for name, parameter in (("lrelu", "slope"), ("selu", "share")):
        assert next(iter(tailored(get(name), 0.3, 200).parameters)) == parameter
    # The figures of the prototype: a gain of 0.3, a slope of 0.8.
    assert meanfield.separation(functools.partial(Tailoring(gain=0.3), torch.tanh), 200) == pytest.approx(
        0.37, abs=5e-3
    )
    leaky = functools.partial(nn.functional.leaky_relu, negative_slope=0.8)
    assert meanfield.separation(leaky, 200) == pytest.approx(0.32, abs=5e-3)


@pytest.mark.filterwarnings("ignore:activation (gelu|silu)")
def test_by_a_gain_gelu_and_silu_are_one_function_and_so_are_tanh_and_sigmoid() -> None:
    """h·σ(kh) and tanh have one shape up to scales, which the gain and the normalisation take out."""
    h = torch.linspace(-4, 4, 101, dtype=torch.float64)
    for one, other in (("gelu", "silu"), ("tanh", "sigmoid")):
        values = (GPN(name, depth=200, parameter="gain")(h) for name in (one, other))
        torch.testing.assert_close(*values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_parameter_of_a_name_is_the_one_that_its_function_gets(name: str) -> None:
    assert set(TAILORED_BY) == set(NAMES)
    phi = get(name).phi
    tailoring, own = solve(lambda h: phi(h), 0.3, 200), solve(get(name), 0.3, 200)
    assert list(tailoring.changes()) == list(own.changes()) == [TAILORED_BY[name]]
    assert (tailoring.gain, tailoring.share) == pytest.approx((own.gain, own.share), rel=1e-10)
    assert meanfield.basin(meanfield.transfer(tailored(get(name), 0.3, 200))) >= WIDE


def test_a_function_is_what_it_does_and_not_what_it_is_called() -> None:
    def elu(h: Tensor) -> Tensor:
        return F.silu(h)

    assert solve(elu, 0.3, 200).share > 0


@pytest.mark.parametrize("name", ["silu", "softplus", "gelu"])
def test_a_share_keeps_the_basin_that_a_gain_narrows(name: str) -> None:
    before = meanfield.basin(meanfield.transfer(name))
    assert meanfield.basin(meanfield.transfer(tailored(get(name), 0.3, 50))) == pytest.approx(before, rel=1e-6)
    with pytest.warns(UserWarning, match=rf"activation {name}: tailored by its gain, .* from no more than 2\."):
        narrow = meanfield.transfer(tailored(get(name), 0.31, 50, "gain"))
    assert meanfield.basin(narrow) < 0.9 * before


def test_long_inputs_run_away_under_a_gain_and_come_back_under_a_share() -> None:
    with pytest.warns(UserWarning, match="what is longer runs away"):
        narrow = meanfield.transfer(tailored(get("silu"), 0.29, 200, "gain"))
    wide = meanfield.transfer(tailored(get("silu"), 0.3, 200))
    longest = [simulate(f, 100, 200, 16, seed=0, starts=(2.0,)).lengths.max() for f in (narrow, wide)]
    assert longest[0] > 1e6
    assert longest[1] < 10


@pytest.mark.parametrize("parameter", ["gain", "share"])
def test_the_parameter_can_be_chosen(parameter: str) -> None:
    assert list(GPN("tanh", depth=20, separation=0.6, parameter=parameter).tailoring.changes()) == [parameter]
    assert list(tailored(get("elu"), 0.6, 20, parameter).tailoring.changes()) == [parameter]
    with pytest.raises(ActivationError, match="parameter=slope: must be one of auto, gain, share"):
        GPN("tanh", depth=20, parameter="slope")


def test_what_a_share_does_not_reach_a_gain_may() -> None:
    with pytest.raises(ActivationError, match=r"share of the identity reaches from 0\.06.* parameter=gain reaches"):
        solve(get("gelu"), 0.03, 50, "share")
    assert solve(get("gelu"), 0.03, 50).gain > 1


@pytest.mark.parametrize("separation", [0.1, 0.3, 0.9])
def test_one_layer_is_the_map_itself(separation: float) -> None:
    f = meanfield.transfer(functools.partial(solve(torch.tanh, separation, 1), torch.tanh))
    assert meanfield.separation_map(f, 1.0) == pytest.approx(separation, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_towards_the_identity_every_angle_is_kept(name: str) -> None:
    tailoring = Tailoring(share=1 - 2**-10) if has_corner(get(name).phi) else Tailoring(gain=2**-10)
    assert meanfield.separation(functools.partial(tailoring, get(name).phi), 200) == pytest.approx(1, abs=5e-3)
    assert meanfield.separation("identity", 200) == pytest.approx(1, abs=1e-12)


def test_what_is_out_of_reach_is_told_with_what_is_not() -> None:
    with pytest.raises(ActivationError, match=r"0.001 after 200 layers is out of reach.*from 0.01484 to 1"):
        solve(get("selu"), 0.001, 200)
    with pytest.raises(ActivationError, match=r"gain reaches from 1.281e-05 to 1"):
        solve(get("tanh"), 1e-9, 200)
    with pytest.raises(ActivationError, match="above 0 and below 1, after at least one layer"):
        solve(get("tanh"), 1.0, 200)
    with pytest.raises(ActivationError, match="say how many with depth="):
        GPN("tanh", parameter="gain")
    with pytest.raises(ActivationError, match="say how many with depth="):
        GPN("tanh", separation=0.2)
    with pytest.raises(ActivationError, match="activation sign: its derivative is 0 everywhere"):
        GPN(torch.sign, depth=2)
    for name, reason in UNTAILORED.items():
        with pytest.raises(ActivationError, match=reason.split(";")[0]):
            GPN(name, depth=200)


@pytest.mark.filterwarnings("ignore:activation")  # some have a narrow basin either way
@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (lambda h: torch.sin(30 * h), "gain"),  # too steep as it is
        (lambda h: torch.exp(2 * h), "gain"),
        (lambda h: torch.sin(20 * h), "gain"),
        (lambda h: h**3, "share"),  # flat at 0
        (nn.Softshrink(), "share"),
        (nn.Tanhshrink(), "share"),
        (lambda h: torch.relu(h - 0.12), "share"),
    ],
)
def test_a_parameter_that_exists_is_found(function: Callable[[Tensor], Tensor], parameter: str) -> None:
    tailoring = solve(function, 0.3, 20)
    assert list(tailoring.changes()) == [parameter]
    f = meanfield.transfer(functools.partial(tailoring, function))
    assert iterated(f, 20) == pytest.approx(0.3, abs=1e-8)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda h: torch.exp(h * h / 5), "reaches nothing: φ is too steep throughout"),
        (lambda h: torch.exp(h * h / 4.5), "reaches nothing: φ is too steep throughout"),
        (lambda h: torch.tanh(h) + 1e8, "is about 1e.08, beside which float64 has too few digits"),
        (lambda h: h * h - 1e7, "is about -1e.07, beside which"),
    ],
)
def test_where_there_is_none_the_reason_is_given(function: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(ActivationError, match=words):
        solve(function, 0.3, 20)


@pytest.mark.parametrize(("depth", "separation"), [(2.5, 0.3), (0, 0.3), ("9", 0.3), (True, 0.3), (9, "a"), (9, 1j)])
def test_layers_are_a_whole_number_and_a_separation_is_a_number(depth: object, separation: object) -> None:
    with pytest.raises(ActivationError, match="after at least one layer, and layers are a whole number"):
        GPN("tanh", depth=depth, separation=separation)  # type: ignore[arg-type]


def test_a_named_activation_is_solved_once() -> None:
    assert solve(get("tanh"), 0.35, 40) is solve(get("tanh"), 0.35, 40)


def test_the_module_takes_functions_modules_and_dtypes() -> None:
    h = torch.linspace(-3, 3, 50, dtype=torch.float64)
    named = GPN("tanh", depth=50, separation=0.4)
    assert torch.equal(GPN(torch.tanh, depth=50, separation=0.4)(h), named(h))
    assert torch.allclose(GPN(nn.Tanh(), depth=50, separation=0.4)(h), named(h), rtol=0, atol=1e-12)
    phi = tailored(get("tanh"), 0.4, 50)
    torch.testing.assert_close(named(h), normalise(phi).a * phi.phi(h) + normalise(phi).b, rtol=0, atol=1e-12)
    leaky = GPN(nn.PReLU(init=0.01), depth=50)
    torch.testing.assert_close(leaky(h.float()), GPN("lrelu", depth=50)(h.float()), rtol=0, atol=1e-6)
    assert [*leaky.parameters()]
    for again in (pickle.loads(pickle.dumps(named)), copy.deepcopy(named)):
        assert torch.equal(again(h), named(h))
    assert "gain=0.4" in repr(named)
    assert named(h.half()).dtype == torch.float16
    assert "gain" not in repr(GPN("tanh"))
    with torch.device("meta"):
        assert GPN("tanh", depth=50, separation=0.4).tailoring == named.tailoring


def test_everything_compiles_into_one_graph() -> None:
    names = ("tanh", "lrelu", "selu")
    activations, modules = [tailored(get(name), 0.3, 50) for name in names], [GPN(name, depth=50) for name in names]

    def everything(h: Tensor) -> list[Tensor]:
        return [part for phi in activations for part in (phi.phi(h), phi.derivative(h))] + [gpn(h) for gpn in modules]

    h = torch.linspace(-3, 3, 12).view(3, 4)
    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(h), everything(h), rtol=0, atol=0)


def test_activations_pickle_by_what_made_them() -> None:
    phi = tailored(get("elu"), 0.3, 50)
    assert pickle.loads(pickle.dumps(phi)) is phi


@pytest.mark.parametrize("name", ["tanh", "lrelu", "selu", "gelu"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_training_steps_equal_autograd(name: str, norm: str) -> None:
    activation = ActivationConfig(name=name, separation=0.8)
    config = resolve(TrainConfig(activation=activation, model=ModelConfig(depth=4, width=5, norm=norm)))
    own = member(config)
    network = Network(config.model, config.activation, INPUTS, CLASSES, 0).double()
    fleet = make_fleet(config.model, [own])
    network.load(fleet.member_state(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=own.lr, momentum=0.5)
    for inputs, labels in batches(1):
        optimiser.zero_grad()
        F.cross_entropy(network(inputs[0]), labels[0]).backward()
        optimiser.step()
        fleet.step(inputs, labels)
    assert_same(network, fleet, 0, 1e-12)
    assert custom.activation(config.activation).name == f"{name}_d"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "activation=relu_gpn_d"], "ReLU has no parameter"),
        (["train", "activation=relu_gpn_d"], "activation=lrelu_gpn_d"),
        (["gpn", "activation=identity_gpn_d"], "keeps every angle"),
        (["train", "activation=tanh_gpn_d", "activation.separation=1"], "above 0 and below 1"),
        (["train", "activation=tanh", "activation.separation=0.3"], "needs activation.gpn=true"),
        (["gpn", "activation=selu_gpn_d", "activation.separation=0.001"], "reaches from 0.01484"),
    ],
)
def test_mistakes_are_answered_in_one_line(bsnn: Callable[..., Answer], arguments: list[str], words: str) -> None:
    answer = bsnn(*arguments)
    assert answer.returncode != 0
    assert answer.stderr.count("\n") == 1
    assert words in answer.stderr


def test_the_constants_are_printed_with_the_parameter(bsnn: Callable[..., Answer]) -> None:
    answer = bsnn("gpn", "activation=lrelu_gpn_d", "activation.tailored_depth=50", "format=csv")
    assert answer.returncode == 0, answer.stderr
    header, values = (line.split(",") for line in answer.stdout.strip().splitlines())
    row = dict(zip(header, values, strict=True))
    assert float(row["slope"]) == pytest.approx(tailored(get("lrelu"), 0.3, 50).value, rel=1e-9)
    assert (row["layers"], float(row["1 − c"])) == ("50", 0.3)


def test_a_trained_run_can_be_measured_loaded_and_tabulated(bsnn: Callable[..., Answer], tmp_path: Path) -> None:
    small = ["dataset=digits", "model.depth=6", "model.width=20", "optim.epochs=1", "optim.lr=0.01"]
    done = run_bsnn("train", "activation=tanh_gpn_d", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bsnn("train", "activation=tanh_gpn", *small).returncode == 0
    [directory] = (tmp_path / "outputs" / "runs" / "digits" / "tanh_gpn_d").iterdir()
    assert yaml.safe_load((directory / "config.yaml").read_text())["activation"]["tailored_depth"] == 6
    measured = bsnn("propagate", f"run={directory}", "propagate.inputs=20")
    assert measured.returncode == 0, measured.stderr
    assert "trained tanh_gpn_d" in measured.stdout
    table = bsnn("table")
    assert table.returncode == 0, table.stderr
    assert re.search(r"^Activation +GPN +GPN-d 0\.3$", table.stdout, re.M)

    from bsnn_cli import load_run

    network = load_run(directory)
    assert "tanh_d" in repr(network)


def test_a_third_column_never_in_the_papers_block(tmp_path: Path) -> None:
    d = {"activation__separation": 0.3}
    write(
        tmp_path,
        run("tanh", test=20.0),
        seeds("tanh_gpn", "mnist", [77.0, 78.0]),
        seeds("tanh_gpn", "mnist", [94.0, 95.0], **d),
        run("tanh_gpn", test=80.0, activation__separation=0.1),
        run("lrelu_gpn", test=11.0, optim__epochs=1),
        run("lrelu_gpn", test=93.0, optim__epochs=1, activation__separation=0.3, activation__tailored_depth=50),
    )
    paper, beside, other = blocks((tmp_path / "test_accuracy.md").read_text()).values()
    assert paper[0] == ["Activation", "MNIST Non-GPN", "MNIST GPN", "CIFAR-10 Non-GPN", "CIFAR-10 GPN"]
    assert not any("94" in cell or "80" in cell for row in paper for cell in row)
    assert beside[0] == ["Activation", "MNIST Non-GPN", "MNIST GPN", "MNIST GPN-d 0.1", "MNIST GPN-d 0.3"]
    assert [cell.split(" ")[0] for cell in beside[1][1:]] == ["20.00", "77.50", "80.00", "**94.50"]
    assert other[0][-1] == "MNIST GPN-d 0.3 over 50 layers"
    assert other[1][-2:] == ["11.00", "**93.00**"]
    comparison = pd.read_csv(tmp_path / "comparison.csv")
    assert comparison["ours"].dropna().tolist() == [21.0, 78.5, 20.0, 77.5]


def test_a_pivot_over_separations_keeps_them_apart(tmp_path: Path) -> None:
    runs = [run("tanh_gpn", test=10.0 * k, activation__separation=k / 10) for k in (1, 3)]
    write(tmp_path, run("tanh_gpn", test=5.0), *runs, rows="activation", columns="activation.separation")
    [table] = blocks((tmp_path / "pivot_activation_by_activation.separation_test.md").read_text()).values()
    assert table[0][1:] == ["0.1", "0.3", "none"]
    assert table[1:] == [["tanh_gpn", "–", "–", "5.00"], ["tanh_gpn_d", "10.00", "30.00", "–"]]
    assert len(frame(*runs)) == 2


def test_another_parameter_is_another_number(tmp_path: Path) -> None:
    d = {"activation__separation": 0.3}
    runs = [run("gelu_gpn", test=10.0 * k, activation__parameter=by, **d) for k, by in ((3, "auto"), (2, None))]
    write(tmp_path, *runs, run("tanh_gpn", test=40.0, activation__parameter=None, **d))
    table = blocks((tmp_path / "test_accuracy.md").read_text())["Paper's protocol, with depth-aware GPN"]
    assert table[0][-2:] == ["MNIST GPN-d 0.3", "MNIST GPN-d 0.3 by gain"]
    cells = {row[0]: row[-2:] for row in table[1:]}
    assert cells == {"Tanh": ["40.00", "–"], "GELU": ["**30.00**", "20.00"]}


def test_labels_of_a_pivot_tell_a_separation_that_is_not_the_default(tmp_path: Path) -> None:
    runs = [run("tanh_gpn", test=10.0 * k, activation__separation=k / 10) for k in (1, 3)]
    write(tmp_path, run("tanh_gpn", test=5.0), *runs, rows="activation", columns="model.depth")
    [table] = blocks((tmp_path / "pivot_activation_by_model.depth_test.md").read_text()).values()
    assert table[1:] == [["tanh_gpn", "5.00"], ["tanh_gpn_d", "**30.00**"], ["tanh_gpn_d 0.1", "10.00"]]


def test_a_separation_out_of_reach_stops_a_sweep_before_it_begins(bsnn: Callable[..., Answer], tmp_path: Path) -> None:
    values = ["activation=selu_gpn_d", "activation.separation=0.01,0.5", "dataset=digits", "model.depth=50"]
    for answer in (bsnn("train", "-m", *values, "dry_run=true"), bsnn("train", "-m", *values)):
        assert answer.returncode == 2
        assert "1 − c = 0.01 after 50 layers is out of reach" in answer.stderr
    assert not list(tmp_path.glob("outputs/runs"))


def test_theory_of_a_tailored_activation_can_be_drawn(bsnn: Callable[..., Answer], tmp_path: Path) -> None:
    small = ["trials=20", "largest_width=64", "depth=4", "width=20", "networks=2"]
    assert bsnn("theory", "activation=elu_gpn_d", "activation.separation=0.8", *small).returncode == 0
    for figure in ("theorems", "angles", "lengths"):
        answer = bsnn("figures", f"only={figure}", "formats=[svg]")
        assert answer.returncode == 0, answer.stderr
        assert "ELU, depth-aware" in (tmp_path / "outputs" / "figures" / f"{figure}.svg").read_text()
    report = bsnn("report")
    assert report.returncode == 0, report.stderr


def test_signals_of_a_tailored_network_stay_apart(bsnn: Callable[..., Answer], tmp_path: Path) -> None:
    for name in ("tanh_gpn", "tanh_gpn_d"):
        answer = bsnn("propagate", f"activation={name}", "model.depth=50", "model.width=200", "propagate.inputs=50")
        assert answer.returncode == 0, answer.stderr
    separations = {
        path.parent.parent.name: yaml.safe_load(path.read_text())["one_minus_cosine_last"]
        for path in (tmp_path / "outputs" / "propagation").glob("*/*/summary.json")
    }
    low, high = fates.fate_of_angle(meanfield.transfer(tailored(get("tanh"), 0.3, 50)), 50, 200).band(1, DEVIATIONS)
    assert low[-1] < separations["tanh_gpn_d"] < high[-1]
    assert separations["tanh_gpn"] < low[-1]


@pytest.mark.filterwarnings("ignore:activation exp")
def test_the_range_of_a_function_ends_where_it_is_too_steep_for_its_moments() -> None:
    """exp(32h) has none that float64 holds; half of what follows is a gain below 1 all the same."""
    assert 0 < solve(torch.exp, 0.5, 20).gain < 1
    with pytest.raises(ActivationError, match=r"activation exp: .* out of reach; its gain reaches from 0\.0098"):
        solve(torch.exp, 1e-6, 200)


def test_a_fleet_of_several_separations_and_functions_equals_lone_runs(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("import torch\n\ndef bent(h):\n    return torch.tanh(h) + 0.1 * h * h\n")
    choices = ["activation=tanh_gpn_d,custom_gpn_d", "activation.separation=0.9,0.95", "activation.path=my.py:bent"]
    swept = run_bsnn("train", "-m", "hydra/launcher=fleet", *SMALL, *choices, cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    for name, separation in (("tanh", 0.95), ("custom", 0.9)):
        config = [f"activation={name}_gpn_d", f"activation.separation={separation}", f"output_root={tmp_path}/alone"]
        assert cli.dispatch(["train", *SMALL, *config, f"activation.path={tmp_path}/my.py:bent"]) == 0
    together, alone = (
        {
            (path.parts[-3], path.parts[-2]): json.loads(path.read_text())
            for path in (tmp_path / root).glob("runs/*/*/*/result.json")
        }
        for root in ("outputs", "alone")
    )
    assert {each["networks"] for each in together.values()} == {4}
    assert len({each["train_loss"] for each in together.values()}) == len(together) == 4
    assert len(alone) == 2
    for key, each in alone.items():
        assert together[key]["train_loss"] == pytest.approx(each["train_loss"], rel=1e-5)


def test_elementwise_maths_of_a_blend() -> None:
    def bent(h: Tensor) -> Tensor:
        return torch.relu(h) + 0.1 * torch.tanh(h)

    tailoring = solve(bent, 0.5, 20)
    assert tailoring.gain == 1
    assert 0 < tailoring.share < 1
    h = torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = (1 - tailoring.share) * bent(h) + tailoring.share * h
    torch.testing.assert_close(tailoring(bent, h), expected, rtol=0, atol=1e-15)
    assert math.isclose(meanfield.separation(functools.partial(tailoring, bent), 20), 0.5, abs_tol=1e-8)
