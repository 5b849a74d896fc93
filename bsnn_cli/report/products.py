"""Everything that is made from stored results at the end: tables, figures, the report, and a copy for a repository."""

from __future__ import annotations

from pathlib import Path

from bsnn_cli.errors import BsnnError
from bsnn_cli.figures import figures
from bsnn_cli.report.export import export
from bsnn_cli.report.report import write_report
from bsnn_cli.results.kinds import KINDS
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import FiguresConfig


def make_all(output_root: str, export_folder: str | None, command: str) -> str:
    """Make what the stored numbers allow; returns lines for the terminal. What has no numbers yet is said, not raised.

    Args:
        output_root: folder with the results.
        export_folder: where a copy without weights goes, or None.
        command: that makes everything again; the page of the copy shows it.

    Raises:
        BsnnError: a file cannot be written, or runs contradict each other.
    """
    results, folder = Results(output_root), Path(output_root) / "tables"
    lines = []
    for kind, write in KINDS.items():
        if kind == "approaches" and not any(summary["approach"] for summary in results.measured):
            continue  # without a measurement it is only the paper's words
        try:
            text = write(results, folder)
        except BsnnError as error:
            text = f"{kind}: {error}"
        lines.append(text if kind == "accuracy" or "\n" not in text else f"Written: {text.rsplit(maxsplit=1)[-1]}")
    try:
        lines.append(figures.draw(FiguresConfig(output_root=output_root)).text)
    except BsnnError as error:
        lines.append(f"figures: {error}")
    lines.append(f"Report: {write_report(results)}")
    if export_folder is not None:
        lines.append(f"Copied to {export(results, Path(export_folder), command)}")
    return "\n\n".join(lines)
