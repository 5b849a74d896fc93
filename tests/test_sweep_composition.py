"""A sweep of one run is that run: whatever acts on composing a config reaches the jobs of a sweep too."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsnn_cli import cli
from bsnn_cli.runs import plan
from bsnn_cli.settings.identity import run_directory
from tests.conftest import SMALL, Answer, run_bsnn, small

FILES = {
    "conf/mine.yaml": "defaults: [train, _self_]\nmodel: {depth: 7, width: 24}\noptim: {epochs: 1}\n"
    "activation: {root: lower}\n",
    "conf/homely.yaml": "defaults: [train, _self_]\noutput_root: ~/results\nmodel: {depth: 3}\n",
    "conf/activation/bent.yaml": "name: tanh\ngpn: true\nroot: upper\n",
    "conf/experiment/tiny.yaml": "# @package _global_\nmodel: {depth: 2}\noutput_root: tiny\n",
    "far/experiment/far.yaml": "# @package _global_\ndefaults: [{override /activation: gelu_gpn}]\nmodel: {depth: 6}\n",
    "far/lab/big.yaml": "# @package _global_\nmodel: {width: 33}\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs of a user's own."""
    root = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "home").mkdir()
    return root


def planned(arguments: list[str], place: Path) -> list[str]:
    """The directories of the runs that a command line asks for."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(place)
        patch.setenv("HOME", str(place / "home"))
        patch.setattr(plan, "preview", lambda configs: "\n".join(str(run_directory(config)) for config in configs))
        assert cli.dispatch(["train", *arguments, "dry_run=true"]) == 0, arguments
    assert not (place / "~").exists()
    return out.getvalue().splitlines()


OPTIONS = [
    ["--config-dir", "conf", "--config-name", "mine"],
    ["--config-dir", "conf", "--config-name", "homely"],
    ["--config-dir", "conf", "activation=bent"],
    ["--config-dir", "conf", "experiment=tiny"],
    ["hydra.searchpath=[file://{place}/far]", "experiment=far"],
    ["hydra.searchpath=[file://{place}/far]", "+lab=big"],
    ["--config-dir", "conf", "--config-name", "mine", "activation=bent", "hydra.searchpath=[file://{place}/far]"],
    ["hydra.job.chdir=true", "hydra.run.dir={place}/elsewhere"],
    ["approach=batch_norm"],
]
SINGLE = st.sampled_from(
    [
        "seed=3",
        "model.width=20",
        "optim.lr=1e-3",
        "output_root=2024_01",
        "activation.root=lower",
        "dataset.scaling=thin_shell",
    ]
)


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_a_sweep_of_one_run_is_that_run(option: list[str], place: Path) -> None:
    arguments = [*(word.format(place=place) for word in option), "dataset=digits"]
    [directory] = planned(arguments, place)
    assert planned(["-m", *arguments], place) == [directory]


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(OPTIONS[:6]), st.lists(SINGLE, max_size=3, unique=True))
def test_so_it_is_with_any_values_on_top(place: Path, option: list[str], values: list[str]) -> None:
    arguments = [*(word.format(place=place) for word in option), "dataset=digits", *values]
    assert planned(["-m", *arguments], place) == planned(arguments, place)


def test_what_a_user_s_config_says_is_what_is_trained(place: Path) -> None:
    """Not only planned alike: the primary config, its home directory and the folder of the sweep."""
    mine = ["--config-dir", "conf", "--config-name", "homely", *small()[:1], "optim.epochs=1", "model.width=8"]
    result = run_bsnn("train", "-m", *mine, "hydra.sweep.dir='~/sweep'", cwd=place, HOME=str(place / "home"))
    assert result.returncode == 0, result.stderr
    assert [path.name[-3:] for path in (place / "home/results/runs/digits/selu_gpn").iterdir()] == ["-s0"]
    assert (place / "home/sweep/orders.json").is_file()
    assert not (place / "~").exists()


@pytest.mark.parametrize(
    ("typed", "made"), [("2024_01", "2024_01"), ("007", "007"), ("1e3", "1e3"), ("true", "true"), ("./~", "~")]
)
def test_a_folder_is_called_what_was_typed(typed: str, made: str, tmp_path: Path) -> None:
    for flags in ([], ["-m"]):
        [directory] = planned([*flags, *SMALL, f"output_root={typed}"], tmp_path)
        assert directory.startswith(f"{made}/runs/digits/")


def test_several_folders_of_a_sweep_are_called_what_was_typed(tmp_path: Path) -> None:
    directories = planned(["-m", *SMALL, "output_root=2024_01,'1,5',x"], tmp_path)
    assert [directory.split("/")[0] for directory in directories] == ["2024_01", "1,5", "x"]


def test_a_home_is_expanded_once_and_an_unknown_one_is_refused(bsnn: Callable[..., Answer], tmp_path: Path) -> None:
    for typed in ("~/x", "~/~/x"):
        [directory] = planned([*SMALL, f"output_root={typed}"], tmp_path)
        assert directory.startswith(f"{tmp_path}/home/{typed[2:]}/runs/digits/")
    for verb, key in (("train", "output_root"), ("report", "export"), ("data", "dataset.root")):
        refused = bsnn(verb, f"{key}=~nobody0/x")
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {key}=~nobody0/x: there is no such home directory")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train dataset=digits seed=0 seed=1 seed=2", "seed: is given 3 times; for a sweep, give -m and seed=0,1,2"),
        ("train -m dataset=digits seed=0,1 seed=2", "seed: is given 2 times"),
        ("train activation=tanh activation=relu", "activation: is given 2 times"),
        ("train +seed=0 seed=1", "seed: is given 2 times"),
        ("runs seed=0 seed=1", "seed: is given 2 times"),
        ("propagate model.depth=3 model.depth=4", "model.depth: is given 2 times"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(words: str, told: str, bsnn: Callable[..., Answer]) -> None:
    refused = bsnn(*words.split())
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {told}")
