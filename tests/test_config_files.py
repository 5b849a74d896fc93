"""Config files of a user's own that are wrong: one line with the file, the line in it and a remedy, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer, small

HEADER = b"# @package _global_\n"

WRONG = {
    "a tab": (HEADER + b"model:\n\tdepth: 3\n", ":3: is no YAML: ", "indent with spaces"),
    "an open brace": (HEADER + b"model: {depth: 3\n", ":3: is no YAML: ", "close it"),
    "a key twice": (HEADER + b"seed: 1\nseed: 2\n", ":3: is no YAML: found duplicate key seed", ""),
    "no header": (b"model: {depth: 3}\n", ":1: has to begin with the line `# @package _global_`", ""),
    "a header that is not first": (
        b"# mine\n" + HEADER + b"defaults: [{override /activation: elu}]\n",
        ":1: has to begin with the line `# @package _global_`",
        "",
    ),
    "nothing": (b"", ":1: has to begin with the line `# @package _global_`", ""),
    "a byte-order mark": (b"\xef\xbb\xbf" + HEADER + b"seed: 3\n", ":1: begins with a byte-order mark", "without one"),
    "no text": (b"\xff\xfe\x00", ": is no text", "UTF-8"),
    "a list": (HEADER + b"- a\n- b\n", ":1: has to consist of keys and values", ""),
    "a choice as a value": (
        HEADER + b"seed: 1\nactivation: tanh_gpn\n",
        ":3: activation: tanh_gpn: is the name of a choice; ",
        "`defaults: [{override /activation: tanh_gpn}]`",
    ),
    "an unknown key": (HEADER + b"model: {dept: 3}\n", ":2: model.dept: no such key; ", "did you mean model.depth?"),
    "a wrong value": (HEADER + b"model:\n  depth: x\n", ":3: model.depth=x: must be a whole number at least 1", ""),
}


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["single", "sweep"])
@pytest.mark.parametrize("fault", WRONG)
def test_a_fault_is_named_with_its_place_and_a_remedy(
    fault: str, flags: list[str], tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    content, place, remedy = WRONG[fault]
    path = tmp_path / "my" / "experiment" / "tried.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    refused = bsnn("train", *flags, "--config-dir", "my", "experiment=tried", "dataset=digits")
    assert refused.returncode == 2, refused.stderr
    [line] = refused.stderr.splitlines()
    assert line.startswith((f"error: my/experiment/tried.yaml{place}", f"error: {path}{place}")), line
    assert remedy in line
    assert not (tmp_path / "outputs").exists()


def test_a_primary_config_s_fault_is_named_too(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "mine.yaml").write_text("defaults: [train, _self_]\n\nactivation: tanh_gpn\n")
    refused = bsnn("train", "--config-dir=my", "--config-name=mine", "dataset=digits")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: my/mine.yaml:3: activation: tanh_gpn: is the name of a choice; ")


@pytest.mark.parametrize("flags", ["--config-dir=my", "hydra.searchpath=[file://my]"])
def test_a_file_of_a_user_adds_a_choice_or_changes_one(flags: str, tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "my" / "activation").mkdir(parents=True)
    for name in ("mine", "tanh_gpn"):
        (tmp_path / "my" / "activation" / f"{name}.yaml").write_text("name: tanh\nroot: lower\n")
        composed = bsnn("train", flags, f"activation={name}", "--cfg", "job")
        assert composed.stdout.startswith("activation:\n  name: tanh\n  gpn: true\n  root: lower\n"), composed.stderr
        assert composed.stderr == ""
    assert "did you mean mine?" in bsnn("train", flags, "activation=min").stderr


def test_a_user_may_have_an_approach(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "my" / "approach").mkdir(parents=True)
    preset = HEADER + b"defaults: [{override /activation: relu}]\napproach: mine\nmodel: {norm: layer}\n"
    (tmp_path / "my" / "approach" / "mine.yaml").write_bytes(preset)
    measured = bsnn("propagate", "--config-dir=my", "approach=mine", "model.depth=2", "model.width=4")
    assert measured.returncode == 0, measured.stderr
    assert (tmp_path / "outputs" / "propagation" / "mine").is_dir()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfimport torch\nphi = torch.tanh\n",
        b"# -*- coding: latin-1 -*-\nimport torch\nLETTER = '\xe9'\ndef phi(h): return torch.tanh(h * len(LETTER))\n",
        b"import torch\r\n\r\nphi = torch.tanh\r\n",
    ],
    ids=["byte-order mark", "coding line", "Windows"],
)
def test_a_python_file_is_read_as_python_reads_it(content: bytes, tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "my.py").write_bytes(content)
    run = ["train", *small("optim.epochs=1"), "activation=custom_gpn", "activation.path=my.py:phi"]
    assert bsnn(*run).returncode == 0
    [directory] = tmp_path.glob("outputs/runs/digits/*/*")
    (tmp_path / "my.py").unlink()
    again = bsnn("rerun", str(directory))  # by the copy of the file
    assert again.stdout.endswith("identical, metrics and weights\n"), again.stderr
