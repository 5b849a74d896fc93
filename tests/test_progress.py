"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import termios
import threading
from collections.abc import Callable

import pytest

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


def test_elsewhere_it_is_quiet(bsnn: Callable[..., Answer]) -> None:
    result = bsnn("train", *SMALL)
    assert (result.returncode, result.stderr) == (0, "")
