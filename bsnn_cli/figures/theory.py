"""Figures of the theorems over width, and of lengths and angles over depth, from `theory.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bsnn_cli.figures.style import (
    DOUBLE,
    GREY,
    Missing,
    Picture,
    canvas,
    colour,
    elsewhere,
    key,
    legend_above,
    log_axis,
    note,
)
from bsnn_cli.settings.choices import ACTIVATION_LABELS, AUTO_ROOT
from bsnn_cli.settings.config import FiguresConfig

DEPTH_AWARE = "_d"
"""Ends the name of a tailored activation in `theory.csv`."""

CASES = {
    "none": "assumptions hold",
    "haar": "$W = I$, spiky $x$",
    "shell": "$\\|x\\|^2/n = 2$",
    "gpn": "$\\varphi$ not normalised",
}
"""Columns of the figure of the theorems."""

LENGTHS = (1e-4, 1e4)
"""Shown."""

ANGLES = (1e-4, 2.0)

UNSEEN = 0.012
"""Two probabilities that differ by less are closer than a line is wide."""

Numbers = tuple[pd.DataFrame | None, list[Missing]]


def theory(config: FiguresConfig, name: str) -> Numbers:
    """The stored `theory.csv`, or what makes it."""
    path = Path(config.output_root) / "theory" / "theory.csv"
    if path.exists():
        return pd.read_csv(path), []
    return None, [Missing(name, "theory.csv is", f"bsnn theory{elsewhere(config)}")]


def order(rows: pd.DataFrame) -> list[str]:
    """The activations that occur, as tables order them; a user's own come last."""
    known = [name + form for name in AUTO_ROOT for form in ("", DEPTH_AWARE)]
    names = list(rows["activation"].dropna().unique())  # rows of the input alone have none
    return [name for name in known if name in names] + [name for name in names if name not in known]


def base(name: str) -> str:
    """Without the mark of a depth-aware form."""
    return name.removesuffix(DEPTH_AWARE)


def heading(name: str) -> str:
    """As legends show it."""
    return ACTIVATION_LABELS.get(base(name), base(name)) + (", depth-aware" if name.endswith(DEPTH_AWARE) else "")


def root_in_use(rows: pd.DataFrame, name: str) -> str:
    """The solution b that `root=auto` takes."""
    if base(name) in AUTO_ROOT:
        return AUTO_ROOT[base(name)]
    upper = rows[(rows["activation"] == name) & (rows["root"] == "upper")]["chi"]
    return "upper" if (upper <= 1 + 1e-9).all() else "lower"


def theorems(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Probability of a deviation against width, for both theorems and each assumption broken."""
    table, missing = theory(config, "theorems")
    yield from missing
    if table is None:
        return
    figure, axes = canvas(DOUBLE, 3.6, 2, len(CASES), sharex=True, sharey=True)
    rows = table[table["estimate"].notna()]
    widths = sorted(rows["width"].unique())
    for row, what in enumerate(("theorem_1", "theorem_2")):
        for column, (case, words) in enumerate(CASES.items()):
            ax = axes[row * len(CASES) + column]
            for name in order(rows):
                own = rows[(rows["what"] == what) & (rows["case"] == case) & (rows["activation"] == name)]
                looks: dict[str, Any] = {"color": colour(base(name))}
                ax.plot(own["width"], own["estimate"], marker="o", markersize=2, linewidth=1, **looks)
                ax.vlines(own["width"], own["low"], own["high"], linewidth=0.8, **looks)
            if row == 0:
                ax.set_title(words)
            else:
                ax.set_xlabel("width $n$ (units)")
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(widths[:: 2 if len(widths) > 4 else 1]))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    input_rows = rows[(rows["what"] == "tsc") & (rows["case"] == "none")]
    axes[0].plot(input_rows["width"], input_rows["estimate"], color=GREY, linestyle=":", linewidth=1.6)
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].set_ylabel("Theorem 1\n$P(\\geq\\varepsilon)$")
    axes[len(CASES)].set_ylabel("Theorem 2\n$P(\\geq\\varepsilon)$")
    handles = [key(heading(name), color=colour(base(name))) for name in order(rows)]
    legend_above(figure, [*handles, key("input (TSC)", linestyle=":")], 7)
    epsilon, trials = rows["epsilon"].iloc[0], rows["trials"].iloc[0]
    note(figure, f"deviation of ε = {epsilon:.3f} or more; {trials:.0f} draws a point, bars: 95 % intervals")
    yield Picture(
        "theorems",
        figure,
        "Probability that a squared length per unit is off by ε or more after one layer, against the width: of the "
        "signal (Theorem 1, top; dotted: of the Gaussian input itself) and of the gradient (Theorem 2, bottom). Left: "
        "all assumptions hold, and it falls to 0; then one assumption is broken at a time, which not every activation "
        "minds: the identity is normalised as it is, SELU nearly. A spiky x has one entry that is not 0. "
        f"{under(rows)}ε = {epsilon:.3f}, n = {trials:.0f} draws a point, bars: 95 % Wilson intervals.",
    )


def under(rows: pd.DataFrame) -> str:
    """Names the activations whose lines lie under those of another one in every panel of the theorems."""
    drawn = rows[rows["what"].str.startswith("theorem")]
    table = drawn.pivot_table(index=["what", "case", "width"], columns="activation", values="estimate")
    names = order(drawn)
    words = []
    for place, name in enumerate(names):
        above = [other for other in names[place + 1 :] if (table[name] - table[other]).abs().max() < UNSEEN]
        words += [f"{heading(name)} under {heading(above[-1])}"] if above else []
    return f"Everywhere under another line: {', '.join(words)}. " if words else ""


def lengths(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Length of a signal over depth, predicted by the variance map and measured."""
    table, missing = theory(config, "lengths")
    yield from missing
    if table is not None:
        yield over_depth(
            table,
            "length",
            "$\\|x^{l+1}\\|^2/n$",
            LENGTHS,
            "Squared length per unit of a signal that starts at 0.5, 1 or 2, against the layer. GPN makes 1 a fixed "
            "point; whether lengths return to it is decided by the slope χ of the variance map: the upper root b of "
            "GELU, SiLU, Mish and Softplus has χ > 1 and drives them away (from 1 itself, chance decides where to), "
            "their lower root does not.",
        )


def angles(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Angle between two signals over depth, predicted by the correlation map and measured."""
    table, missing = theory(config, "angles")
    yield from missing
    if table is not None:
        yield over_depth(
            table,
            "angle",
            "$1 - \\cos$",
            ANGLES,
            "What is left to tell two inputs apart: 1 − cosine of two signals that start orthogonal, against the "
            "layer. GPN keeps lengths, yet angles close: like 1/l for a smooth φ, like 1/l² for one with a kink as "
            "strong as ReLU's.",
        )


def over_depth(table: pd.DataFrame, what: str, axis: str, span: tuple[float, float], caption: str) -> Picture:
    """Predicted (line) and measured (dots) against the layer, a panel for each activation.

    Args:
        table: `theory.csv`.
        what: `length` or `angle`.
        axis: name of the quantity.
        span: values shown.
        caption: what there is to see.
    """
    rows = table[table["what"] == what]
    names = order(rows)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = canvas(
        DOUBLE,
        0.6 + 1.35 * lines,
        lines,
        columns,
        sharex=True,
        sharey=True,
    )
    depth = int(rows["layer"].max())
    for ax, name in zip(axes, names, strict=False):
        for (root, _), path in rows[rows["activation"] == name].groupby(["root", "start"], dropna=False):
            dashes = "--" if not isinstance(root, str) else "-" if root == root_in_use(rows, name) else ":"
            follow(ax, path.sort_values("layer"), colour(base(name)), dashes, span)
        ax.set_title(heading(name), pad=3)
        log_axis(ax, "y", *span, ticks=5)
        log_axis(ax, "x", 0.85, 1.2 * depth, ticks=4)  # dots at the ends stay whole
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax in axes[: len(names)][-columns:]:
        ax.set_xlabel("layer $l$")
        ax.tick_params(labelbottom=True)
    for ax in axes[::columns]:
        ax.set_ylabel(axis)
    handles = [
        key("GPN"),
        key("GPN, other root", linestyle=":"),
        key("non-GPN", linestyle="--"),
        key("measured", linestyle="", marker="o", markersize=3),
    ]
    legend_above(figure, handles, 4)
    n, networks = rows["width"].iloc[0], rows["trials"].iloc[0]
    note(figure, f"n = {n:.0f} units, geometric mean over {networks:.0f} networks; lines: infinite width")
    return Picture(
        f"{what}s",
        figure,
        f"{caption} Lines: predicted at infinite width; dots: geometric mean over {networks:.0f} random orthogonal "
        f"networks of n = {n:.0f} units; shaded: where the dots must lie by the theory of fluctuations at this width, "
        "left out for the root of b that is not in use (dotted, open dots), as are values below a panel. "
        f"L = {depth} layers.",
    )


def follow(ax: Axes, path: pd.DataFrame, colour: str, dashes: str, span: tuple[float, float]) -> None:
    """One form of an activation from one start: prediction, band and measured dots.

    The band of the root that is not in use (dotted) is left out: where χ > 1, it soon is all there is.
    """
    layer, in_use = path["layer"], dashes != ":"
    if in_use:
        band = (path["band_low"].clip(lower=span[0]), path["band_high"].clip(upper=span[1]))
        ax.fill_between(layer, *band, color=colour, alpha=0.15, linewidth=0)
    ax.plot(layer, path["predicted"], color=colour, linestyle=dashes, linewidth=1.1)
    dots = path[
        [number & (number - 1) == 0 or number == layer.max() for number in layer.astype(int)]
    ]  # 1, 2, 4, … and the last
    fill = colour if in_use else "white"
    ax.plot(dots["layer"], dots["measured"], color=colour, linestyle="", marker="o", markersize=2.4,
            markerfacecolor=fill, markeredgewidth=0.7)  # fmt: skip
