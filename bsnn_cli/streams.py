"""The standard streams of a process, made such that no text can end it."""

from __future__ import annotations

import io
import sys


def prepare() -> None:
    """Let the standard streams write what their encoding lacks, and names of files that are no text, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
