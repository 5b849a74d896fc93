"""The installed command as a user meets it: help, bad input, exit codes. Nothing here trains."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bsnn_cli.settings.config import VERBS, OptimConfig
from bsnn_cli.settings.options import options
from tests.conftest import BSNN, Answer, run_bsnn, small


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
def test_help_of_a_verb_names_every_key(verb: str, bsnn: Callable[..., Answer]) -> None:
    result = bsnn(verb, "--help")
    assert result.returncode == 0
    for key, entry, _ in options(VERBS[verb]()):
        assert f"  {key} = " in result.stdout
        assert entry.metadata["meaning"].split()[0] in result.stdout


def test_help_of_train_lists_the_groups(bsnn: Callable[..., Answer]) -> None:
    shown = bsnn("train", "--help").stdout
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
    "activation=[]": ["activation=[]", "must be one of ", " custom, custom_gpn, custom_gpn_d, "],
    "activation=null": ["activation=null", "must be one of ", " custom, custom_gpn, custom_gpn_d, "],
    "activation=": ["activation=", "must be one of ", " custom, custom_gpn, custom_gpn_d, "],
    "activation=tänh": ["activation=tänh", "quote"],
    "activation.name=selux": ["activation.name=selux", "one of tanh", "did you mean selu?"],
    "dataset=mnits": ["dataset=mnits", "cifar10", "did you mean mnist?"],
    "model.depth=0": ["model.depth=0", "at least 1"],
    "model.width=-1": ["model.width=-1", "at least 1"],
    "model.depth=1.5": ["model.depth=1.5", "whole number"],
    "model.depth=1e3": ["model.depth=1e3", "whole number"],
    "model.depth=null": ["model.depth=null", "whole number"],
    "model.norm=[batch]": ["model.norm=[batch]", "one of none"],
    "optim.lr=abc": ["optim.lr=abc", "a number above 0"],
    "optim.lr=-1": ["optim.lr=-1", "above 0"],
    "optim.lr=nan": ["optim.lr=nan", "above 0"],
    "optim.lr=1e400": ["optim.lr=inf", "above 0"],
    "optim.lr=${nothing}": ["optim.lr", "nothing"],
    "optim.epochs=0": ["optim.epochs=0", "at least 1"],
    "optim.batch_size=0": ["optim.batch_size=0", "at least 1"],
    "optim.batch_size=1798": ["optim.batch_size=1798", "at most 14"],
    "optim.momentum=1.5": ["optim.momentum=1.5", "below 1"],
    "optim=adam": ["optim=adam", "one of adamw, sgd", "did you mean adamw?"],
    "optim=rmsprop": ["optim=rmsprop", "one of adamw, sgd"],
    "optim=null": ["optim=null", "one of adamw, sgd"],
    "optim=3": ["optim=3", "one of adamw, sgd"],
    "optim.kind=adam": ["optim.kind=adam", "did you mean adamw?"],
    "optim.schedule=linear": ["optim.schedule=linear", "one of constant, cosine, step"],
    "optim.schedule=cosine_annealing": ["did you mean cosine?"],
    "optim.warmup=50.5": ["optim.warmup=50.5", "longer than training", "optim.epochs=50"],
    "optim.warmup=-1": ["optim.warmup=-1", "at least 0"],
    "optim.weight_decay=-0.1": ["optim.weight_decay=-0.1", "at least 0"],
    "optim.clip=0": ["optim.clip=0", "above 0"],
    "optim.beta1=1": ["optim.beta1=1", "below 1"],
    "optim.decay_rate=0": ["optim.decay_rate=0", "above 0"],
    "dataset.validation=1.0": ["dataset.validation=1.0", "below 1"],
    "seed=-1": ["seed=-1", "from 0"],
    "seed=1.5": ["seed=1.5", "whole number from 0"],
    "seed=": ["seed=", "whole number from 0"],
    "optim.lrr=1": ["optim.lrr", "did you mean optim.lr=1?"],
    "optin.lr=1": ["optin.lr", "did you mean optim.lr=1?"],
    # Words that people type.
    "lr=0.1": ["lr: no such key", "did you mean optim.lr=0.1?"],
    "learning_rate=0.1": ["did you mean optim.lr=0.1?"],
    "epochs=5": ["did you mean optim.epochs=5?"],
    "depth=50": ["did you mean model.depth=50?"],
    "layers=50": ["did you mean model.depth=50?"],
    "width=100": ["did you mean model.width=100?"],
    "optimizer=adam": ["optimizer: no such key", "did you mean optim=adamw?"],
    "scheduler=cosine": ["did you mean optim.schedule=cosine?"],
    "wd=0.1": ["did you mean optim.weight_decay=0.1?"],
    "grad_clip=1": ["did you mean optim.clip=1?"],
    "bs=128": ["did you mean optim.batch_size=128?"],
    "norm=bn": ["did you mean model.norm=batch?"],
    "gpu=true": ["did you mean device?"],
    "model.norm=bn": ["did you mean batch?"],
    "model.init=xavier": ["did you mean glorot_uniform?"],
    "activation=swish": ["did you mean silu?"],
    "activation=leaky_relu_gpn": ["did you mean lrelu_gpn?"],
    "activation=SELU": ["did you mean selu?"],
    "dataset=MNIST": ["did you mean mnist?"],
    "+anything=1": ["anything", "no such key"],
    "model=big": ["model=big", "model.depth"],
    "model=3": ["model=3", "model.depth"],
    "optim.lr": ["optim.lr", "KEY=VALUE"],
    "=3": ["=3", "KEY=VALUE"],
    "--bogus": ["--bogus", "--help"],
    "optim.epochs=1,2": ["optim.epochs=1,2", "-m"],
    "device=cuda:99": ["device=cuda:99", "device=cpu"],
    "device=tpu": ["device=tpu", "auto, cpu, cuda"],
    "precision=tf32": ["precision=tf32", "CUDA"],
    "dataset.name=other": ["dataset.name=other", "folder"],
    "checkpoint.keep=some": ["checkpoint.keep=some", "weights"],
    "output_root=": ["output_root=", "empty"],
    "output_root=null": ["output_root=null", "must be a text"],
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_gets_one_line_and_exit_code_2_and_nothing_is_written(
    argument: str, tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    given = argument.partition("=")[0]
    usual = [word for word in ("dataset=digits", "device=cpu") if word.partition("=")[0] != given]
    result = bsnn("train", *usual, argument)
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in BAD[argument]), line
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optim.epochs=2", "optim.warmup=3"], "optim.warmup=3.0: is longer than training; must be at most"),
        (["optim.nesterov=true", "optim=adamw"], "optim.nesterov=true: belongs to optim=sgd"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov=true: needs optim.momentum above 0"),
        (["optim.schedule=step", "optim.epochs=5", "optim.decay_epochs=5"], "optim.decay_epochs=5.0: must be below"),
    ],
)
def test_settings_of_an_optimiser_that_make_no_sense_together_get_one_line(
    arguments: list[str], told: str, tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    result = bsnn("train", "dataset=digits", *arguments)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_timing_knows_one_optimiser(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("bench", "optim=adamw")
    assert result.returncode == 2
    assert "optim=adamw: must name one of its keys" in result.stderr
    assert "optim.weight_decay" not in bsnn("bench", "--help").stdout
    assert "Choices for optim=" not in bsnn("bench", "--help").stdout
    assert "Choices for optim=\n  adamw sgd" in bsnn("train", "--help").stdout


def test_bad_input_ends_the_process_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    result = run_bsnn("train", "dataset=digits", "model.depth=0", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: model.depth=0: must be a whole number at least 1\n"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_one_bad_job_runs_none(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    result = bsnn("train", "-m", "dataset=digits", "model.depth=2,0", "activation=relu", "optim.lr=-1,0.1")
    assert result.returncode == 2
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" optim.lr=-1.0", " model.depth=0"]
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_named_at_once(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("train", "model.depth=0", "optim.momentum=2", "seed=-4")
    assert result.returncode == 2
    assert [line.split("=")[0] for line in result.stderr.splitlines()] == [
        "error: model.depth",
        "error: optim.momentum",
        "error: seed",
    ]


def test_flags_may_stand_anywhere(bsnn: Callable[..., Answer]) -> None:
    words = ["dataset=digits", "seed=0,1", "model.depth=2", "model.width=4", "dry_run=true"]
    for place in (0, 2, 5):
        result = bsnn("train", *words[:place], "-m", *words[place:])
        assert "2 runs: 2 to run" in result.stdout, result.stderr


def test_null_is_accepted_where_help_shows_it_as_the_default(bsnn: Callable[..., Answer]) -> None:
    assert bsnn("gpn", "activation=null", "format=csv").stdout == bsnn("gpn", "format=csv").stdout
    composed = bsnn("train", "approach=null", "--cfg", "job")
    assert "approach: null" in composed.stdout, composed.stderr


def test_absent_data_without_network_says_what_to_put_where(
    bsnn: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSNN_DATA_MIRROR", "http://127.0.0.1:9")
    result = bsnn("train", "dataset=mnist", "dataset.root=there")
    assert result.returncode == 2
    first, *more = result.stderr.splitlines()
    assert first.startswith("error: dataset.root=there: there/MNIST/raw/train-images-idx3-ubyte.gz is absent")
    assert all(line.startswith("  ") for line in more)
    assert "dataset=digits, which needs no network" in result.stderr
    assert "there/MNIST/raw/t10k-labels-idx1-ubyte.gz  4542 bytes  md5 ec29112dd5afa0611ce80d1b7f02629c" in more[-5]
    assert "or, with the same content: MNIST/raw/t10k-labels-idx1-ubyte, MNIST/raw/t10k-labels.idx1-ubyte, " in more[-1]
    assert list(tmp_path.iterdir()) == []


def test_unknown_verb(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("tran")
    assert result.returncode == 2
    assert "did you mean train?" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_as_a_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert run_bsnn("train", "dataset=digits", cwd=tmp_path).returncode == 2


def test_unwritable_output(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    result = bsnn("train", "dataset=digits", "model.depth=2", "model.width=4")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "output_root" in line


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json"])
def test_gpn_prints_the_constants(form: str, bsnn: Callable[..., Answer]) -> None:
    result = bsnn("gpn", f"format={form}")
    assert result.returncode == 0, result.stderr
    assert "1.467413591" in result.stdout
    [row] = json.loads(bsnn("gpn", "activation=mish", "format=json").stdout)
    assert row["activation"] == "mish"


def test_gpn_refuses_an_unknown_name(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("gpn", "activation=mich")
    assert result.returncode == 2
    assert "did you mean mish?" in result.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bsnn tr", {"train"}),
        ("bsnn ", set(VERBS)),
        ("bsnn train activation=selu", {"activation=selu", "activation=selu_gpn", "activation=selu_gpn_d"}),
        ("bsnn train optim.", {f"optim.{entry.name}=" for entry in dataclasses.fields(OptimConfig)}),
        ("bsnn train optim=", {"optim=adamw", "optim=sgd"}),
        ("bsnn data dataset=dig", {"dataset=digits"}),
    ],
)
def test_shell_completion_answers_as_the_shell_asks(
    line: str, expected: set[str], bsnn: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(bsnn("-sc", "query=bash").stdout.split()) == expected


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


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shell_completion_is_installed_for_this_command_alone(shell: str, bsnn: Callable[..., Answer]) -> None:
    lines = bsnn("-sc", f"install={shell}").stdout.splitlines()
    commands = [line for line in lines if "complete -c bsnn" in line or "complete -o" in line]
    assert commands
    assert not any("train" in command for command in commands)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("gpn dataset=digits", "dataset: no such key; `bsnn gpn --help` lists all"),
        ("train -m seed=interval(1,3)", "seed=interval(1,3): is an interval; give the values, such as seed=1,2,3"),
        ("train -m activation=glob(*x)", "activation=glob(*x): matches no choice; `bsnn train --help` lists them"),
        ("rerun .", ".: is no run directory, since it has no config.yaml"),
        ("propagate run=.", ".: is no run directory, since it has no config.yaml"),
        (
            "train -m hydra/launcher=submitit_local dataset=digits output_root=x%j",
            "hydra/launcher=submitit_local: x%j/sweeps/",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_the_program_s_own_words(
    words: str, told: str, tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    if "submitit" in words:
        pytest.importorskip("submitit")
    refused = bsnn(*words.split())
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {told}"), refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_around_runs_is_not_taken_for_one_and_a_path_may_have_an_equals_sign(
    tmp_path: Path, bsnn: Callable[..., Answer]
) -> None:
    run = ["train", *small("optim.epochs=1"), "output_root=lr=0.1"]
    assert bsnn(*run).returncode == 0
    [directory] = tmp_path.glob("lr=0.1/runs/*/*/*")
    path = directory.relative_to(tmp_path)
    assert bsnn("rerun", str(path)).stdout == f"{path}: identical, metrics and weights\n"
    for words in (["rerun", "lr=0.1"], ["propagate", "run=lr=0.1/runs/digits"]):
        refused = bsnn(*words)
        assert refused.returncode == 2
        assert refused.stderr.endswith(f"; give one of those in it, such as {path}\n")
    nothing = bsnn("runs", "prune=true", "output_root=lr=0.1").stdout
    assert nothing == "nothing to free: finished runs have no checkpoints left, and others need theirs (1 done)\n"
    assert bsnn("runs", "prune=true").stdout == "nothing to free: there are no runs\n"
