"""Draws a described figure with matplotlib for print and writes its files.

Figures are 3.4 or 7 inches wide, with text of 6 points or more at that size.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bsnn_cli.common.files import write_atomically
from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.figures.figure import GREY, Axis, Figure, Panel, Series
from bsnn_cli.results.captions import captions, write_captions
from bsnn_cli.settings.choices import FORMATS

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the dates of matplotlib's fonts

SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "lines.dashed_pattern": (4, 1.8),
    "errorbar.capsize": 2,
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "bsnn",  # the same numbers give the same bytes
}

UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata by format: the same numbers give the same bytes on any day."""

LONGEST = 120
"""Characters of a file's name, without its ending."""

NOTE_HEIGHT, NOTE_LETTER = 0.17, 0.054
"""Inches below the axes for each line of the note on sizes, and width of its letters."""

LEGEND_HANDLE = 0.46
"""Width in inches of the sign of an entry of a legend with what keeps it apart from others."""

AROUND = 0.6
"""Inches of a panel's width that its axis of heights and the room between panels take."""


@contextmanager
def settings() -> Iterator[None]:
    """Draw and save with these settings alone, whatever a user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def render(figure: Figure) -> matplotlib.figure.Figure:
    """Draw a figure; this takes no part in pyplot, so it needs no display."""
    with settings():
        (width, height), columns, panels = figure.size, figure.columns, figure.panels
        drawn = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        note = textwrap.wrap(figure.note, int(width / NOTE_LETTER))
        below = NOTE_HEIGHT * max(1, len(note)) / height
        drawn.get_layout_engine().set(rect=(0, below, 1, 1 - below))  # type: ignore[union-attr,call-arg]
        first: dict[tuple[str, Axis], Axes] = {}
        for place, panel in enumerate(panels):
            shared = {"sharex": first.get(("x", panel.x)), "sharey": first.get(("y", panel.y))}
            ax = drawn.add_subplot(-(-len(panels) // columns), columns, place + 1, **shared)
            for name, axis in (("x", panel.x), ("y", panel.y)):
                first.setdefault((name, axis), ax)
                _set_axis(ax, name, axis)
            if place + columns < len(panels) and panels[place + columns].x == panel.x:
                ax.tick_params(labelbottom=False)
            else:
                ax.set_xlabel(panel.x.label)
            if place % columns and panels[place - 1].y == panel.y:
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel(panel.y.label)
            _fill_panel(ax, panel, figure.point)
            if panel.legend:
                _add_legend(ax, panel, figure.point, width / columns - AROUND)
        drawn.align_ylabels()
        handles = [_line(entry, figure.point + 1) for entry in figure.legend]
        if handles:
            across = legend_columns(figure.legend, width)
            drawn.legend(
                handles=handles, loc="outside upper center", ncols=across, columnspacing=1.6, handletextpad=0.6
            )
        drawn.text(0.995, 0.01, "\n".join(note), ha="right", va="bottom", fontsize=7, color=GREY)
    return drawn


def legend_columns(legend: Sequence[Series], width: float) -> int:
    """Return the most columns of a legend that a figure of a width in inches has room for, at least one.

    The entries follow each other down the columns, of which the first ones hold one more where they do not come out
    even. A column is as wide as its longest entry.
    """
    with settings():
        widths = [
            LEGEND_HANDLE + TextPath((0, 0), entry.name, size=SETTINGS["legend.fontsize"]).get_extents().width / 72
            for entry in legend
        ]
    for columns in range(len(legend), 1, -1):
        if sum(max(part) for part in np.array_split(widths, columns)) <= width:
            return columns
    return 1


def legend_rows(legend: Sequence[Series], width: float) -> int:
    """Return the number of rows that a legend takes in a figure of a width in inches."""
    return -(-len(legend) // legend_columns(legend, width))


def _set_axis(ax: Axes, name: str, axis: Axis) -> None:
    drawn = getattr(ax, f"{name}axis")
    if axis.log:
        getattr(ax, f"set_{name}scale")("log")
        drawn.set_major_locator(LogLocator(numticks=5))
        drawn.set_minor_formatter(NullFormatter())
    if axis.limits is not None:
        getattr(ax, f"set_{name}lim")(axis.limits)
    if axis.whole:
        drawn.set_major_locator(MaxNLocator(6, integer=True))
    if axis.ticks:
        drawn.set_major_locator(FixedLocator(axis.ticks))
        drawn.set_minor_locator(NullLocator())
        drawn.set_major_formatter(FixedFormatter(axis.words or [f"{tick:g}" for tick in axis.ticks]))
    if axis.words:
        ax.tick_params(axis=name, length=0)  # type: ignore[arg-type]
    if axis.mark is not None:
        draw_mark = ax.axvline if name == "x" else ax.axhline
        draw_mark(axis.mark, color=GREY, linewidth=0.8, linestyle=":", zorder=1)


def _fill_panel(ax: Axes, panel: Panel, point: float) -> None:
    small: dict[str, Any] = {"fontsize": 6, "color": GREY, "ha": "center", "va": "bottom"}
    ax.set_title(panel.title, pad=12 if panel.subtitle else None)
    if panel.subtitle:
        ax.text(0.5, 1, panel.subtitle, transform=ax.transAxes, **small)
    for series in panel.series:
        _draw(ax, series, panel.y, point)
    for text in panel.texts:
        across, up = ("data" if name in text.data else "axes fraction" for name in "xy")
        looks: dict[str, Any] = {"weight": "bold", "fontsize": 6.7} if text.bold else {"color": GREY, "fontsize": 7}
        looks |= {"ha": text.align[0], "va": text.align[1], "textcoords": "offset points"}
        if text.align == ("center", "center"):  # in place of a number: it hides the lines behind it
            looks["bbox"] = {"color": "white", "pad": 1}
        ax.annotate(text.words, (text.x, text.y), text.shift, (across, up), **looks)


def _add_legend(ax: Axes, panel: Panel, point: float, width: float) -> None:
    """Put the legend of a panel above it, below its heading, with as many columns as a width in inches has room for."""
    ax.set_title("")
    entries = len(panel.legend)
    ax.legend(
        handles=[_line(entry, point) for entry in panel.legend],
        title=panel.title,
        title_fontsize=SETTINGS["axes.titlesize"],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=-(-entries // legend_rows(panel.legend, width)),  # of equal length as far as they can be
        columnspacing=1.2,
        handletextpad=0.6,
        labelspacing=0.25,
        borderpad=0.2,
    )


def _line(series: Series, point: float) -> Line2D:
    """Return a line or point that looks like a series, for a legend."""
    return Line2D([], [], label=series.name, **_looks(series, point))


def _looks(series: Series, point: float) -> dict[str, Any]:
    return {
        "color": series.ink,
        "linestyle": series.dash,
        "linewidth": 1.0 if series.marker else 1.3,
        "marker": series.marker,
        "markersize": point,
        "markerfacecolor": "white" if series.hollow else series.ink,
        "markevery": 0.12 if series.sparse else None,
    }


def _draw(ax: Axes, series: Series, axis: Axis, point: float) -> None:
    x, y = np.asarray(series.x, dtype=float) * series.nudge, np.asarray(series.y, dtype=float)
    looks = _looks(series, point)
    shade: dict[str, Any] = {"color": series.ink, "linewidth": 0}
    ends = None if series.low is None else np.asarray([series.low, series.high], dtype=float)
    floor, ceiling = axis.limits or (-np.inf, np.inf)
    if series.spread != "band":
        across = series.spread == "across"
        bars = None if ends is None else np.abs(ends - (x if across else y))
        # Bars across stand in charts of dots, where dots on the edge of a panel stay whole.
        options: dict[str, Any] = {"xerr": bars, "capsize": 0, "clip_on": False} if across else {"yerr": bars}
        ax.errorbar(x, y, elinewidth=0.9, **options, **looks)
        return
    ax.plot(x, y, **looks)
    if ends is not None:  # kept to the limits, as a vector graphic has no place for infinity
        ax.fill_between(x, *ends.clip(floor, ceiling), alpha=0.18, **shade)
    if series.filled:
        ax.fill_between(x, floor, y.clip(floor), alpha=0.3, **shade)


def file_name(*parts: Any) -> str:
    """Return parts joined by `_`, with nothing that a file system or a link minds; long ones end in a hash."""
    text = "_".join(str(part) for part in parts if part)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def save(figures: Sequence[Figure], directory: Path, formats: Sequence[str], afresh: bool = False) -> list[Path]:
    """Write every figure in every format, and the captions of all figures of the folder to `captions.md`.

    Args:
        figures: to be written.
        directory: the folder.
        formats: of `choices.FORMATS`.
        afresh: whether these are all there are: other figures that `captions.md` names are removed, in all formats.

    Raises:
        RunDirectoryError: a file cannot be written.
    """
    written = []
    try:
        for figure in figures:
            drawn = render(figure)
            for form in formats:
                path = directory / f"{figure.name}.{form}"
                _save(drawn, path, form)
                drawn.set_layout_engine("none")  # the layout of the first format serves the others
                written.append(path)
        texts = {figure.name: figure.caption for figure in figures}
        before = captions(directory)
        for name in before.keys() - texts.keys() if afresh else ():
            for form in FORMATS:
                (directory / f"{name}.{form}").unlink(missing_ok=True)
        write_captions(directory, texts if afresh else before | texts)
    except OSError as error:
        raise RunDirectoryError(f"output_root: cannot write {directory}: {error.strerror}") from error
    return written


def write(drawn: matplotlib.figure.Figure, path: Path, form: str) -> None:
    """Write one drawn figure to a file.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    try:
        _save(drawn, path, form)
    except OSError as error:
        raise RunDirectoryError(f"path: cannot write {path}: {error.strerror}") from error


def _save(drawn: matplotlib.figure.Figure, path: Path, form: str) -> None:
    with settings():
        write_atomically(path, functools.partial(drawn.savefig, format=form, metadata=UNDATED[form]))
