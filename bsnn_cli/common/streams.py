"""Standard streams that take any message, whatever their encoding and whether or not anyone reads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from bsnn_cli.errors import BsnnError


class OutputError(BsnnError):
    """Standard output cannot be written."""


class _Stream:
    """A text stream that calls `failed` when a write fails; all else is delegated to the stream.

    Args:
        stream: to be written to.
        failed: gets the failure.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or lose it."""
        self._guarded(self._stream.flush)

    def _guarded(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except OSError as error:
            self._failed(error)


def prepare() -> None:
    """Prepare the standard streams for anything that is printed.

    - What an encoding lacks, and a file name that is no text, is written with escapes.
    - A stream that is closed is opened to nowhere. Otherwise the next file would take its place, and its messages.
    - A message on standard error that cannot be written is lost, and nothing else: the disk under a log may be full, or
      its reader gone.

    A failure of standard output raises an `OutputError`, or a `BrokenPipeError` if its reader has gone away.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _Stream(sys.stdout, _refuse)
    sys.stderr = _Stream(sys.stderr, lambda _: None)


def _refuse(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise error
    silence_output()
    raise OutputError(f"standard output: cannot be written ({error.strerror})") from error


def silence_output() -> None:
    """Redirect standard output to nowhere, so that its buffer does not fail when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
