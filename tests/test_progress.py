"""The progress of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable

import pytest
import torch

from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.networks.training import Tick
from bsnn_cli.runs.progress import ProgressLog
from tests.conftest import SMALL, Answer


class Terminal:
    """A terminal as standard error, read all the time, since one that nobody reads blocks who writes."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        self.stream = open(theirs, "w")  # noqa: SIM115 - closed by `text`
        self._text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while content := os.read(self._ours, 1 << 16):
                self._text += content.decode(errors="replace")

    def text(self) -> str:
        """All that has been written, once it is over."""
        self.stream.close()
        self._reader.join()
        os.close(self._ours)
        return self._text


@pytest.mark.parametrize("columns", [0, 120])
def test_a_terminal_sees_loss_accuracy_speed_and_time_left(
    columns: int, bsnn: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(columns)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        patch.setattr("bsnn_cli.runs.progress.REFRESH_S", 0.0)
        assert bsnn("train", *SMALL).returncode == 0
    frames = terminal.text().split("\r")
    assert any("training:" in frame and "%|" in frame and "/46 [" in frame and "loss 2." in frame for frame in frames)
    last = [frame for frame in frames if "46/46" in frame][-1]
    assert "step/s" in last
    assert "<00:00" in last
    assert "after epoch 2" in last if columns else "loss" in last  # the rest does not fit into 80 columns


def test_it_can_be_switched_off(bsnn: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(120)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        assert bsnn("train", *SMALL, "progress=false").returncode == 0
    assert terminal.text() == ""


INTRODUCTION = r"outputs/runs/digits/selu_gpn/\w+-s0: cpu, 1 thread; 1,342 parameters; 2 epochs of 23 steps"
SPEED = r"\d\S* steps/s"
TIME_LEFT = r"about \d\S* \w+ left, until .*\d\d:\d\d"


def test_a_log_of_a_short_run_has_one_line(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("train", *SMALL)
    assert result.returncode == 0
    [line] = result.stderr.splitlines()
    assert re.fullmatch(INTRODUCTION, line), line
    assert bsnn("train", *SMALL, "force=true", "progress=false").stderr == ""


def test_a_log_has_a_line_for_each_epoch_with_speed_and_time_left(
    bsnn: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bsnn_cli.runs.progress.LINE_S", 0.0)
    result = bsnn("train", *SMALL, "dataset.validation=0.1")
    introduction, first_step, first, last = result.stderr.splitlines()
    assert re.fullmatch(INTRODUCTION.replace("23", "21"), introduction), introduction
    assert re.fullmatch(rf"step 1, loss 2\.\d{{3}}, {SPEED}, {TIME_LEFT}", first_step), first_step
    losses = r"train loss \d\.\d{3}, test loss \d\.\d{3}, validation \d\S+ %"
    assert re.fullmatch(rf"epoch 1/2, {losses}, test \d\S+ %, {SPEED}, {TIME_LEFT}", first), first
    end = re.fullmatch(rf"epoch 2/2, {losses}, train \d\S+ %, test (\d\S+) %, {SPEED}", last)
    assert end, last
    assert f"test {end[1]} %" in result.stdout


def test_a_log_of_a_fleet_has_means_and_counts_what_diverged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bsnn_cli.runs.progress.LINE_S", 0.0)
    log = ProgressLog(networks=3, done=5, epochs=2, per_epoch=10)
    log.tick(Tick(torch.tensor([1.0, float("nan"), 3.0])))
    record = EpochRecord(
        epoch=1, step=10, train_loss=0.5, test_loss=0.7, test_accuracy=90.0, train_accuracy=None,
        learning_rate=0.1, orthogonality_error=0.0, elapsed_s=1.0,
    )  # fmt: skip
    log.epoch([record, dataclasses.replace(record, train_loss=1.5, test_accuracy=80.0)])
    step, epoch = capsys.readouterr().err.splitlines()
    assert step.startswith("step 6, loss 2.000, ")
    assert epoch.startswith("epoch 1/2, train loss 1.000, test loss 0.700, test 85.00 %, 1 diverged, ")


def test_a_run_that_was_stopped_in_an_evaluation_goes_on_with_a_line_without_a_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bsnn_cli.runs.progress.LINE_S", 0.0)
    log = ProgressLog(networks=1, done=10, epochs=2, per_epoch=10)
    log.epoch(
        [
            EpochRecord(
                epoch=1, step=10, train_loss=0.5, test_loss=0.7, test_accuracy=90.0, train_accuracy=None,
                learning_rate=0.1, orthogonality_error=None, elapsed_s=1.0,
            )
        ]
    )  # fmt: skip
    assert capsys.readouterr().err == "epoch 1/2, train loss 0.500, test loss 0.700, test 90.00 %\n"
    log.tick(Tick(torch.tensor([1.0])))
    assert " steps/s, about " in capsys.readouterr().err
