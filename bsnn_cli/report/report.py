"""`bsnn report`: one self-contained HTML page of everything that is stored."""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bsnn_cli.common import checkout, provenance
from bsnn_cli.common.files import write_text
from bsnn_cli.common.table import to_html
from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.report import provenance_table, report_plots, report_tables
from bsnn_cli.results import comparison_tables, statistics
from bsnn_cli.results.approach_table import COMMAND as APPROACHES_COMMAND
from bsnn_cli.results.store import Results

TEMPLATE = "report.html.jinja"


def write_report(stored: Results) -> Path:
    """Write `report/index.html` under the output folder; returns its path.

    Raises:
        RunDirectoryError: it cannot be written, or runs contradict each other.
    """
    path = stored.root / "report" / "index.html"
    text = render(context(stored))
    try:
        write_text(path, text)
    except OSError as error:
        raise RunDirectoryError(f"output_root: cannot write {path}: {error.strerror}") from error
    return path


def context(stored: Results) -> dict[str, Any]:
    """Return everything that the template shows."""
    runs = report_tables.runs(stored)
    measured = [provenance_table.of_directory(summary["directory"]) for summary in stored.summaries]
    origins = [*(row for run in runs for row in run["made"]), *measured]
    commit, dirty = checkout.state()
    return {
        "written": provenance_table.minute(provenance.now()),
        "version": provenance.package_version(),
        "commit": provenance.commit({"commit": commit, "dirty": dirty}),
        "counts": counts(stored),
        "sections": report_tables.accuracy(stored),
        "steps": report_tables.STEPS,
        "plots": report_plots.plots(stored),
        "approaches": report_tables.approaches(stored),
        "theorem_checks": report_tables.theorem_checks(stored),
        "constraint": comparison_tables.constraint_table(stored.constraint),
        "root_signals": comparison_tables.root_signals_table(stored.root_signals),
        "roots": comparison_tables.roots_table(stored.roots),
        "legends": {
            "constraint": comparison_tables.CONSTRAINT_LEGEND,
            "roots": comparison_tables.roots_legend(not stored.roots.empty),
        },
        "commands": {
            "accuracy": "bsnn reproduce profile=short",
            "paper": "bsnn reproduce profile=paper",
            "signals": "bsnn propagate -m activation=tanh,tanh_gpn,selu,selu_gpn",
            "widths": "bsnn propagate -m model.width=100,250,500 activation=tanh_gpn,selu_gpn propagate.repeats=5",
            "approaches": APPROACHES_COMMAND,
            "theory": "bsnn theory",
            "constraint": comparison_tables.CONSTRAINT_COMMAND,
            "roots": comparison_tables.ROOTS_COMMAND,
            "root_signals": comparison_tables.ROOT_SIGNALS_COMMAND,
        },
        "runs": runs,
        "places": provenance_table.table(origins),
    }


def counts(stored: Results) -> dict[str, Any]:
    """Return how much there is."""
    return {
        "runs": len(stored.finished),
        "measured": len(stored.summaries),
        "unfinished": "" if stored.runs.empty else statistics.unfinished(stored.runs),
        "numerics": ", ".join(sorted({str(int(value)) for value in stored.finished.get("numerics", [])})),
    }


def render(content: dict[str, Any]) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["html"] = lambda cell: Markup(to_html(cell))
    source = (resources.files("bsnn_cli.report") / TEMPLATE).read_text(encoding="utf-8")
    data = json.dumps(content["plots"], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    script = Markup(plotly()) if content["plots"] else ""
    # In a script element `<` is the one character that may end it; JSON can spell it otherwise.
    return environment.from_string(source).render(**content, plotly=script, data=Markup(data.replace("<", "\\u003c")))


@functools.cache
def plotly() -> str:
    """Return the library that draws the plots, which is put into the page."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
