from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.rerun import NotIdentical, repeat
from tests import forked
from tests.conftest import SMALL, run_bsnn, small


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert forked.run(root, *SMALL).code == 0
    [directory] = root.glob("outputs/runs/*/*/*")
    return directory


def test_the_command_takes_a_path_and_finds_the_run_identical(finished: Path) -> None:
    before = sorted(finished.parents[4].rglob("*"))
    result = run_bsnn("rerun", str(finished), cwd=finished.parents[4])
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{finished}: identical, metrics and weights\n"
    assert sorted(finished.parents[4].rglob("*")) == before


def test_another_weight_and_another_metric_are_found(finished: Path) -> None:
    weights = checkpoint.load(finished / "weights.pt")
    kept, epochs = (finished / "weights.pt").read_bytes(), (finished / "epochs.csv").read_text()
    weights["input.bias"] = weights["input.bias"] + 0.25 * torch.eye(12)[3]
    checkpoint.save(finished / "weights.pt", weights)
    (finished / "epochs.csv").write_text(epochs.replace("0.01,", "0.02,"))
    with pytest.raises(NotIdentical) as found:
        repeat(finished)
    _, first, second = str(found.value).splitlines()[:3]
    assert first == "epochs.csv: differs from epoch 1 on, first in learning_rate"
    assert second == "weights: differ by at most 2.5e-01"
    (finished / "weights.pt").write_bytes(kept)
    (finished / "epochs.csv").write_text(epochs)
    assert repeat(finished).endswith("identical, metrics and weights")


def test_only_a_finished_run_can_be_repeated(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"config\.yaml"):
        repeat(tmp_path)
    (tmp_path / "config.yaml").write_text((finished / "config.yaml").read_text())
    with pytest.raises(RunDirectoryError, match="not finished"):
        repeat(tmp_path)


def test_the_start_does_not_depend_on_the_threads_of_the_environment(tmp_path: Path) -> None:
    """OMP_NUM_THREADS is 1 in joblib's workers, and what a user has set, or not, in a shell."""
    script = """
import hashlib, torch
from bsnn_cli.networks.network import Network
from bsnn_cli.settings.config import ActivationConfig, ModelConfig
for width in (64, 100, 150):
    network = Network(ModelConfig(depth=3, width=width), ActivationConfig(name="tanh"), 7, 3, 0)
    weights = torch.cat([weight.flatten() for weight in network.state()["hidden.weight"]])
    print(hashlib.sha256(weights.detach().numpy().tobytes()).hexdigest())
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 3


@pytest.mark.torture
def test_a_run_of_one_environment_is_identical_in_another(tmp_path: Path) -> None:
    run = ["train", *small("model.width=64"), "threads=2"]
    assert run_bsnn(*run, cwd=tmp_path, OMP_NUM_THREADS="1").returncode == 0
    [directory] = tmp_path.glob("outputs/runs/*/*/*")
    again = run_bsnn("rerun", str(directory), cwd=tmp_path, OMP_NUM_THREADS="2")
    assert again.stdout.endswith("identical, metrics and weights\n"), again.stderr


def test_a_difference_comes_with_what_may_explain_it(finished: Path) -> None:
    recorded = (finished / "provenance.json").read_text()
    epochs = (finished / "epochs.csv").read_text()
    (finished / "epochs.csv").write_text(epochs.replace("0.01,", "0.02,"))
    with pytest.raises(NotIdentical, match=r"nothing that provenance\.json records"):
        repeat(finished)
    content = json.loads(recorded) | {"instructions": "NEON", "arithmetic": "Triton"}
    (finished / "provenance.json").write_text(json.dumps(content))
    with pytest.raises(NotIdentical) as found:
        repeat(finished)
    assert "instructions: NEON has become " in str(found.value)
    assert "arithmetic: Triton has become " in str(found.value)
    (finished / "provenance.json").write_text(recorded)
    (finished / "epochs.csv").write_text(epochs)
