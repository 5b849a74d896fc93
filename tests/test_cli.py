"""The installed command as a user meets it: help, bad input, exit codes. Nothing here trains."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bsnn_cli.config import VERBS
from bsnn_cli.knobs import knobs
from tests.conftest import BSNN, run_bsnn


def test_help_lists_the_verbs_quickly_and_without_torch(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run_bsnn("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert all(f"\n  {verb} " in result.stdout for verb in VERBS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    probe = "import sys, bsnn_cli.cli; bsnn_cli.cli.dispatch(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_every_key(verb: str, tmp_path: Path) -> None:
    result = run_bsnn(verb, "--help", cwd=tmp_path)
    assert result.returncode == 0
    for key, entry, _ in knobs(VERBS[verb]()):
        assert f"  {key} = " in result.stdout
        assert entry.metadata["meaning"].split()[0] in result.stdout


def test_help_of_train_lists_the_groups(tmp_path: Path) -> None:
    shown = run_bsnn("train", "--help", cwd=tmp_path).stdout
    for choice in ("selu_gpn", "gelu_exact", "identity_gpn", "cifar10_jpeg", "fashion_mnist"):
        assert choice in shown


def test_module_and_command_are_the_same_from_any_directory(tmp_path: Path) -> None:
    command = run_bsnn("train", "--cfg", "job", cwd=tmp_path)
    module = subprocess.run(
        [sys.executable, "-m", "bsnn_cli", "train", "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True
    )
    assert command.returncode == module.returncode == 0
    assert command.stdout == module.stdout
    assert "name: selu" in command.stdout
    assert list(tmp_path.iterdir()) == []


BAD = {
    "activation=sellu_gpn": ["activation=sellu_gpn", "tanh_gpn", "did you mean selu_gpn?"],
    "activation.name=selux": ["activation.name=selux", "one of tanh", "did you mean selu?"],
    "dataset=mnits": ["dataset=mnits", "cifar10", "did you mean mnist?"],
    "model.depth=0": ["model.depth=0", "at least 1"],
    "model.width=-1": ["model.width=-1", "at least 1"],
    "model.depth=1.5": ["model.depth=1.5", "whole number"],
    "optim.lr=abc": ["optim.lr=abc", "a number above 0"],
    "optim.lr=-1": ["optim.lr=-1", "above 0"],
    "optim.lr=nan": ["optim.lr=nan", "above 0"],
    "optim.lr=inf": ["optim.lr=inf", "above 0"],
    "optim.epochs=0": ["optim.epochs=0", "at least 1"],
    "optim.batch_size=0": ["optim.batch_size=0", "at least 1"],
    "optim.batch_size=1798": ["optim.batch_size=1798", "at most 14"],
    "optim.momentum=1.5": ["optim.momentum=1.5", "below 1"],
    "seed=-1": ["seed=-1", "from 0"],
    "optim.lrr=1": ["optim.lrr", "did you mean optim.lr?"],
    "+anything=1": ["anything", "no such key"],
    "model=big": ["model"],
    "optim.lr": ["optim.lr"],
    "optim.epochs=1,2": ["optim.epochs=1,2", "-m"],
    "device=cuda:99": ["device=cuda:99", "device=cpu"],
    "device=tpu": ["device=tpu", "auto, cpu, cuda"],
    "precision=tf32": ["precision=tf32", "CUDA"],
    "dataset.name=other": ["dataset.name=other", "folder"],
    "checkpoint.keep=some": ["checkpoint.keep=some", "weights"],
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_gets_one_line_and_exit_code_2_and_nothing_is_written(argument: str, tmp_path: Path) -> None:
    result = run_bsnn("train", "dataset=digits", "device=cpu", argument, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in BAD[argument]), line
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    result = run_bsnn("train", "model.depth=0", "optim.momentum=2", "seed=-4", cwd=tmp_path)
    assert result.returncode == 2
    assert [line.split("=")[0] for line in result.stderr.splitlines()] == [
        "error: model.depth",
        "error: optim.momentum",
        "error: seed",
    ]


def test_unknown_verb(tmp_path: Path) -> None:
    result = run_bsnn("tran", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean train?" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_as_a_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert run_bsnn("train", "dataset=digits", cwd=tmp_path).returncode == 2


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    result = run_bsnn("train", "dataset=digits", "model.depth=2", "model.width=4", cwd=tmp_path)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "output_root" in line


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json"])
def test_gpn_prints_the_constants(form: str, tmp_path: Path) -> None:
    result = run_bsnn("gpn", f"format={form}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1.467413591" in result.stdout
    one = run_bsnn("gpn", "activation=mish", "format=json", cwd=tmp_path)
    [row] = json.loads(one.stdout)
    assert row["activation"] == "mish"


def test_gpn_refuses_an_unknown_name(tmp_path: Path) -> None:
    result = run_bsnn("gpn", "activation=mich", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean mish?" in result.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bsnn tr", {"train"}),
        ("bsnn ", set(VERBS)),
        ("bsnn train activation=selu", {"activation=selu", "activation=selu_gpn"}),
        ("bsnn train optim.", {"optim.lr=", "optim.momentum=", "optim.batch_size=", "optim.epochs="}),
        ("bsnn data dataset=dig", {"dataset=digits"}),
    ],
)
def test_shell_completion_answers_as_the_shell_asks(line: str, expected: set[str], tmp_path: Path) -> None:
    result = run_bsnn("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert set(result.stdout.split()) == expected


def test_shell_completion_in_a_real_bash(tmp_path: Path) -> None:
    """What the README tells to put into the shell's start-up file, and then a press of the tab key."""
    script = (
        f'PATH="{BSNN.parent}:$PATH"; eval "$(bsnn -sc install=bash)"; '
        'COMP_LINE="bsnn train dataset=dig"; COMP_POINT=${#COMP_LINE}; '
        "COMP_WORDS=(bsnn train dataset=dig); COMP_CWORD=2; "
        "$(complete -p bsnn | sed -E 's/.*-F ([^ ]+).*/\\1/'); echo \"${COMPREPLY[@]}\""
    )
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "dataset=digits" in result.stdout, result.stderr
