"""The looks that all figures share: sizes, colours, axes, and how a picture becomes files.

Made for print: 3.4 or 7 inches wide, text of 7 points or more at that size. An activation has the same colour in every
figure, apart from its neighbours for colour-blind readers too (Okabe and Ito 2008; Tol 2021 for those beyond the
paper's six); GPN is solid, non-GPN dashed.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from bsnn_cli.common.files import write_atomically
from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.results.captions import captions, write_captions
from bsnn_cli.settings.choices import ACTIVATION_LABELS, FORMATS, split_label
from bsnn_cli.settings.config import FiguresConfig
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the dates of matplotlib's fonts

SINGLE, DOUBLE = 3.4, 7.0
"""Widths in inches: one column and two."""

COLOURS = {name: entry.colour for name, entry in NAMED_ACTIVATIONS.items()}
CUSTOM_COLOUR = "#A6761D"
GREY = "#666666"

LOOKS: Any = {
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
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "lines.dashed_pattern": (4, 1.8),
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

NOTE_HEIGHT = 0.17
"""Inches below the axes for the note on sizes."""


@dataclass(frozen=True)
class Picture:
    """A finished figure.

    Attributes:
        name: of its files.
        figure: drawn, not yet written.
        caption: Markdown; says what is shown, of what size, and n.
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Missing:
    """Numbers that a figure needs and that are not stored.

    Attributes:
        name: of the figure.
        what: the numbers, in words.
        command: makes them.
    """

    name: str
    what: str
    command: str


def elsewhere(config: FiguresConfig) -> str:
    """What a command must say of the folder, so that its numbers are found again."""
    return "" if config.output_root == FiguresConfig().output_root else f" output_root={config.output_root}"


@contextmanager
def looks() -> Iterator[None]:
    """All drawing and saving happens inside this, whatever a user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOKS)
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of width × height inches and its axes, row by row; takes no part in pyplot, so needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    share = NOTE_HEIGHT / height
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))  # type: ignore[union-attr,call-arg]
    return figure, [ax for row in axes for ax in row]


def note(figure: Figure, text: str) -> None:
    """Sizes and n, in small print at the bottom right."""
    figure.text(0.995, 0.01, text, ha="right", va="bottom", fontsize=7, color=GREY)


def label(name: str, gpn: bool, separation: str = "") -> str:
    """As legends show it, such as `SELU-GPN`, or `SELU-GPN-d 0.3` where it is tailored to a separation."""
    return ACTIVATION_LABELS.get(name, name) + ("-GPN" if gpn else "") + (f"-d {separation}" if separation else "")


def colour(name: str) -> str:
    """Of an activation; all custom ones share theirs."""
    return COLOURS.get(name, CUSTOM_COLOUR)


def stroke(name: str, gpn: bool, tailored: bool = False) -> dict[str, Any]:
    """Colour and dashes of an activation's line, for `Axes.plot`."""
    return {"color": colour(name), "linestyle": "-." if tailored else "-" if gpn else "--"}


def split(activation: str) -> tuple[str, bool]:
    """`selu_gpn` → ("selu", True)."""
    base, form = split_label(activation)
    return base, form != ""


def file_name(*parts: Any) -> str:
    """Parts joined by `_`, with nothing that a file system or a link minds; long ones end in a hash."""
    text = "_".join(str(part) for part in parts if part)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def legend_above(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """One legend for all axes, above them."""
    figure.legend(
        handles=list(handles), loc="outside upper center", ncols=columns, columnspacing=1.6, handletextpad=0.6
    )


def key(text: str, **looks: Any) -> Line2D:
    """A legend entry that stands for several lines."""
    return Line2D([], [], label=text, **({"color": GREY} | looks))


def log_axis(ax: Axes, which: str, low: float, high: float, ticks: int = 6) -> None:
    """A logarithmic axis over [low, high], with labels at no more than `ticks` powers of ten and no minor ones."""
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(low, high)
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(numticks=ticks))
    axis.set_minor_formatter(NullFormatter())


def save(pictures: Sequence[Picture], directory: Path, formats: Sequence[str], afresh: bool = False) -> list[Path]:
    """Write every picture in every format, and the captions of all pictures of the folder to `captions.md`.

    Args:
        pictures: to be written.
        directory: the folder.
        formats: of `choices.FORMATS`.
        afresh: whether these are all there are: other pictures that `captions.md` names are removed, in all formats.

    Raises:
        RunDirectoryError: a file cannot be written.
    """
    written = []
    try:
        for picture in pictures:
            for form in formats:
                path = directory / f"{picture.name}.{form}"
                write_atomically(path, functools.partial(picture.figure.savefig, format=form, metadata=UNDATED[form]))
                picture.figure.set_layout_engine("none")  # the layout of the first format serves the others
                written.append(path)
        drawn = {picture.name: picture.caption for picture in pictures}
        before = captions(directory)
        for name in before.keys() - drawn.keys() if afresh else ():
            for form in FORMATS:
                (directory / f"{name}.{form}").unlink(missing_ok=True)
        write_captions(directory, drawn if afresh else before | drawn)
    except OSError as error:
        raise RunDirectoryError(f"output_root: cannot write {directory}: {error.strerror}") from error
    return written
