"""The figure of networks of other kinds, such as a user's own: signals and gradients over the calls of their layers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bsnn_cli.figures.figure import (
    COLOURS,
    DOUBLE,
    Axis,
    Figure,
    Missing,
    Panel,
    Series,
    decades,
    extent,
    layer_axis,
)
from bsnn_cli.figures.signals import HIGHEST, LOWEST, Line
from bsnn_cli.results.statistics import axis_order
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import FiguresConfig

QUANTITIES = {
    "forward_norm": "$\\|x^l\\|^2/n$",
    "backward_norm": "$\\|\\partial E_b/\\partial x^l\\|^2/n$",
    "gradient_norm": "$\\|\\partial E/\\partial W^l\\|_F$",
}
"""Columns of `layers.csv` that are drawn against the row."""


def networks(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Draw the norms of signals, of their gradients and of those of weights, for each network of `Results.networks`.

    Where there are none, this is said only to who asks for this figure: the others need no such network.
    """
    if not stored.networks:
        if config.only == "networks":
            yield Missing("networks", "signals of networks of your own", "bsnn propagate network=FILE.py:FUNCTION")
        return
    summaries = sorted(stored.networks, key=lambda summary: axis_order(summary["label"]))
    labels = Counter(summary["label"] for summary in summaries)
    inks = itertools.cycle(COLOURS.values())
    dashes = [dash for dash in ("-", "--", "-.", ":") for _ in COLOURS]
    lines = []
    for summary, ink, dash in zip(summaries, inks, itertools.cycle(dashes), strict=False):
        directory = Path(summary["directory"]).name
        name = summary["label"] if labels[summary["label"]] == 1 else f"{summary['label']}, {directory}"
        lines.append(Line(name, "", [summary], {"colour": ink, "dash": dash}))
    tables = [line.table() for line in lines]
    calls = layer_axis(max(summary.get("calls", summary["depth"]) for summary in summaries))
    panels = []
    for quantity, words in QUANTITIES.items():
        shown = [
            table[table["weights"] > 0] if quantity == "gradient_norm" and "weights" in table else table
            for table in tables
        ]
        values = pd.concat([table[quantity] for table in shown]).dropna()
        low, high = decades([*values, 0.1, 10.0], LOWEST)
        axis = Axis(words, log=True, limits=(low, min(high, HIGHEST)))
        series = [line.series(table, quantity) for line, table in zip(lines, shown, strict=True)]
        panels.append(Panel(Axis("call $l$", limits=calls.limits, ticks=calls.ticks), axis, series))
    inputs, repeats = (extent(summary[key] for summary in summaries) for key in ("inputs", "repeats"))
    bands = any(summary["repeats"] > 1 for summary in summaries)
    layers = any("widths" in summary for summary in summaries)
    notes = " Of layers whose width changes, the gradient is that of the preactivations." if layers else ""
    notes += " Shaded: one sample standard deviation over the repeats, as a factor." if bands else ""
    yield Figure(
        "networks",
        panels,
        "Squared length per entry of what enters each layer, the same of its gradient, and the Frobenius norm of the "
        "gradient of the layer's weights, against the call of the layer in the order of execution; weights that are "
        f"vectors, as those of normalisations, are left out.{notes} {inputs} inputs, repeats (seeds): {repeats}.",
        f"{inputs} inputs, repeats: {repeats}",
        [Series(line.name, **line.looks) for line in lines],
        3,
        (DOUBLE, 2.4 + 0.16 * (len(lines) // 3)),
    )
