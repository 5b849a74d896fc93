"""The kinds of tables that `bsnn table kind=` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsnn_cli.results.approach_table import write_approaches
from bsnn_cli.results.comparison_tables import write_constraint, write_roots
from bsnn_cli.results.question import ask
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import TableConfig

KINDS: dict[str, Callable[[Results, Path | None], str]] = {
    "accuracy": lambda results, folder: str(ask(results, folder, TableConfig())),
    "approaches": lambda results, folder: write_approaches(results.measured, folder),
    "constraint": lambda results, folder: write_constraint(results.constraint, folder),
    "roots": lambda results, folder: write_roots(results.roots, results.root_signals, folder),
}
"""Functions that write the files of each kind into a folder, unless that is None, and return text for the terminal."""
