"""Lines, columns and durations for the user's terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from tqdm import tqdm


def say(line: str) -> None:
    """Print a line for the user on standard error, clear of a progress bar."""
    tqdm.write(line, file=sys.stderr)


class StatusLine:
    """A line at the bottom of the terminal on standard error that is written anew; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, disable=None)

    def show(self, text: str) -> None:
        """Replace the line; what does not fit into the terminal is cut off."""
        self._bar.set_description_str(text)

    def close(self) -> None:
        """Remove the line."""
        self._bar.close()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of text whose columns are two spaces apart; a row may have fewer cells than others."""
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def duration(seconds: float) -> str:
    """Return a duration as people write it, such as "3 min"."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
