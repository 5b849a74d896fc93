"""An activation from a user's file: what is accepted, what identifies it, and its way through every command."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bsnn_cli import cli, load_run
from bsnn_cli.datasets.data import load
from bsnn_cli.errors import ActivationError, ConfigError, Interrupted
from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import Activation, get, normalise
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.report.archive import archive, without_places
from bsnn_cli.results import statistics
from bsnn_cli.runs import runner
from bsnn_cli.runs.directory import read_config
from bsnn_cli.runs.rerun import repeat
from bsnn_cli.settings.config import (
    ActivationConfig,
    DatasetConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from bsnn_cli.settings.identity import identity, run_directory
from bsnn_cli.settings.validation import problems, resolve
from tests import handmade
from tests.conftest import SMALL, Answer, run_bsnn
from tests.test_train_command import assert_same_end

FILE = """
import torch

OFFSET = 0.3

def mine(h):
    return torch.tanh(h)

def bent(h):
    return torch.where(h > OFFSET, h, 0.2 * h + 0.8 * OFFSET)

def smooth(h):
    return torch.sin(h) + h

def smooth_derivative(h):
    return torch.cos(h) + 1
"""


def activation(text: str, function: str = "phi") -> Activation:
    return custom.compiled("import torch\n" + text, function, "my.py")


def in_file(folder: Path, function: str, text: str = FILE, **values: object) -> ActivationConfig:
    folder.mkdir(exist_ok=True)
    (folder / "my.py").write_text(text)
    return ActivationConfig(name="custom", path=f"{folder}/my.py:{function}", **values)  # type: ignore[arg-type]


# what the function is


@pytest.mark.parametrize("function", ["mine", "bent", "smooth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_come_from_autograd_or_from_the_file(function: str, dtype: torch.dtype) -> None:
    found = activation(FILE, function)
    h = torch.linspace(-3, 3, 24, dtype=dtype).view(2, 3, 4)
    g = torch.linspace(1, 2, 24, dtype=dtype).view(2, 3, 4)
    before = g.clone(), h.clone()
    with torch.no_grad():
        pulled = found.pull_back(g[1:], h[1:])
        pulled.mul_(1)  # a tensor of its own
    leaf = h.clone().requires_grad_()
    found.phi(leaf).backward(g)  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    torch.testing.assert_close(pulled, leaf.grad[1:])
    assert torch.equal(g, before[0])
    assert torch.equal(h, before[1])


def test_a_derivative_in_the_file_is_used() -> None:
    text = "calls = []\ndef phi(h): return h * h\ndef phi_derivative(h): calls.append(h.shape); return 2 * h"
    found = activation(text)
    module = found.phi.__globals__  # type: ignore[attr-defined]
    module["calls"].clear()
    assert torch.equal(found.derivative(torch.tensor([1.5])), torch.tensor([3.0]))
    assert module["calls"] == [(1,)]


def test_constants_are_those_of_the_function_with_kinks_found() -> None:
    mine, named = normalise(activation(FILE, "mine")), normalise("tanh")
    assert (mine.a, mine.b) == pytest.approx((named.a, named.b), abs=1e-12)
    bent = normalise(activation(FILE, "bent"), "upper")
    assert (bent.normalised_second_moment, bent.normalised_derivative_second_moment) == pytest.approx((1, 1), abs=1e-12)


def test_it_is_copied_and_pickled_by_its_source() -> None:
    found = activation(FILE, "bent")
    assert copy.deepcopy(found) == found
    stored = pickle.dumps(found)
    custom.compiled.cache_clear()  # as in another process
    again = pickle.loads(stored)
    h = torch.linspace(-1, 1, 9)
    assert torch.equal(again.phi(h), found.phi(h))


BAD = {
    "no such function": ("def other(h): return h", "defines no function phi; there is other"),
    "not callable": ("phi = 3", "defines no function phi"),
    "syntax": ("def phi(h) return h", "cannot be executed (SyntaxError"),
    "raising file": ("1 / 0", "cannot be executed (ZeroDivisionError"),
    "ending file": ("raise SystemExit(3)", "cannot be executed (SystemExit"),
    "raising function": ("def phi(h): raise ValueError('no\\nway')", "ValueError: no"),
    "shape": ("def phi(h): return h.sum()", "it must keep shape and dtype"),
    "type": ("def phi(h): return 1.0", "returns float"),
    "dtype": ("def phi(h): return torch.tanh(h).float()", "returns torch.float32"),
    "double": ("def phi(h): return torch.tanh(h).double()", "returns torch.float64 of shape (4, 16) for torch.float32"),
    "numpy": ("def phi(h): return h.detach().numpy()", "returns ndarray"),
    "beside each other": ("def phi(h): return torch.softmax(h, -1)", "must be elementwise"),
    "random": ("def phi(h): return h * torch.rand_like(h)", "must be elementwise and not random"),
    "in place": ("def phi(h): return h.mul_(2)", "changes its input"),
    "jump": ("def phi(h): return h + torch.sign(h - 0.5)", "jumps at h = 0.5"),
    "nan": ("def phi(h): return torch.sqrt(h)", "nan at h ="),
    "constant": ("def phi(h): return 0 * h + 1", "its derivative is 0 everywhere"),
    "step": ("def phi(h): return torch.sign(h)", "its derivative is 0 everywhere"),
    "detached": ("def phi(h): return h.detach() ** 2", "derivative is 0 everywhere"),
    "wrong derivative": ("def phi(h): return h * h\ndef phi_derivative(h): return h", "derivative is wrong"),
    "moments": ("def phi(h): return torch.exp(h * h)", "no Gaussian-Poincaré normalised form"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_activation_is_refused_in_one_line(case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(ActivationError) as caught:
        activation(text)
    message = str(caught.value)
    assert message.startswith("activation.path=my.py:phi: ")
    assert words in message
    assert "\n" not in message


# what identifies it


def test_identity_is_of_content_and_function_and_not_of_the_path(tmp_path: Path) -> None:
    def of(config: ActivationConfig) -> str:
        return identity(TrainConfig(activation=custom.identified(config)))

    one = of(in_file(tmp_path / "a", "mine"))
    assert one == of(in_file(tmp_path / "b", "mine"))
    assert len({one, of(in_file(tmp_path / "a", "bent")), of(in_file(tmp_path / "a", "mine", FILE + "\n"))}) == 3


def test_a_path_means_nothing_for_a_named_activation() -> None:
    beside = ActivationConfig(name="tanh", path="nowhere.py:phi")
    assert custom.identified(beside) == beside
    assert custom.activation(beside) is get("tanh")
    assert identity(TrainConfig(activation=beside)) == identity(TrainConfig(activation=ActivationConfig(name="tanh")))


def test_the_function_gives_directories_and_tables_their_name(tmp_path: Path) -> None:
    config = resolve(TrainConfig(activation=custom.identified(in_file(tmp_path, "bent"))))
    assert run_directory(config).parts[-2] == "bent_gpn"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "activation.path: activation=custom needs FILE.py:FUNCTION"),
        ("my.py", "must be FILE.py:FUNCTION"),
        ("my.txt:phi", "must be FILE.py:FUNCTION"),
        ("my.py:0", "must be FILE.py:FUNCTION"),
        ("my.py:tanh", "would pass for another activation"),
        ("my.py:phi_gpn", "would pass for another activation"),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(path: str | None, words: str) -> None:
    [line] = problems(TrainConfig(activation=ActivationConfig(name="custom", path=path)))
    assert words in line


@pytest.mark.parametrize("form", ["custom_gpn", "custom_gpn_d"])
def test_theory_follows_a_function_of_one_s_own(form: str, tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    """The printed page and the figures name the function."""
    (tmp_path / "my.py").write_text("import torch\ndef bent(h): return torch.sin(h) + h\n")
    sizes = ["trials=20", "networks=2", "width=20", "depth=20", "largest_width=64"]
    told = bsnn("theory", f"activation={form}", "activation.path=my.py:bent", *sizes)
    assert told.returncode == 0, told.stderr
    assert re.search(r"^ *bent(_d)? +upper .* (yes|no)$", told.stdout, re.M)
    for name in ("theorems", "lengths", "angles"):
        assert bsnn("figures", f"only={name}", "formats=[png]").returncode == 0
        assert (tmp_path / f"outputs/figures/{name}.png").exists()


def test_a_file_that_changes_after_planning_is_refused(tmp_path: Path) -> None:
    planned = custom.identified(in_file(tmp_path, "mine"))
    assert custom.identified(planned) == planned
    (tmp_path / "my.py").write_text(FILE.replace("tanh", "sin"))
    with pytest.raises(ConfigError, match="is not what it was"):
        custom.identified(planned)
    (tmp_path / "my.py").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        custom.activation(planned)


def test_tables_tell_functions_of_one_name_apart() -> None:
    def run(content: str, test: float) -> dict[str, object]:
        values = {"activation__name": "custom", "activation__path": "my.py:phi", "activation__fingerprint": content}
        return handmade.run("tanh_gpn", test=test, **values)

    cells = statistics.over_seeds(statistics.finished(handmade.frame(run("aaaaaaaaa", 50.0), run("bbbbbbbbb", 60.0))))
    assert set(cells["activation"]) == {"phi@aaaaaa", "phi@bbbbbb"}
    cells = statistics.over_seeds(
        statistics.finished(handmade.frame(run("aaaaaaaaa", 50.0), handmade.run("tanh_gpn", test=1)))
    )
    assert set(cells["activation"]) == {"phi", "tanh"}


# its way through the commands


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of a named and two custom activations; the file is gone afterwards."""
    root = tmp_path_factory.mktemp("swept")
    (root / "my.py").write_text(FILE)
    choices = ["activation=tanh_gpn,custom_gpn", "activation.path=my.py:mine,my.py:bent"]
    result = run_bsnn("train", "-m", "hydra/launcher=fleet", *SMALL, *choices, cwd=root)
    assert result.returncode == 0, result.stderr
    (root / "my.py").rename(root / "moved.py")
    return root


def result_of(root: Path, label: str) -> dict[str, object]:
    [path] = root.glob(f"outputs/runs/digits/{label}/*-s0/result.json")
    return dict(json.loads(path.read_text()))


def test_a_fleet_mixes_named_and_custom_activations(swept: Path) -> None:
    named, mine, bent = (result_of(swept, label) for label in ("tanh_gpn", "mine_gpn", "bent_gpn"))
    assert (mine["activation"], mine["gpn"], mine["root"]) == ("mine", True, "upper")
    assert mine["test_accuracy"] == named["test_accuracy"]
    assert mine["train_loss"] == pytest.approx(named["train_loss"], rel=1e-6)
    assert bent["train_loss"] != pytest.approx(named["train_loss"], rel=1e-3)


def test_the_same_file_elsewhere_is_the_same_run(swept: Path) -> None:
    again = ["activation=custom_gpn", "activation.path=moved.py:bent"]
    assert "finished already" in run_bsnn("train", *SMALL, *again, cwd=swept).stderr
    result = run_bsnn("train", "-m", *SMALL, *again, "seed=0,1", cwd=swept)  # children, without a fleet
    assert result.returncode == 0, result.stderr
    assert "2 runs: 1 finished, 1 to run" in result.stdout


def test_a_finished_run_needs_its_file_no_more(swept: Path) -> None:
    [directory] = swept.glob("outputs/runs/digits/bent_gpn/*-s0")
    assert (directory / "activation.py").read_text() == FILE
    network = load_run(directory)
    data = load(read_config(directory / "config.yaml").dataset)
    with torch.no_grad():
        predicted: Tensor = network(data.standardise(data.test.images)).argmax(1)
    accuracy = 100 * (predicted == data.test.labels).double().mean()
    assert float(accuracy) == pytest.approx(result_of(swept, "bent_gpn")["test_accuracy"])
    assert "identical, metrics and weights" in repeat(directory)


def test_an_archived_run_brings_its_file(swept: Path, tmp_path: Path) -> None:
    [directory] = swept.glob("outputs/runs/digits/bent_gpn/*-s0")
    archive(swept / "outputs", [str(directory)], tmp_path)
    copied = tmp_path / directory.relative_to(swept / "outputs")
    assert "identical, metrics (no weights were kept)" in repeat(copied)
    assert OmegaConf.load(copied / "config.yaml").activation.path == "my.py:bent"
    elsewhere = OmegaConf.create({"activation": {"path": "/home/me/my.py:bent"}})
    assert without_places(elsewhere) == {"activation": {"path": "my.py:bent"}}


def test_propagate_gpn_table_and_figures_know_it(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert cli.dispatch([*arguments]) == 0
        return capsys.readouterr().out

    outputs = f"output_root={swept}/outputs"
    custom_gpn = ["activation=custom_gpn", f"activation.path={swept}/moved.py:bent"]
    [directory] = swept.glob("outputs/runs/digits/bent_gpn/*-s0")
    measured = said("propagate", *custom_gpn, "model.depth=5", "model.width=20", outputs)
    assert measured.startswith("bent_gpn, 5 layers of 20: signal keeps its length")
    assert said("propagate", f"run={directory}", outputs).startswith("trained bent_gpn, 3 layers of 12")
    [row] = json.loads(said("gpn", *custom_gpn, "format=json"))
    assert (row["activation"], row["E[f²]"], row["published a"]) == ("bent", pytest.approx(1), None)
    assert {"bent", "mine"} <= {line.partition(" ")[0] for line in said("table", outputs).splitlines()}
    cells = pd.read_csv(swept / "outputs/tables/test_accuracy.csv").set_index("activation")
    assert cells.loc["mine", "mean"] == result_of(swept, "mine_gpn")["test_accuracy"]
    assert "curves" in said("figures", "only=curves", "formats=[png]", outputs)
    assert (
        cli.dispatch(["figures", "only=propagation", "depth=5", "width=20", outputs]) == 2
    )  # these are not the paper's
    assert "signals of 4 of 4 networks not stored yet" in capsys.readouterr().err


def test_interrupted_it_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        activation=in_file(tmp_path, "bent"),
        dataset=DatasetConfig(kind="digits"),
        model=ModelConfig(depth=3, width=12),
        optim=OptimConfig(epochs=2),
        output_root=str(tmp_path / "stopped"),
    )
    config = runner.prepare(resolve(config))
    step = Fleet.step

    def stop_at_ten(self: Fleet, inputs: Tensor, labels: Tensor) -> Tensor:
        if int(self.steps[0]) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, inputs, labels)

    monkeypatch.setattr(Fleet, "step", stop_at_ten)
    with pytest.raises(Interrupted):
        runner.run([config])
    monkeypatch.undo()
    custom.compiled.cache_clear()  # as in another process
    straight = dataclasses.replace(config, output_root=str(tmp_path / "straight"))
    runner.run([config])
    runner.run([straight])
    assert json.loads((run_directory(config) / "provenance.json").read_text())["earlier_sessions"]
    assert_same_end(run_directory(config), run_directory(straight))


@pytest.mark.parametrize("verb", ["train", "propagate", "gpn"])
def test_a_bad_file_ends_a_command_with_one_line_and_2(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text("def phi(h): return h + h.sign()")
    assert cli.dispatch([verb, "activation=custom", "activation.path=my.py:phi"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: activation.path=my.py:phi: ")
    assert [path.name for path in tmp_path.iterdir()] == ["my.py"]


SHAPES = """
import torch

def bent(h):
    return torch.where(h > 0, h, 0.2 * h)

def curved(h):
    return torch.tanh(h)

def narrow(h):
    return torch.nn.functional.softplus(h, threshold=40)
"""


@pytest.mark.filterwarnings("ignore:activation narrow")
@pytest.mark.parametrize(
    ("function", "chosen", "stored"),
    [
        ("bent", "auto", "auto"),
        ("bent", "share", "auto"),
        ("curved", "auto", "auto"),
        ("curved", "gain", "auto"),
        ("curved", "share", "share"),
        ("narrow", "auto", "share"),
        ("narrow", "gain", "auto"),
        ("narrow", None, None),
    ],
)
def test_the_parameter_is_stored_where_it_is_not_what_was_moved_before(
    tmp_path: Path, function: str, chosen: str | None, stored: str | None
) -> None:
    config = in_file(tmp_path, function, SHAPES, separation=0.3, tailored_depth=100, parameter=chosen)
    found = custom.identified(config)
    assert found.parameter == stored
    before = dataclasses.replace(found, parameter=None)
    same = identity(TrainConfig(activation=found)) == identity(TrainConfig(activation=before))
    assert same == (stored != "share")
