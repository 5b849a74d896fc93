"""The plan of a reproduction: what the steps of a profile come to, what of them is finished, what cannot be done."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from bsnn_cli import cli
from bsnn_cli.gpn import custom
from bsnn_cli.measuring import propagation_store
from bsnn_cli.reproducing import agenda, reproduction
from bsnn_cli.runs.directory import RunResult
from bsnn_cli.settings.config import ActivationConfig, PropagateConfig, TheoryConfig
from tests.drawing import measured
from tests.reproducing import DEAD_MIRROR, TINY, profile
from tests.storage import store


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("smoke", [12, 12, 12, 24]),
        ("short", [12, 12, 12, 12, 12, 24]),
        ("paper", [24] * 4),
        ("depth_aware", [12, 2, 4]),
    ],
)
def test_every_profile_composes_and_only_looks(
    name: str, runs: list[int], here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    monkeypatch.setattr(custom, "tailored", lambda base, *_: base)  # half a second each
    seeds = 2 if name == "paper" else 1
    assert cli.dispatch(["reproduce", f"profile={name}", "dry_run=true", f"seeds={seeds}", "batch_norm=true"]) == 0
    output = capfd.readouterr().out
    assert f"profile {name}: " in output
    assert "in all about" in output
    assert [int(n) for n in re.findall(r"(\d+) runs: ", output)] == runs
    assert ("MNIST is not here; it is fetched" in output) == (name != "smoke")
    assert ("CIFAR-10 is not here; it is fetched" in output) == (name in ("short", "paper"))
    assert list(here.iterdir()) == []


def test_what_is_finished_needs_no_data_and_what_is_not_waits_for_it(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSNN_DATA_MIRROR", DEAD_MIRROR)
    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    monkeypatch.setattr(reproduction, "make_all", lambda *_: "")
    store(here / "outputs", "tanh_gpn", [50.0])
    assert cli.dispatch(["reproduce", profile("train activation=tanh_gpn")]) == 0
    assert "absent" not in capfd.readouterr().out
    assert cli.dispatch(["reproduce", profile("train activation=tanh_gpn", ">train activation=tanh")]) == 0
    said = capfd.readouterr()
    assert "step 1: 1 run: 1 finished" in said.out
    assert "step 2: 1 run: 1 without data" in said.out
    assert "MNIST is absent, and its cells stay dashed" in said.out
    assert "failed" not in said.err


def test_a_profile_that_contradicts_itself_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    assert cli.dispatch(["reproduce", profile("theory trials=20", "theory trials=30")]) == 2
    assert "outputs/theory holds one study, and a step above asks for another" in capfd.readouterr().err
    assert cli.dispatch(["reproduce", profile("train -m dataset=digits,mnist")]) == 2
    assert "trains on several datasets; give each a step of its own" in capfd.readouterr().err
    assert cli.dispatch(["reproduce", "export=./outputs"]) == 2
    assert "export=./outputs: is the output folder itself" in capfd.readouterr().err


def test_datasets_leave_out_the_trainings_on_others(
    here: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    steps = profile(f"train {TINY}", "train dataset=cifar10", "theory")
    assert cli.dispatch(["reproduce", steps, "datasets=[digits]", "dry_run=true"]) == 0
    output = capfd.readouterr().out
    assert "step 1: 1 run: 1 to run" in output
    assert "step 2" not in output
    assert "step 3: " in output
    assert cli.dispatch(["reproduce", steps, "datasets=[cifar]"]) == 2
    assert "datasets=['cifar']: must be a list of mnist, cifar10" in capfd.readouterr().err


def test_a_damaged_summary_is_named_and_left_out(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    measured(here / "outputs", "tanh")
    [path] = here.glob("outputs/propagation/tanh/*/summary.json")
    for text in ("{", "{}"):
        path.write_text(text)
        assert propagation_store.load_all("outputs") == []
        assert "outputs/propagation/tanh" in capfd.readouterr().err


def test_theory_is_finished_only_with_the_same_settings(here: Path) -> None:  # noqa: ARG001
    arguments = ["theory", "activation=tanh", "trials=20", "largest_width=64", "depth=3", "width=8", "networks=2"]
    assert cli.dispatch(arguments) == 0
    tanh = ActivationConfig(name="tanh", gpn=False)
    asked = TheoryConfig(activation=tanh, trials=20, largest_width=64, depth=3, width=8, networks=2)
    assert agenda.studied(asked)
    assert agenda.studied(dataclasses.replace(asked, output_root=str(Path("outputs").resolve())))
    assert not agenda.studied(dataclasses.replace(asked, trials=21))
    assert not agenda.studied(dataclasses.replace(asked, activation=None))
    Path("outputs/theory/config.yaml").unlink()
    assert not agenda.studied(asked)


def test_what_is_no_longer_there_is_not_measured(here: Path) -> None:
    run = here / "outputs" / "runs" / "digits" / "selu_gpn" / "0123456789-s0"
    run.mkdir(parents=True)
    config = PropagateConfig(run=str(run))
    assert not agenda.finished(config)
    result = {field.name: None for field in dataclasses.fields(RunResult)} | {"status": "done"}
    (run / "result.json").write_text(json.dumps(result))
    assert agenda.finished(config)  # the weights were not kept
    (run / "weights.pt").touch()
    assert not agenda.finished(config)
    measured(here / "outputs", "selu_gpn", run=str(run))
    assert agenda.finished(dataclasses.replace(config, output_root=str(here / "outputs")))
    of_images = PropagateConfig(run=str(run), output_root=str(here / "outputs"))
    of_images.propagate.source = "dataset"
    assert not agenda.finished(of_images)
