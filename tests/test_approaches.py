"""Every approach the paper names: composed, propagated, trained by one path or the other, and compared in a table."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bsnn_cli import cli
from bsnn_cli.gpn import activations
from bsnn_cli.measuring.propagation_store import load_all
from bsnn_cli.networks.autograd_trainer import AutogradTrainer
from bsnn_cli.networks.building import fleet_covers, reference_trainer
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.results.approach_table import APPROACHES, write_approaches
from bsnn_cli.settings.approaches import preset
from bsnn_cli.settings.config import ModelConfig
from tests.conftest import given_once

SHAPE = ["model.depth=3", "model.width=20", "progress=false"]
MODELS = {name: ModelConfig(depth=3, width=20, **preset(name)) for name in APPROACHES}
FAST = {"bsnn", "dynamical_isometry", "self_normalizing", "batch_norm", "glorot"}


def test_the_table_knows_every_preset() -> None:
    shipped = {entry.name.removesuffix(".yaml") for entry in (files("bsnn_cli.configs") / "approach").iterdir()}
    assert shipped == set(APPROACHES)


def test_which_path_trains_what() -> None:
    assert {name for name, model in MODELS.items() if fleet_covers(model)} == FAST


@pytest.mark.parametrize("name", APPROACHES)
def test_every_approach_trains_through_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    brief = ["dataset=digits", "optim.epochs=1", "optim.batch_size=300", "optim.lr=0.05"]
    assert cli.dispatch(["train", f"approach={name}", *SHAPE, *brief]) == 0
    said = capsys.readouterr()
    [run] = tmp_path.glob("outputs/runs/*/*/*")
    trainer = json.loads((run / "provenance.json").read_text())["trainer"]
    assert trainer == ("Fleet (CEngine)" if name in FAST else "AutogradTrainer (Network)")
    assert ("autograd" in said.err) == (name not in FAST)
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "done"
    assert result["steps"] == 5
    assert f"approach: {name}\n" in (run / "config.yaml").read_text()
    assert cli.dispatch(["propagate", f"run={run}", "propagate.inputs=10", "progress=false"]) == 0
    assert "3 layers of 20: " in capsys.readouterr().out


def test_a_sweep_over_all_approaches_fills_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bsnn_cli.results.approach_table.DEPTH", 3)
    monkeypatch.setattr("bsnn_cli.results.approach_table.WIDTH", 20)
    some = ["approach=bsnn,lsuv", "propagate.inputs=10", *SHAPE]
    assert cli.dispatch(["propagate", "-m", *some]) == 0
    assert cli.dispatch(["table", "kind=approaches"]) == 0
    assert "not measured yet: dynamical_isometry, " in capsys.readouterr().out
    assert cli.dispatch(["propagate", "-m", "approach=glob(*)", "propagate.inputs=10", *SHAPE]) == 0
    capsys.readouterr()
    assert cli.dispatch(["table", "kind=approaches"]) == 0
    printed = capsys.readouterr().out
    assert "not measured" not in printed
    with Path("outputs/tables/approaches.csv").open() as file:
        rows = {row["approach"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(APPROACHES)
    norm = float(rows["bsnn"]["forward_norm_last"])
    [line] = [line for line in printed.splitlines() if line.startswith("| bsnn ")]
    assert f"V + E² ≈ 1 [{norm:.3g}]" in line
    assert "Tanh-GPN" in line
    assert float(rows["lsuv"]["preactivation_variance"]) == pytest.approx(1, rel=1e-5)


def test_other_sizes_and_trained_networks_stay_out_of_the_table(tmp_path: Path) -> None:
    text = write_approaches([], tmp_path)
    assert all(f"| {name} " in text for name in APPROACHES)
    assert load_all(tmp_path) == []


BAD = {
    ("approach=spectral_norm", "model.weights=unit_rows"): ["model.weights=unit_rows", "approach=spectral_norm"],
    ("approach=residual", "model.residual=false"): ["model.residual=False", "model.residual=True"],
    ("approach=glorrot",): ["approach=glorrot", "bsnn", "weight_norm", "did you mean glorot?"],
    ("model.init=lsuv",): ["model.init=lsuv", "model.weights=unit_rows", "undoes"],
    ("model.init=lsuv", "model.weights=spectral_norm"): ["model.weights=spectral_norm", "undoes"],
    ("model.init=lsuv", "model.weights=free", "model.norm=layer"): ["model.norm=layer", "undoes"],
    ("model.norm=group", "model.width=21"): ["model.width=21", "multiple of 10"],
    ("model.weights=orthogonal", "model.init=he_normal"): ["model.weights=orthogonal", "he_normal"],
}


@pytest.mark.parametrize("verb", ["train", "propagate"])
@pytest.mark.parametrize("arguments", BAD)
def test_what_makes_no_sense_is_refused_with_the_reason(
    arguments: tuple[str, ...],
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch([verb, *given_once([*SHAPE, *arguments])]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(part in line for part in BAD[arguments]), line
    assert list(tmp_path.iterdir()) == []


MEMBER = Member(activation=activations.get("selu"), a=0.9, b=0.1, seed=5, lr=0.05)


def trainer(
    model: ModelConfig, member: Member = MEMBER, states: list[dict[str, Tensor]] | None = None
) -> AutogradTrainer:
    return reference_trainer(model, [member], inputs=6, classes=3, states=states, dtype=torch.float64)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(1, 12, 6, generator=generator, dtype=torch.float64), torch.arange(12).view(1, 12) % 3)
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", APPROACHES)
def test_a_resumed_reference_training_ends_the_same_to_the_byte(name: str) -> None:
    whole, first = trainer(MODELS[name]), trainer(MODELS[name])
    for batch in batches(4):
        whole.step(*batch)
    for batch in batches(4)[:2]:
        first.step(*batch)
    second = trainer(MODELS[name], states=[first.member_state(0)])
    for batch in batches(4)[2:]:
        second.step(*batch)
    ours, theirs = whole.member_state(0), second.member_state(0)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert int(second.steps[0]) == 4
    x = batches(1)[0][0][0]
    assert torch.equal(whole.logits(x), second.logits(x))


@pytest.mark.parametrize("name", sorted(FAST))
def test_both_trainers_agree_where_both_can(name: str) -> None:
    reference = trainer(MODELS[name])
    fleet = Fleet(MODELS[name], [MEMBER], inputs=6, classes=3, dtype=torch.float64)
    for batch in batches(5):
        torch.testing.assert_close(reference.step(*batch), fleet.step(*batch), rtol=1e-10, atol=0)
    ours, theirs = reference.member_state(0), fleet.member_state(0)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-8, atol=1e-12)
    x = batches(1)[0][0][0]
    torch.testing.assert_close(reference.logits(x), fleet.logits(x), rtol=1e-9, atol=0)
    assert reference.parameter_count() == fleet.parameter_count()
    torch.testing.assert_close(reference.orthogonality_error(), fleet.orthogonality_error(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["residual", "spectral_norm"])
def test_a_step_that_is_not_finite_changes_nothing(name: str) -> None:
    lost = trainer(MODELS[name])
    before = {key: value.clone() for key, value in lost.member_state(0).items()}
    inputs, labels = batches(1)[0]
    inputs[0, 0, 0] = torch.inf
    assert not lost.step(inputs, labels).isfinite().any()
    after = lost.member_state(0)
    assert not bool(lost.alive[0])
    assert all(torch.equal(before[key], after[key]) for key in before if key != "alive")


def test_lsuv_gives_the_first_batch_unit_variance_and_keeps_its_scales() -> None:
    started = trainer(MODELS["lsuv"])
    x, labels = batches(1)[0]
    haar = started.member_state(0)["hidden.weight"].clone()
    still = trainer(MODELS["lsuv"], Member(activation=MEMBER.activation, a=0.9, b=0.1, seed=5, lr=1e-12))
    still.step(x, labels)
    network, signal = still.networks[0], still.networks[0].input(x[0])
    for layer in network.hidden:
        assert float(layer.linear(signal).detach().var(correction=0)) == pytest.approx(1, rel=1e-6)
        signal = layer(signal)
    scales = still.member_state(0)["hidden.weight"] / haar
    assert (scales.amax((1, 2)) - scales.amin((1, 2))).max() < 1e-6
    assert (scales.mean((1, 2)) - 1).abs().max() > 0.01
