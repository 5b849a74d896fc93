"""Draw a prediction with what was measured beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures.figure import DOUBLE, Axis, Figure, Panel, Series, decades, layer_axis
from bsnn_cli.figures.printing import render, write
from bsnn_cli.figures.theory import law_in_words
from bsnn_cli.settings.choices import FORMATS
from bsnn_cli.settings.options import complaint
from bsnn_cli.theory.prediction import QUANTITIES, Prediction

if TYPE_CHECKING:
    import matplotlib.figure

LABELS = {
    "length": "$\\|x^{l+1}\\|^2/n$",
    "one_minus_cosine": "$1 - \\cos$",
    "gradient": "$\\|\\partial E/\\partial h^l\\|^2$",
}
"""Axes of `prediction.QUANTITIES`."""

TITLES = {"length": "length", "one_minus_cosine": "angle", "gradient": "gradient"}

DOTS = 25
"""At most, of a measured quantity."""

LEAST = 1e-300
"""Smaller values run out of their panel."""


def plot(prediction: Prediction, path: str | Path | None = None) -> matplotlib.figure.Figure:
    """Draw a prediction over the layers, with what was measured if it has that, and write it to a file if one is given.

    Args:
        prediction: of `predict`.
        path: a file that ends in .png, .svg or .pdf.

    Returns:
        the matplotlib figure; `savefig` and `axes` are at hand.

    Raises:
        ConfigError: the file has another ending.
        RunDirectoryError: the file cannot be written.
    """
    form = None if path is None else Path(path).suffix.removeprefix(".")
    if form is not None and form not in FORMATS:
        raise ConfigError(complaint("path", str(path), "a file that ends in ." + ", .".join(FORMATS), FORMATS))
    drawn = render(describe(prediction))
    if path is not None:
        write(drawn, Path(path), str(form))
    return drawn


def describe(prediction: Prediction) -> Figure:
    """Return the description of the figure: length, angle and gradient with bands, and the largest singular value."""
    p = prediction
    panels = [_panel(p, quantity) for quantity in QUANTITIES]
    largest = p.layers[p.layers["jacobian_largest"].between(0, math.inf, inclusive="neither")]
    y = Axis("of $\\partial x^{l+1}/\\partial x^1$", log=True, limits=decades(largest["jacobian_largest"]))
    series = [Series("largest singular value", largest["layer"], largest["jacobian_largest"], _colour(p))]
    panels.append(Panel(layer_axis(p.depth), y, series, "largest singular value"))
    over = f"geometric mean over {p.networks} networks" if p.networks else "one network"
    law = law_in_words(p.weights.kind, p.weights.sigma_w, p.weights.sigma_b)
    return Figure(
        "prediction",
        panels,
        f"{p.name}, {p.depth} layers of {p.width} units, {law}. Lines: predicted at infinite width; shaded: where the "
        f"{over} must lie; dots: measured.",
        f"{p.name}; n = {p.width} units, {law}; shaded: {over}",
        [Series("predicted"), *([Series("measured", dash="", marker="o")] if p.networks else [])],
        2,
        (DOUBLE, 4.0),
        point=2.4,
    )


def _colour(prediction: Prediction) -> str:
    """Return the activation that the colour is of; those without a name share one."""
    return prediction.base or prediction.name


def _panel(prediction: Prediction, quantity: str) -> Panel:
    layers, name = prediction.layers, _colour(prediction)
    band: dict[str, Any] = {"low": layers[f"{quantity}_low"], "high": layers[f"{quantity}_high"]}
    series = [Series("predicted", layers["layer"], layers[quantity], name, **band)]
    seen = [*layers[quantity], *layers[f"{quantity}_low"], *layers[f"{quantity}_high"]]
    if prediction.networks:
        points = layers.iloc[:: -(-prediction.depth // DOTS)]
        series.append(Series("measured", points["layer"], points[f"{quantity}_measured"], name, dash="", marker="o"))
        seen += [*points[f"{quantity}_measured"]]
    y = Axis(LABELS[quantity], log=True, limits=decades(seen, least=LEAST, margin=0.1))
    return Panel(layer_axis(prediction.depth), y, series, TITLES[quantity])
