"""The phase diagram of activations: where signals become parallel, and where they part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bsnn_cli.figures.figure import DOUBLE, Axis, Figure, Missing, Panel, Series, Text, label
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import PAPER_ACTIVATIONS
from bsnn_cli.settings.config import FiguresConfig
from bsnn_cli.theory.phase_diagram import edge

WIDEST = {"": (0.0, 5.0), "_gpn": (0.5, 2.5)}
"""Shown of σ_w²."""

HIGHEST = (-0.12, 3.0)
"""Shown of σ_b²."""


def phase_diagram(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - needs no numbers
    """The edge of chaos of the paper's activations, as they are and normalised."""
    y = Axis("variance of biases $\\sigma_b^2$", limits=HIGHEST)
    panels = []
    for form, title in (("", "$\\varphi$ as it is"), ("_gpn", "GPN: $f = a\\varphi + b$")):
        x = Axis("$n\\,\\cdot$ variance of weights, $\\sigma_w^2$", limits=WIDEST[form])
        texts = [
            Text("ordered", 0.04, 0.93, align=("left", "center")),
            Text("chaotic", 0.96, 0.07, align=("right", "bottom")),
        ]
        if form:
            texts.append(Text("all at (1, 0)", 1.0, 0.0, "xy", ("right", "bottom"), (-7, 1)))
        panels.append(
            Panel(x, y, [part for name in PAPER_ACTIVATIONS for part in curve(name, form)], title, texts=texts)
        )
    yield Figure(
        "phase_diagram",
        panels,
        "The edge of chaos of the paper's six activations, on which the slope χ₁ = σ_w² E[f'(√v z)²] of the "
        "correlation map at equal signals is 1: to its left signals become parallel and gradients vanish (ordered), "
        "to its right nearly equal signals part and gradients explode (chaotic). Dotted: lengths there are not "
        "stable. ReLU and LReLU have an edge of a single point. Left: each φ has its edge elsewhere. Right: GPN puts "
        "all of them at (1, 0), plain orthogonal weights without biases, at signals of ‖x‖²/n = 1; from there the edge "
        "goes on to larger biases. Infinite width; orthogonal and Gaussian weights alike.",
        "infinite width; dotted: lengths are not stable",
        [Series(label(name), activation=name) for name in PAPER_ACTIVATIONS],
        2,
        (DOUBLE, 3.1),
        point=4,
    )


def curve(name: str, form: str) -> Sequence[Series]:
    """Return the edge of one activation: a line, dotted where lengths are not stable, and a dot if it is a point."""
    points = edge(name + form)
    if points["sigma_b_squared"].max() == 0:
        place = points.iloc[0]
        marker = "o" if name == "relu" else "x"  # both are seen where they are at one place
        return [Series(label(name + form), [place["sigma_w_squared"]], [0.0], name, "", marker, hollow=True)]
    stable = points["chi"] < 1
    return [
        Series(label(name + form), part["sigma_w_squared"], part["sigma_b_squared"], name, dash)
        for part, dash in ((points[stable], "-"), (points[~stable], ":"))
        if len(part) > 0
    ]
