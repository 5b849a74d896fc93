"""Memory: the refusal of what does not fit, and of a full-size run on real MNIST: 200 layers of 500 units, batch 64.

The peak is read off /proc: `ru_maxrss` of a child begins at what its parent, the test runner, held when it was forked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bsnn_cli import cli

PROBE = r"""
import re, sys
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1e3
import torch
bare = peak()
from pathlib import Path
from bsnn_cli.datasets import data
from bsnn_cli.networks import building
from bsnn_cli.settings import config, validation
from bsnn_cli.runs import checkpoint
train = validation.resolve(config.TrainConfig(dataset=config.DatasetConfig(root=sys.argv[1])))
mnist = data.load(train.dataset, progress=False)
fleet = building.trainer([train], (1, 28, 28), 10)
for batch in torch.arange(128).split(64):
    loss = fleet.step(mnist.standardise(mnist.train.images[batch[None]]), mnist.train.labels[batch[None]])
fleet.logits(mnist.standardise(mnist.test.images[:500]))
fleet.orthogonality_error()
checkpoint.rotate(Path(sys.argv[2]), {"tensors": fleet.member_state(0)})
print(float(loss), peak() - bare)
"""


def test_a_full_size_run_needs_less_than_900_mb_above_torch(mnist_root: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(mnist_root), str(tmp_path)], capture_output=True, text=True, check=True
    )
    loss, megabytes = map(float, result.stdout.split())
    assert 1 < loss < 5
    assert 400 < megabytes < 900  # weights and momentum alone are 400 MB


@pytest.mark.parametrize("verb", ["train", "propagate"])
def test_a_network_too_large_for_the_memory_is_refused_with_the_estimate_and_the_limit(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch([verb, "dataset=digits", "model.depth=4000", "model.width=100000"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model.depth=4000, model.width=100000, ")
    assert "GB of memory" in line
    assert "GB are free" in line
    assert list(tmp_path.iterdir()) == []
