"""The kinds of tables that `bsnn table kind=` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsnn_cli.results.approach_table import write_approaches
from bsnn_cli.results.comparison_tables import write_constraint, write_roots
from bsnn_cli.results.store import Results
from bsnn_cli.results.tables import write_tables

KINDS: dict[str, Callable[[Results, Path], str]] = {
    "accuracy": lambda results, folder: write_tables(results.runs, folder),
    "approaches": lambda results, folder: write_approaches(results.measured, folder),
    "constraint": lambda results, folder: write_constraint(results.constraint, folder),
    "roots": lambda results, folder: write_roots(results.roots, results.root_signals, folder),
}
"""Functions that write the files of each kind into a folder, and return the text for the terminal."""
