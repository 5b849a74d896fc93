"""The interactive plots of the report as plain data, from the descriptions of the printed figures. Computes nothing.

A plot is `{"panels": [...], "series": [...]}`; the script in the page draws it and lets a reader choose. Panels of
one quantity are one panel here. A series belongs to a panel, to a `group` that can be switched on and off, such as an
activation, and to a `facet`, of which one is shown at a time; the facet "" belongs to all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from bsnn_cli.figures import signals, theory, trained, tuning
from bsnn_cli.figures.figure import Axis, Figure, Missing, Series, label
from bsnn_cli.results.statistics import COMPARED_KEYS
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS, AUTO_ROOT, FORMS
from bsnn_cli.settings.config import FiguresConfig

Plot = dict[str, Any]

DASHES = {"-": "", "--": "dash", "-.": "dashdot", ":": "dot", "": ""}

SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "p": "pentagon",
           "x": "x-thin"}  # fmt: skip
"""Markers; those that mean something on paper alone are circles."""

SIGNS = {"\\|": "‖", "\\partial ": "∂", "\\varphi": "φ", "\\geq": "≥", "\\varepsilon": "ε", "\\cos": "cos",
         "\\,": ""}  # fmt: skip
"""Mathematics of labels, as the page writes it."""

STARTS = {"signals": ["Tanh", "SELU"], "slopes": ["Tanh", "SELU"], "lengths": ["Tanh", "GELU"],
          "angles": ["Tanh", "GELU"], "gradients": ["Tanh", "GELU"],
          "theorems": ["Tanh", "ReLU", "ELU", "SELU", "GELU"]}  # fmt: skip
"""Groups that are switched on at first; in other plots all are."""


def plots(stored: Results) -> dict[str, Plot]:
    """Return all plots that there are numbers for."""
    config = headline(stored)
    networks = [name + form for name in AUTO_ROOT for form in FORMS]
    with_gpn = [f"{name}_gpn" for name in AUTO_ROOT]
    both_roots = config
    if not stored.root_signals.empty:
        depth, width = stored.root_signals[["depth", "width"]].mode().iloc[0]
        both_roots = dataclasses.replace(config, depth=int(depth), width=int(width))
    sizes = sorted({(row["depth"], row["width"]) for row in stored.measured if row["trained"] is not None})
    figures: dict[str, Iterable[Figure | Missing]] = {
        "curves": trained.of_epochs(stored),
        "tuning": tuning.tuning(stored, config),
        "signals": signals.propagation_all(stored, config, networks),
        "slopes": signals.derivatives(stored, config, networks),
        "widths": signals.width(stored, config, with_gpn),
        "theorems": theory.theorems(stored, config),
        "lengths": theory.lengths(stored, config),
        "angles": theory.angles(stored, config),
        "gradients": theory.gradients(stored, config),
        "trained": [figure for size in sizes for figure in trained.trained_signals(stored, *size)],
        "roots": signals.root_signals(stored, both_roots, list(AUTO_ROOT)),
    }
    made = {name: plot([part for part in parts if isinstance(part, Figure)]) for name, parts in figures.items()}
    for name, groups in STARTS.items():
        made[name]["start"] = groups
    return {name: plot for name, plot in made.items() if any(len(series["x"]) > 1 for series in plot["series"])}


def headline(stored: Results) -> FiguresConfig:
    """Return the size whose signals are shown: the paper's, or else the one that most networks are measured at."""
    config = FiguresConfig(output_root=str(stored.root))
    sizes = [(summary["depth"], summary["width"]) for summary in stored.measured if summary["approach"] is None]
    if sizes and (config.depth, config.width) not in sizes:
        config.depth, config.width = max(sizes, key=sizes.count)
    return config


def plot(figures: Iterable[Figure]) -> Plot:
    """Return one plot of all panels of some figures, with the caption of each facet."""
    panels: dict[tuple[str, str], dict[str, Any]] = {}
    series: list[dict[str, Any]] = []
    captions: dict[str, str] = {}
    for figure in figures:
        for part in figure.panels:
            captions[part.facet] = figure.caption
            labels = part.x.label, part.y.label
            words = {"place": len(panels), "x": html(labels[0]), "y": html(labels[1])}
            panel = panels.setdefault(labels, words | scales(part))
            place = panel["place"]
            if "range" in panel:  # of all facets
                ends = [*panel["range"], *scales(part)["range"]]
                panel["range"] = [min(ends), max(ends)]
            series += [trace(line, part.y) | {"panel": place, "facet": part.facet} for line in part.series]
    ranks = {group: rank for rank, group in enumerate(ACTIVATION_LABELS.values())}
    series.sort(key=lambda line: ranks.get(line["group"], len(ranks)))  # stable
    facets = sorted(captions, key=lambda facet: any(key in facet for key in COMPARED_KEYS))
    return {"panels": list(panels.values()), "series": series, "facets": facets, "captions": captions}


def scales(panel: Any) -> dict[str, Any]:
    """Return what the axes of a panel show."""
    shown: dict[str, Any] = {"logx": panel.x.log, "logy": panel.y.log}
    if panel.x.log:
        shown["ticks"] = list(panel.x.ticks)
    if panel.y.limits is not None:
        shown["range"] = [math.log10(limit) if panel.y.log else limit for limit in panel.y.limits]
    if panel.y.mark is not None:
        shown["mark"] = panel.y.mark
    return shown


def trace(series: Series, axis: Axis) -> dict[str, Any]:
    """Return one line; what is not finite, or has no place on a logarithmic axis, is a gap."""
    mode = "markers" if not series.dash else "lines+markers" if series.marker and not series.sparse else "lines"
    group = label(series.activation) if series.activation else series.name
    found: dict[str, Any] = {
        "name": html(series.name),
        "colour": series.ink,
        "group": group,
        "dash": DASHES[series.dash],
    }
    found |= {"mode": mode, "hollow": series.hollow, "spread": series.spread}
    found |= {"symbol": SYMBOLS.get(series.marker, "circle")}
    found |= {"x": numbers(series.x), "y": numbers(series.y, axis.log)}
    if series.low is not None and series.high is not None:
        found |= {"low": numbers(series.low, axis.log), "high": numbers(series.high, axis.log)}
    return found


def numbers(values: Iterable[Any], positive: bool = False) -> list[float | None]:
    """Return five digits of each value; None for what is not finite, or not positive where it has to be."""
    floats = [float(value) for value in values]
    return [float(f"{x:.5g}") if math.isfinite(x) and (x > 0 or not positive) else None for x in floats]


def html(text: str) -> str:
    """Return a label with the mathematics between its dollar signs as HTML: `$x^l$` becomes `x<sup>l</sup>`."""
    return re.sub(r"\$(.*?)\$", lambda found: mathematics(found[1]), text).replace("\n", "<br>")


def mathematics(text: str) -> str:
    """Return a formula as HTML."""
    for sign, written in SIGNS.items():
        text = text.replace(sign, written)
    text = re.sub(r"\^(?:\{(.*?)\}|(\w))", r"<sup>\1\2</sup>", text)
    return re.sub(r"_(?:\{(.*?)\}|(\w))", r"<sub>\1\2</sub>", text)
