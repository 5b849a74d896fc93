"""A user's own module through `bsnn train`, with all that runs have: resume, skip, sweeps, tables, curves, loading."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bsnn_cli import load_dataset, load_run, load_runs
from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets import data
from bsnn_cli.networks.autograd_trainer import AutogradTrainer
from bsnn_cli.networks.members import Hyperparameters
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.trainable import Module
from bsnn_cli.runs import checkpoint
from bsnn_cli.settings.config import DatasetConfig
from tests.conftest import Answer, given_once, run_bsnn
from tests.test_train_command import Start, assert_same_end, kill_in_mid_epoch, start  # noqa: F401

FILE = """
import random

import numpy as np
import torch
from torch import nn


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.sometimes = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if not self.training:
            return x + self.calls
        self.calls += 1e-4
        if random.random() < 0.5:
            x = x * self.sometimes
        return x * (1 + 0.1 * (random.random() + np.random.rand()))


def convolutional(width=4, dropout=0.2):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), Noisy(), nn.Flatten(),
        nn.Dropout(dropout), nn.LazyLinear(10),
    )


def plain(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)), "inputs"


def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.again, self.last = self.first, nn.Linear(64, 10)
            self.frozen = nn.Parameter(torch.ones(64), requires_grad=False)

        def forward(self, x):
            return self.last(torch.tanh(self.again(self.frozen * torch.tanh(self.first(x.flatten(1))))))

    return Tied()


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def of_colours():
    return nn.Conv2d(3, 10, 3)


def two_things():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    return Two()


def fixed():
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))


def selu():
    return plain()[0]


def explodes():
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 10))

        def forward(self, x):
            return 1e30 * (x.flatten(1) @ self.weight**9)

    return Exploding()
"""

BRIEF = ["dataset=digits", "optim.epochs=2", "optim.lr=0.05", "threads=1"]


@pytest.fixture
def train(tmp_path: Path, bsnn: Callable[..., Answer]) -> Callable[..., Answer]:
    """`bsnn train` beside the file."""
    (tmp_path / "my.py").write_text(FILE)
    return lambda *words: bsnn("train", *given_once([*BRIEF, *words]))


def directory(root: Path, name: str) -> Path:
    [path] = root.glob(f"outputs/runs/digits/{name}/*")
    return path


def namespace() -> dict[str, Callable[..., nn.Module]]:
    names: dict[str, Callable[..., nn.Module]] = {}
    exec(FILE, names)
    return names


def test_it_leaves_the_files_of_every_run(tmp_path: Path, train: Callable[..., Answer]) -> None:
    told = train("network=my.py:plain", "network.kwargs.width=6", "dataset.validation=0.1")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("plain on digits: test ")
    assert "slow" not in told.stderr
    run = directory(tmp_path, "plain")
    names = {"config.yaml", "epochs.csv", "network.py", "provenance.json", "result.json", "weights.pt"}
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == names
    assert (run / "network.py").read_text() == FILE
    result = json.loads((run / "result.json").read_text())
    said = {key: result[key] for key in ("activation", "gpn", "root", "norm", "depth", "width", "weights", "image")}
    nothing = dict.fromkeys(("root", "norm", "depth", "width", "weights"))
    assert said == {"activation": "plain", "gpn": False, "image": [1, 8, 8], **nothing}
    assert result["parameters"] == 64 * 6 + 6 + 6 * 10 + 10
    epochs = pd.read_csv(run / "epochs.csv")
    assert epochs["orthogonality_error"].isna().all()
    assert epochs["validation_accuracy"].notna().all()
    assert json.loads((run / "provenance.json").read_text())["trainer"] == "AutogradTrainer (Module)"
    again = train("network=my.py:plain", "network.kwargs.width=6", "dataset.validation=0.1")
    assert "finished already" in again.stderr


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_it_is_the_training_that_a_plain_loop_makes(
    optimiser: str, tmp_path: Path, train: Callable[..., Answer]
) -> None:
    """Written out in PyTorch: the batches, the loss, decay of matrices alone, clipping, a cosine; equal to the bit."""
    words = [f"optim={optimiser}", "optim.schedule=cosine", "optim.weight_decay=0.1", "optim.clip=0.5"]
    assert train("network=my.py:plain", *words, "seed=3").returncode == 0
    digits = data.load(DatasetConfig(kind="digits"))
    torch.manual_seed(stream(3, "network").initial_seed())
    module = namespace()["plain"]()[0]  # type: ignore[index]
    matrices = [p for p in module.parameters() if p.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    made: torch.optim.Optimizer = (
        torch.optim.SGD(groups, 0.05, 0.5) if optimiser == "sgd" else torch.optim.AdamW(groups, 0.05)
    )
    images, steps = digits.standardise(digits.train.images).view(-1, 1, 8, 8), 0
    total = 2 * math.ceil(len(images) / 64)
    for epoch in range(2):
        for batch in torch.randperm(len(images), generator=stream(3, "batches", epoch)).split(64):
            made.zero_grad()
            F.cross_entropy(module(images[batch]), digits.train.labels[batch]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            for group in made.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * steps / total)) / 2
            made.step()
            steps += 1
    trained = load_run(directory(tmp_path, "plain")).module
    for name, value in module.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-5, atol=1e-6)


LONG = ["optim.epochs=40", "checkpoint.every_s=0.05", "network=my.py:convolutional", "optim=adamw", "optim.lr=0.01"]


def test_it_goes_on_after_a_kill_and_ends_the_same_to_the_byte(start: Start, tmp_path: Path) -> None:  # noqa: F811
    """With dropout, batch statistics, a buffer outside of the state dict, Python's and NumPy's generators, and a
    parameter that has a part in some steps only.
    """
    (tmp_path / "my.py").write_text(FILE)
    words = given_once([*BRIEF, *LONG])
    whole = run_bsnn("train", *words, "output_root=whole/outputs", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    kill_in_mid_epoch(start(*words), tmp_path)
    resumed = run_bsnn("train", *words, cwd=tmp_path)
    assert "resuming after" in resumed.stderr
    run = directory(tmp_path, "convolutional")
    assert_same_end(run, directory(tmp_path / "whole", "convolutional"))
    assert float(checkpoint.load(run / "weights.pt")["module.3.calls"]) == pytest.approx(1e-4 * 40 * 23, rel=1e-3)


def test_what_a_module_draws_depends_on_its_seed_and_step_alone() -> None:
    """Whatever else draws random numbers in the process, and whatever is trained beside it."""
    digits = data.load(DatasetConfig(kind="digits"))

    def trainer(seeds: list[int]) -> AutogradTrainer:
        networks = []
        for seed in seeds:
            torch.manual_seed(seed)
            networks.append(Module(namespace()["convolutional"](), (1, 8, 8), 10, ""))
        return AutogradTrainer(networks, [Hyperparameters(seed=seed, lr=0.1) for seed in seeds], optimiser=Optimiser())

    alone, together = trainer([5]), trainer([4, 5])
    for step in range(3):
        indices = torch.arange(20 * step, 20 * step + 20)
        alone.step(*digits.batch(indices[None], torch.float32))
        random.random()
        np.random.rand()
        torch.rand(3)
        together.step(*digits.batch(indices.expand(2, -1), torch.float32))
    ours, theirs = alone.member_state(0), together.member_state(1)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before = together.member_state(0)
    assert not torch.equal(before["module.0.weight"], theirs["module.0.weight"])


def test_a_sweep_over_arguments_and_seeds_fills_runs_tables_and_curves(
    tmp_path: Path, train: Callable[..., Answer], bsnn: Callable[..., Answer]
) -> None:
    told = train("-m", "network=my.py:plain", "network.kwargs.width=8,16", "seed=0,1", "hydra/launcher=fleet")
    assert told.returncode == 0, told.stderr
    assert "network.kwargs.width" in told.stdout
    assert "4 runs: 4 done" in told.stdout
    train("activation=tanh", "model.depth=2", "model.width=12")
    runs = load_runs(tmp_path / "outputs")
    mine = runs[runs["label"] == "plain"]
    assert sorted(mine["network.kwargs.width"]) == [8, 8, 16, 16]  # 8 is the default
    assert mine["model.depth"].isna().all()
    listed = json.loads(bsnn("runs", "network.kwargs.width=16", "format=json").stdout)
    assert [row["seed"] for row in listed] == [0, 1]
    table = bsnn("table", "rows=network.kwargs.width", "columns=activation")
    assert table.returncode == 0, table.stderr
    [line] = [line for line in table.stdout.split("Training")[0].splitlines() if " 16 " in line]
    mean = mine[mine["network.kwargs.width"] == 16]["test_accuracy"].mean()
    assert f"{mean:.2f}" in line
    paper = bsnn("table")
    assert paper.returncode == 0, paper.stderr
    assert "plain" in paper.stdout
    drawn = bsnn("figures", "only=curves", "by=network.kwargs.width", "formats=png", "activation=plain")
    assert drawn.returncode == 0, drawn.stderr
    picture = next((tmp_path / "outputs" / "figures").glob("curves*.png"))
    assert matplotlib.image.imread(picture).std() > 0.01


def test_content_function_and_arguments_identify_a_run(tmp_path: Path, train: Callable[..., Answer]) -> None:
    train("network=my.py:plain")
    (tmp_path / "moved.py").write_text(FILE)
    assert "finished already" in train("network=moved.py:plain", "network.kwargs.width=8").stderr  # its default
    (tmp_path / "moved.py").write_text(FILE + "\n")
    for words in (["network=moved.py:plain"], ["network=my.py:tied"], ["network=my.py:plain", "seed=1"]):
        assert "finished already" not in train(*words).stderr
    assert len(list(tmp_path.glob("outputs/runs/digits/*/*/result.json"))) == 4


def test_a_trained_network_is_loaded_repeated_and_measured(
    tmp_path: Path, train: Callable[..., Answer], bsnn: Callable[..., Answer]
) -> None:
    for name in ("convolutional", "tied"):
        assert train(f"network=my.py:{name}", "dataset.validation=0.2").returncode == 0
    (tmp_path / "my.py").unlink()  # the copies in the run directories take its place
    for name in ("convolutional", "tied"):
        run = directory(tmp_path, name)
        network, digits = load_run(run), load_dataset(run)
        hits = network(digits.standardise(digits.test.images)).argmax(1) == digits.test.labels
        result = json.loads((run / "result.json").read_text())
        assert 100 * hits.double().mean() == pytest.approx(result["test_accuracy"])
        assert type(network.module).__name__ in ("Sequential", "Tied")
        told = bsnn("rerun", str(run))
        assert "identical, metrics and weights" in told.stdout, told.stderr
        for source in ("gaussian", "dataset"):
            words = [f"propagate.source={source}", "propagate.inputs=20"]
            told = bsnn("propagate", f"run={run}", *words)
            assert told.stdout.startswith(f"{name}, "), told.stderr
    tied = checkpoint.load(directory(tmp_path, "tied") / "weights.pt")
    assert {"module.first.weight", "module.frozen"} <= tied.keys()
    assert (tied["module.frozen"] == 1).all()


def test_a_run_that_diverges_ends_as_diverged(train: Callable[..., Answer]) -> None:
    told = train("network=my.py:explodes")
    assert told.returncode == 0
    assert "explodes on digits: diverged in epoch 1, step 1" in told.stdout


def test_a_rehearsal_counts_and_times_it(train: Callable[..., Answer], tmp_path: Path) -> None:
    told = train("network=my.py:plain", "network.kwargs.width=1000", "dry_run=true")
    assert told.returncode == 0, told.stderr
    assert f"disk: {4 * (64 * 1000 + 1000 + 1000 * 10 + 10) / 1e6:.1f} MB to keep" in told.stdout
    assert not (tmp_path / "outputs").exists()


BAD = {
    ("network=other.py:build",): "network=other.py:build: cannot read other.py: No such file",
    ("network=my.py:absent",): "my.py defines no function absent",
    ("network=my.py",): "network.path=my.py: must be FILE.py:FUNCTION",
    ("network=rnn",): "network=rnn: must be one of cnn, mlp or FILE.py:FUNCTION",
    ("network=my.py:narrow",): "returns shape (2, 7) for two images; a classifier of 10 classes returns (2, 10)",
    ("network=my.py:of_colours",): "fails on images of 1 × 8 × 8 (channels × height × width): RuntimeError",
    ("network=my.py:two_things",): "returns tuple for two images",
    ("network=my.py:fixed",): "network=my.py:fixed: has no parameters to train",
    ("network=my.py:selu",): "a function called selu would pass for another activation; rename it",
    ("network.kwargs.dept=3",): "got an unexpected keyword argument 'dept'",
    ("activation=tanh",): "activation: network=my.py:plain brings its own network",
    ("model.depth=3",): "model: network=my.py:plain brings its own network",
    ("approach=glorot",): "approach: network=my.py:plain brings its own network",
    ("network.kind=cnn",): "network.kind=cnn: contradicts network.path=my.py:plain",
    ("network.shape=[1,8,8]",): "network.shape: is that of the dataset's images in training",
    ("network=null", "network.kwargs.width=3"): "network.kwargs: means nothing without network=FILE.py:FUNCTION",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_line_and_2(words: tuple[str, ...], train: Callable[..., Answer]) -> None:
    told = train(*given_once(["network=my.py:plain", *words]))
    [line] = [line for line in told.stderr.splitlines() if line]
    assert told.returncode == 2
    assert line.startswith("error: ")
    assert BAD[words] in line


def test_a_file_that_changes_before_its_job_begins_is_refused(train: Callable[..., Answer]) -> None:
    print_of_another = "0123456789abcdef"
    told = train("network=my.py:plain", f"network.fingerprint={print_of_another}")
    assert told.returncode == 2
    assert "my.py is not what it was when this run was planned" in told.stderr
