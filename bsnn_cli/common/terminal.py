"""Lines for the user beside a progress bar."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(line: str) -> None:
    """Print a line for the user on standard error, clear of a progress bar."""
    tqdm.write(line, file=sys.stderr)
