"""Figures that compare networks by the numbers of `summary.json`: widths, and the approaches the paper names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bsnn_cli.figures.signals import Summary, counted, fresh, of_depth, power_of_ten, preferred, size_arguments
from bsnn_cli.figures.style import (
    DOUBLE,
    GREY,
    SINGLE,
    Missing,
    Picture,
    canvas,
    colour,
    key,
    label,
    legend_above,
    log_axis,
    note,
    split,
)
from bsnn_cli.settings.config import FiguresConfig

WIDTHS = (100, 250, 500, 1000, 1500)
"""The paper's."""

WIDTH_REPEATS = 5

APPROACHES = {
    "bsnn": "BSNN",
    "dynamical_isometry": "Dynamical isometry",
    "self_normalizing": "Self-normalising",
    "batch_norm": "Batch norm",
    "layer_norm": "Layer norm",
    "group_norm": "Group norm",
    "weight_norm": "Weight norm",
    "spectral_norm": "Spectral norm",
    "glorot": "Glorot initialisation",
    "lsuv": "LSUV initialisation",
    "residual": "Residual + batch norm",
}
"""As the figure names them, from top to bottom."""


def width(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Gradient norm ratio against width, Tanh-GPN and SELU-GPN."""
    names = ("tanh_gpn", "selu_gpn")
    repeated = preferred(each for each in of_depth(config) if each["activation"] in names and each["repeats"] > 1)
    absent = [each for each in WIDTHS if any((name, each) not in repeated for name in names)]
    if absent:
        many = ",".join(map(str, absent))
        command = f"bsnn propagate -m model.width={many} activation={','.join(names)} propagate.repeats={WIDTH_REPEATS}"
        arguments = size_arguments(FiguresConfig(depth=config.depth, output_root=config.output_root))
        yield Missing("width", f"repeated measurements at width {many}", command + arguments)
    if not repeated:
        return
    figure, [ax] = canvas(SINGLE, 2.6)
    for shift, name in zip((0.985, 1.015), names, strict=True):
        rows = pd.DataFrame([repeated[where] for where in sorted(repeated) if where[0] == name])
        if rows.empty:
            continue
        looks: dict[str, Any] = {
            "color": colour(split(name)[0]),
            "marker": "o",
            "markersize": 3.5,
            "capsize": 2.5,
            "elinewidth": 0.9,
        }
        ratio, spread = rows["gradient_norm_ratio"].astype(float), rows["gradient_norm_ratio_std"].astype(float)
        ax.errorbar(rows["width"] * shift, ratio, spread, label=label(*split(name)), **looks)
    shown = sorted({each for _, each in repeated})
    ax.set_xscale("log")
    ax.set_xlim(shown[0] / 1.25, shown[-1] * 1.25)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.set_ylim(bottom=1)
    ax.set_xlabel("width $n$ (units)")
    ax.set_ylabel("gradient norm ratio, max / min")
    ax.legend()
    small, sizes = counted(repeated.values())
    note(figure, small)
    yield Picture(
        "width",
        figure,
        "Largest over smallest ‖∂E/∂W^l‖_F of all layers, against the width: the wider, the more equal. Mean and "
        f"sample standard deviation over the repeats, the two activations set apart a little; 1 is equality. {sizes}.",
    )


PANELS: tuple[tuple[str, str, float, float], ...] = (
    ("forward_norm_last", "signal  $\\|x^{L+1}\\|^2/n$", 1e-8, 1e8),
    ("gradient_norm_ratio", "gradient norm ratio", 1.0, 1e20),
    ("derivative_std", "spread of slopes", 0.0, 0.8),
    ("one_minus_cosine_last", "$1 - \\cos$ of inputs", 1e-6, 100.0),
)
"""Of the comparison of approaches: number in `summary.json`, heading, and the range shown."""


def approaches(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """The approaches the paper compares, by the numbers at the end of the network."""
    sized = [each for each in fresh(config) if (each["depth"], each["width"]) == (config.depth, config.width)]
    of_approach: dict[str, list[Summary]] = {
        name: list(preferred(each for each in sized if each["approach"] == name).values()) for name in APPROACHES
    }
    absent = [name for name, rows in of_approach.items() if not rows]
    if absent:
        command = f"bsnn propagate -m approach={','.join(absent)}" + size_arguments(config)
        yield Missing("approaches", f"signals of {len(absent)} of {len(APPROACHES)} approaches", command)
    rows = [row for found in of_approach.values() for row in found]
    if not rows:
        return
    figure, axes = canvas(DOUBLE, 1.1 + 0.2 * len(rows), 1, len(PANELS), sharey=True)
    names = [f"{APPROACHES[row['approach']]} ({row['label']})" for row in rows]
    for ax, panel in zip(axes, PANELS, strict=True):
        compare(ax, rows, *panel)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5}
    legend_above(figure, [key("GPN", **dot), key("non-GPN", markerfacecolor="white", **dot)], 2)
    small, sizes = counted(rows)
    note(figure, small)
    yield Picture(
        "approaches",
        figure,
        "The approaches that the paper compares, at the start of training: squared length of the signal after the last "
        "layer; largest over smallest gradient norm of all layers; standard deviation of the slopes f'(h) in the last "
        "layer, 0 for a linear network; what is left to tell inputs apart. Dotted: as at the input. Filled: GPN. "
        f"Triangles point to values beyond the panel; without a gradient there is no ratio. {sizes}.",
    )


def compare(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, heading: str, low: float, high: float) -> None:
    """One number of each approach as a dot; what has no place on the axis in words, or as a triangle at its edge."""
    if low > 0:
        log_axis(ax, "x", low, high, ticks=5)
        ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    else:
        ax.set_xlim(low, high)
        ax.xaxis.set_major_locator(FixedLocator([0, 0.3, 0.6]))
    across = ax.get_yaxis_transform()  # x from 0 to 1 over the panel, y in data
    words: dict[str, Any] = {"fontsize": 7, "va": "center", "color": GREY, "transform": across}
    for place, row in enumerate(rows):
        base, gpn = split(row["activation"].removesuffix("-bn"))
        looks: dict[str, Any] = {
            "color": colour(base),
            "clip_on": False,
            "markerfacecolor": colour(base) if gpn else "white",
        }
        value, spread = row[name], row[f"{name}_std"]
        if value is None:
            ax.text(0.5, place, "not defined", ha="center", **words)
        elif value < low:
            ax.plot(0, place, "<", markersize=4.5, transform=across, **looks)
            ax.text(0.07, place, "0" if value == 0 else power_of_ten(value), ha="left", **words)
        elif value > high:
            ax.plot(1, place, ">", markersize=4.5, transform=across, **looks)
            ax.text(0.93, place, power_of_ten(value), ha="right", **words)
        else:
            ax.errorbar(value, place, xerr=spread, fmt="o", markersize=4.5, elinewidth=0.9, **looks)
    ax.set_title(heading, pad=7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", visible=False)
