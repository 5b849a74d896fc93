from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.running.rerun import NotIdentical, repeat
from bsnn_cli.storage import checkpoint
from tests import forked
from tests.conftest import SMALL, run_bsnn


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
