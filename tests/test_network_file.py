"""A network from a user's file through `bsnn propagate` and what comes after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from bsnn_cli import measure, verdict
from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets import data
from bsnn_cli.figures import figures
from bsnn_cli.figures.figure import Figure
from bsnn_cli.measuring.records import OUTPUT
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, FiguresConfig, NetworkConfig, PropagateConfig
from bsnn_cli.settings.identity import identity
from tests.conftest import Answer, given_once

FILE = """
import torch
from torch import nn

def build(depth=3, width=12):
    layers = [nn.Linear(10, width)]
    for _ in range(depth):
        layers += [nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers), torch.randn(20, 10)

def cnn(channels=4):
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 10))

def linear():
    return nn.Linear(5, 3), torch.randn(4, 5)

def activation():
    return nn.ReLU(), torch.randn(4, 5)

def wide(width):
    return nn.Linear(5, width), torch.randn(4, 5)

def number():
    return 3

def fails():
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(4, 3)), torch.randn(4, 5)

def raises():
    raise ValueError("no\\nway")

def cut():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.last(self.first(x).detach())

    return Cut(), torch.randn(4, 5)

def beside():
    from beside_the_file import network

    return network, torch.randn(4, 5)

def ends():
    raise SystemExit(3)

def changing():
    depth = int(torch.randint(2, 5, ()))
    return nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)]), torch.randn(4, 5)
"""


@pytest.fixture
def propagate(tmp_path: Path, bsnn: Callable[..., Answer]) -> Callable[..., Answer]:
    """`bsnn propagate` beside the file; every further argument is a word."""
    (tmp_path / "my.py").write_text(FILE)
    return lambda *words: bsnn("propagate", *words)


def stored(root: Path, name: str) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"outputs/propagation/{name}/*/summary.json"))


def test_the_files_hold_what_measure_returns(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    told = propagate("network=my.py:build")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("build, 7 layer calls: signal vanishes: ‖x‖²/n = ")
    [directory] = stored(tmp_path, "build")
    names = {"config.yaml", "histogram.csv", "layers.csv", "network.py", "provenance.json", "summary.json"}
    assert {path.name for path in directory.iterdir()} == names
    assert (directory / "network.py").read_text() == FILE
    namespace: dict[str, Callable[..., tuple[torch.nn.Module, torch.Tensor]]] = {}
    exec(FILE, namespace)
    torch.manual_seed(stream(0, "network").initial_seed())
    module, x = namespace["build"]()
    frame, table = measure(module, x), pd.read_csv(directory / "layers.csv", dtype={"module": str})
    for name in frame:
        np.testing.assert_allclose(table[name], frame[name], rtol=1e-15) if frame[name].dtype == float else None
    assert list(table["module"]) == list(frame["module"])
    assert list(table.columns[:6]) == ["layer", "repeats", "module", "kind", "call", "weights"]
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["network"], summary["depth"], summary["calls"], summary["inputs"]) == ("build", 4, 7, 20)
    assert summary["forward_norm_last"] == pytest.approx(frame["forward_norm"].iloc[-1], rel=1e-15)
    gradients = frame["gradient_norm"].dropna()
    assert summary["gradient_norm_ratio"] == pytest.approx(gradients.max() / gradients.min(), rel=1e-15)
    assert verdict(table) == verdict(frame)
    assert "; ".join(verdict(frame)) in told.stdout
    histogram = pd.read_csv(directory / "histogram.csv")
    assert sorted(histogram["layer"].unique()) == [2, 4, 6]
    assert set(histogram.groupby("layer")["count"].sum()) == {20 * 12}


def test_content_function_and_arguments_identify_it(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    first = propagate("network=my.py:build", "network.kwargs.depth=2")
    (tmp_path / "moved.py").write_text(FILE)
    again = propagate("network=moved.py:build", "network.kwargs.depth=2")
    assert "finished already" in again.stderr
    assert again.stdout == first.stdout
    assert "finished already" not in propagate("network=my.py:build", "network.kwargs.depth=2", "force=true").stderr
    assert len(stored(tmp_path, "build")) == 1
    propagate("network=my.py:build")
    assert "finished already" in propagate("network=my.py:build", "network.kwargs.depth=3").stderr
    (tmp_path / "my.py").write_text(FILE + "\n")
    others = [["network=my.py:build", "network.kwargs.depth=2"], ["network=moved.py:build", "network.kwargs.depth=4"]]
    others += [["network=moved.py:linear"], [*others[1], "seed=1"], [*others[1], "propagate.repeats=2"]]
    for words in others:
        assert "finished" not in propagate(*words).stderr
    assert len(stored(tmp_path, "build")) == 6


def test_a_sweep_goes_through_arguments(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    told = propagate("-m", "network=my.py:build", "network.kwargs.depth=1,4", "network.kwargs.width=8")
    assert told.returncode == 0, told.stderr
    summaries = [json.loads((path / "summary.json").read_text()) for path in stored(tmp_path, "build")]
    assert {summary["label"]: summary["calls"] for summary in summaries} == {
        "build(depth=1, width=8)": 3,
        "build(depth=4, width=8)": 9,
    }
    told = propagate("-m", "network=my.py:build,my.py:linear", "seed=5")
    assert [line.split(",")[0] for line in told.stdout.splitlines() if "calls" in line] == ["build"]
    assert len(stored(tmp_path, "linear")) == 1
    assert "finished" in propagate("network=my.py:build", "network.kwargs={depth: 4, width: 8}").stderr


def test_repeats_have_weights_and_inputs_of_their_own(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    for words in (["propagate.repeats=2"], ["seed=1"], ["seed=0"]):
        assert propagate("network=my.py:cnn", "network.shape=[1,8,8]", "propagate.inputs=7", *words).returncode == 0
    tables = [pd.read_csv(path / "layers.csv") for path in stored(tmp_path, "cnn")]
    both = next(table for table in tables if (table["repeats"] == 2).all())
    [first, second] = [table for table in tables if (table["repeats"] == 1).all()]
    assert (first["forward_norm"] != second["forward_norm"]).all()
    np.testing.assert_allclose(both["forward_norm"], (first["forward_norm"] + second["forward_norm"]) / 2, rtol=1e-12)
    assert both["forward_norm_std"].notna().all()


def test_a_dataset_sends_images_and_the_cross_entropy(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    words = ["propagate.source=dataset", "dataset=digits", "propagate.inputs=9"]
    assert propagate("network=my.py:cnn", *words).returncode == 0
    [directory] = stored(tmp_path, "cnn")
    table = pd.read_csv(directory / "layers.csv")
    digits = data.load(DatasetConfig(kind="digits"))
    chosen = torch.randperm(len(digits.train.labels), generator=stream(0, "propagated inputs"))[:9]
    images, labels = digits.standardise(digits.train.images[chosen]).view(9, 1, 8, 8), digits.train.labels[chosen]
    namespace: dict[str, Callable[[], torch.nn.Sequential]] = {}
    exec(FILE, namespace)
    torch.manual_seed(stream(0, "network").initial_seed())
    module = namespace["cnn"]()
    F.cross_entropy(module(images), labels).backward()
    assert table["forward_norm"][0] == pytest.approx(float((images**2).mean()), rel=1e-6)
    for row, layer in ((0, module[0]), (3, module[3])):
        assert table["gradient_norm"][row] == pytest.approx(float(layer.weight.grad.norm()), rel=1e-5)
    assert json.loads((directory / "summary.json").read_text())["dataset"] == "digits"


def test_the_file_imports_what_lies_beside_it(
    tmp_path: Path, propagate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_the_file.py").write_text("import torch\nnetwork = torch.nn.Linear(5, 2)")
    assert propagate("network=my.py:beside").stdout.startswith("beside, 1 layer call: ")


def test_what_has_no_weights_or_no_graph_is_measured(tmp_path: Path, propagate: Callable[..., Answer]) -> None:
    told = propagate("network=my.py:activation")
    assert "activation, 1 layer call: signal shrinks" in told.stdout
    assert "no gradients of weights" in told.stdout
    told = propagate("network=my.py:cut", "propagate.repeats=2")
    assert told.returncode == 0
    assert told.stderr.count("warning: no gradient comes back to first, last: ") == 1
    assert "gradients vanish: 1 of 2 layers have exactly 0" in told.stdout
    assert not (stored(tmp_path, "cut")[0] / "histogram.csv").exists()


BAD = {
    ("network=other.py:build",): "network=other.py:build: cannot read other.py: No such file",
    ("network=my.py:absent",): "my.py defines no function absent; there is build, cnn, linear",
    ("network=my.py",): "network.path=my.py: must be FILE.py:FUNCTION",
    ("network=broken.py:build",): "network=broken.py:build: broken.py cannot be executed (SyntaxError",
    ("network=my.py:wide",): "wide(width): missing a required argument: 'width'; arguments are given as",
    ("network.kwargs.dept=3",): "build(depth=3, width=12): got an unexpected keyword argument 'dept'",
    ("network.kwargs.width=a",): "build fails (TypeError",
    ("network=my.py:raises",): "network=my.py:raises: raises fails (ValueError: no way)",
    ("network=my.py:ends",): "network=my.py:ends: ends fails (SystemExit: 3)",
    ("network=my.py:number",): "number returns int; it must return an nn.Module",
    ("network=my.py:fails",): "measure: the forward pass fails: Sequential, in 1 (RuntimeError: ",
    ("network=my.py:cnn",): "network=my.py:cnn: returns no inputs",
    ("network=my.py:cnn", "network.shape=[3,8,8]"): "measure: the forward pass fails: Sequential, in 0 (RuntimeError",
    ("network=my.py:cnn", "network.shape=[]"): "network.shape=[]: must be a list of whole numbers from 1",
    ("network.shape=[10]",): "network.shape: network=my.py:build returns its inputs",
    ("network=my.py:changing", "propagate.repeats=9"): "calls other layers at seed",
    ("propagate.histogram=[1]",): "propagate.histogram=1: must be the row of an activation: 2, 4, 6",
    ("activation=tanh",): "activation: network=my.py:build brings its own network",
    ("model.depth=3",): "model: network=my.py:build brings its own network",
    ("run=outputs",): "run: network=my.py:build brings its own network",
    ("network.pth=my.py:build",): "network.pth: no such key; did you mean network.path=my.py:build?",
    ("network=null", "network.kwargs.depth=3"): "network.kwargs: means nothing without network=FILE.py:FUNCTION",
    ("network=null", "network.shape=[3]"): "network.shape: means nothing without network=FILE.py:FUNCTION",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_line_and_2(
    words: tuple[str, ...], tmp_path: Path, propagate: Callable[..., Answer]
) -> None:
    (tmp_path / "broken.py").write_text("def build(: pass")
    told = propagate(*given_once(["network=my.py:build", *words]))
    [line] = told.stderr.splitlines()
    assert told.returncode == 2
    assert line.startswith("error: ")
    assert BAD[words] in line
    assert not (tmp_path / "outputs").exists()


def test_other_verbs_have_no_network(bsnn: Callable[..., Answer]) -> None:
    for word in ("network=my.py:build", "network.kwargs.depth=3"):
        told = bsnn("theory", word)
        assert (told.returncode, told.stderr.count("no such key")) == (2, 1)


def test_identities_without_a_network_are_as_before() -> None:
    """Recorded before there was that key."""
    assert identity(PropagateConfig()) == "c9dca30088"
    assert identity(PropagateConfig(activation=ActivationConfig(name="tanh", gpn=False))) == "973849fc1a"
    unused = PropagateConfig(network=NetworkConfig(kwargs={"depth": 3}))
    assert identity(unused) == identity(PropagateConfig())


def test_figures_tables_and_reports_live_with_it(
    tmp_path: Path, propagate: Callable[..., Answer], bsnn: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    propagate("-m", "network=my.py:build", "network.kwargs.depth=10,9", "propagate.repeats=2")
    told = bsnn("figures", "only=networks", "formats=[png]")
    assert told.returncode == 0, told.stderr
    picture = tmp_path / "outputs/figures/networks.png"
    ink = (matplotlib.image.imread(picture)[..., :3] < 0.6).any(axis=2)
    assert 0.003 < ink.mean() < 0.5
    tables = sorted((pd.read_csv(path / "layers.csv") for path in stored(tmp_path, "build")), key=len)
    [drawn] = figures.build("networks", Results(tmp_path / "outputs"), FiguresConfig(only="networks"))
    assert isinstance(drawn, Figure)
    for panel, quantity in zip(drawn.panels, ("forward_norm", "backward_norm", "gradient_norm"), strict=True):
        assert [series.name for series in panel.series] == ["build(depth=9)", "build(depth=10)"]
        for series, table in zip(panel.series, tables, strict=True):
            table = table.dropna(subset=[quantity])
            np.testing.assert_array_equal(list(series.x), table["layer"])
            np.testing.assert_array_equal(list(series.y), table[quantity])
    assert "repeats (seeds): 2" in (tmp_path / "outputs/figures/captions.md").read_text()
    assert bsnn("figures", "only=propagation").returncode == 2  # these are not the paper's
    assert "not measured yet: bsnn, " in bsnn("table", "kind=approaches").stdout
    monkeypatch.setattr(figures, "FORMATS", ("png",))  # the others are tested with the figures
    assert bsnn("report", "export=copy").returncode == 0
    [copied, _] = sorted((tmp_path / "copy/propagation/build").iterdir())
    assert (copied / "network.py").read_text() == FILE
    config = (copied / "config.yaml").read_text()
    assert "path: my.py:build" in config
    assert OUTPUT in (copied / "layers.csv").read_text()
