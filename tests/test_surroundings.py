"""What a process finds around it: streams, signals, a home, a working directory, the settings of other programs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BSNN, Answer, run_bsnn, small

RUN = ["train", *small("optim.epochs=1")]


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell, in which `bsnn` is the installed command."""
    script = f'bsnn() {{ {shlex.quote(str(BSNN))} "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def results(root: Path) -> int:
    return len(list(root.glob("outputs/runs/*/*/*/result.json")))


def test_a_run_ends_whatever_its_streams_are(tmp_path: Path) -> None:
    words = shlex.join(RUN)
    for seed, streams in enumerate(["<&- >&- 2>&-", "2>/dev/full"]):
        ended = shell(f"bsnn {words} seed={seed} {streams}", tmp_path)
        assert ended.returncode == 0, (streams, ended.stderr)
        assert results(tmp_path) == seed + 1, streams
    weights = [path.read_bytes()[:2] for path in tmp_path.glob("outputs/runs/*/*/*/weights.pt")]
    assert weights == [b"PK"] * 2, "a message has been written into a file that took the place of a closed stream"


@pytest.mark.torture
def test_a_resume_needs_nobody_who_reads_that_it_resumes(tmp_path: Path) -> None:
    run = ["train", *small("optim.epochs=300", "checkpoint.every_s=0")]
    first = subprocess.Popen([BSNN, *run], cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for(tmp_path, "outputs/runs/*/*/*/checkpoint.pt")
    first.kill()
    first.wait()
    assert shell(f"bsnn {shlex.join(run)} 2>/dev/full", tmp_path).returncode == 0
    assert results(tmp_path) == 1


def wait_for(root: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(root.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_output_that_cannot_be_written_is_one_line_and_a_reader_may_leave(tmp_path: Path) -> None:
    full = shell("bsnn runs >/dev/full", tmp_path)
    assert (full.returncode, full.stderr) == (
        1, "error: standard output: cannot be written (No space left on device)\n"
    )  # fmt: skip
    left = shell("bsnn gpn format=csv | head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert left.stdout.splitlines()[1] in ("0", str(128 + signal.SIGPIPE))
    assert left.stderr == ""


@pytest.mark.parametrize(("ignoring", "ends"), [("", False), ("trap '' HUP; ", True)])
def test_a_hang_up_saves_the_run_unless_it_is_to_be_ignored(ignoring: str, ends: bool, tmp_path: Path) -> None:
    """`nohup` ignores it; a terminal that is closed is a stop like any other."""
    run = shlex.join(["train", *small("optim.epochs=60", "checkpoint.every_s=3600")])
    process = subprocess.Popen(
        ["bash", "-c", f"{ignoring}exec {shlex.quote(str(BSNN))} {run}"],
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may themselves run under nohup
    )
    wait_for(tmp_path, "outputs/runs/*/*/*/epochs.csv")
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == (0 if ends else 128 + signal.SIGHUP)
    assert results(tmp_path) == int(ends)
    assert len(list(tmp_path.glob("outputs/runs/*/*/*/checkpoint.pt"))) == int(not ends)


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ended = shell("cd gone; rmdir ../gone; bsnn runs", tmp_path)
    assert (ended.returncode, ended.stderr) == (
        2, "error: the working directory is gone; change to one that exists\n"
    )  # fmt: skip


def test_a_user_without_a_home_trains(tmp_path: Path) -> None:
    """As in a container that runs under a number without a name; then there is no folder for what is compiled."""
    script = f"""
import os, pwd, sys
def nobody(number):
    raise KeyError(number)
pwd.getpwuid, sys.argv = nobody, ["bsnn", *{RUN!r}]
del os.environ["HOME"]
from bsnn_cli import cli
cli.main()
"""
    ended = subprocess.run(
        [BSNN.with_name("python"), "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HOME": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    [introduction] = ended.stderr.splitlines()  # and no warning
    assert introduction.startswith("outputs/runs/")
    assert results(tmp_path) == 1


def test_figures_are_drawn_in_their_own_settings(tmp_path: Path) -> None:
    """Neither in those of a notebook that starts the command, nor in those of a user's own figures."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\naxes.facecolor: red\n")
    notebook = "module://matplotlib_inline.backend_inline"
    pictures = []
    for settings in ({}, {"MPLBACKEND": notebook, "MATPLOTLIBRC": "matplotlibrc"}):
        ended = run_bsnn("figures", "only=activations", "formats=[svg]", cwd=tmp_path, **settings)
        assert ended.returncode == 0, ended.stderr
        pictures.append((tmp_path / "outputs/figures/activations.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_flags_may_stand_behind_the_overrides(tmp_path: Path) -> None:
    told = run_bsnn("train", "dataset=digits", "--info", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "Config search path" in told.stdout
    assert "only" not in told.stderr


def test_a_sweep_s_own_folder_may_be_given_again(tmp_path: Path) -> None:
    sweep = ["train", "-m", *small("optim.epochs=1"), "hydra.sweep.dir=mine"]
    for seed in range(2):
        ended = run_bsnn(*sweep, f"seed={seed}", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == 2
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("mine/**/orders.json")} == {
        "mine/orders.json", "mine/2/orders.json"
    }  # fmt: skip


def test_a_sweep_s_own_folder_that_is_a_file_is_named(tmp_path: Path, bsnn: Callable[..., Answer]) -> None:
    (tmp_path / "taken").touch()
    refused = bsnn("train", "-m", *small("seed=7"), "hydra.sweep.dir=taken")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: hydra.sweep.dir: cannot write taken: ")
