"""The description of a figure: series of numbers, in panels with axes, and a caption.

The same description is drawn on paper (`printing`) and on the report page (`report.report_plots`). An activation has
the same colour in every figure, apart from its neighbours for colour-blind readers too (Okabe and Ito 2008; Tol 2021
for those beyond the paper's six). Lines of GPN are solid, of non-GPN dashed, of depth-aware GPN dash-dotted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS, FORMS, split_label
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS

SINGLE, DOUBLE = 3.4, 7.0
"""Widths in inches: one column and two."""

COLOURS = {name: entry.colour for name, entry in NAMED_ACTIVATIONS.items()}
CUSTOM_COLOUR = "#A6761D"
GREY = "#666666"

DASHES = {"": "--", "_gpn": "-", "_gpn_d": "-."}
"""Dashes of the lines of each of `FORMS`."""


@dataclass(frozen=True)
class Axis:
    """One axis. Panels with equal axes share them.

    Attributes:
        label: quantity and unit; mathematics stands between dollar signs.
        log: whether the axis is logarithmic.
        limits: lowest and highest value shown; None for those of the data.
        ticks: values that have a label; none for a choice by the library that draws.
        words: labels of the ticks, where they are not numbers.
        mark: value where a dotted line stands, or None.
        whole: whether labels stand at whole numbers only.
    """

    label: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    mark: float | None = None
    whole: bool = False

    def share(self, value: float) -> float:
        """Return the place of a value between the limits, from 0 to 1."""
        low, high = self.limits or (0.0, 1.0)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """Numbers that belong together: a line, points, or both. A series without numbers is an entry of a legend.

    Attributes:
        name: what the legend of the page and its pointer say.
        x, y: equally many numbers.
        activation: base name; it gives the colour and the group that a reader of the page switches on and off.
        dash: `-`, `--`, `-.` or `:`; empty for points without a line.
        marker: such as `o`; empty for a line without points.
        hollow: whether points are open.
        sparse: whether only some of the points have a marker.
        low, high: ends of the spread of each point, if there is one.
        spread: how it is drawn: as a `band` around the line, as `bars` up and down, or as bars `across`, along x.
        colour: in place of that of the activation.
        filled: whether the area under the line is shaded.
        nudge: factor by which x is moved in print, where points would hide each other.
    """

    name: str
    x: Iterable[Any] = ()
    y: Iterable[Any] = ()
    activation: str = ""
    dash: str = "-"
    marker: str = ""
    hollow: bool = False
    sparse: bool = False
    low: Iterable[Any] | None = None
    high: Iterable[Any] | None = None
    spread: str = "band"
    colour: str = ""
    filled: bool = False
    nudge: float = 1.0

    @property
    def ink(self) -> str:
        """The colour; all custom activations share theirs."""
        if self.colour or not self.activation:
            return self.colour or GREY
        return COLOURS.get(self.activation, CUSTOM_COLOUR)


FORMS_LEGEND = (Series("GPN"), Series("non-GPN", dash="--"))


@dataclass(frozen=True)
class Text:
    """Words in a panel.

    Attributes:
        words: to be written.
        x, y: place, as shares of the panel from 0 to 1.
        data: which of `x` and `y` are values on the axes instead, such as `xy`.
        align: horizontal and vertical side of the words that stands there.
        shift: points by which they are moved to the right and up.
        bold: for headings.
    """

    words: str
    x: float
    y: float
    data: str = ""
    align: tuple[str, str] = ("center", "center")
    shift: tuple[float, float] = (0, 0)
    bold: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x, y: axes.
        series: in the order in which they are drawn.
        title: heading.
        subtitle: small words below the heading.
        texts: words between the lines.
        facet: on the page, panels of one quantity are one; of several facets it shows one at a time.
        legend: entries above the panel, where those above the figure do not say what its lines are.
    """

    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    title: str = ""
    subtitle: str = ""
    texts: Sequence[Text] = ()
    facet: str = ""
    legend: Sequence[Series] = ()


@dataclass(frozen=True)
class Figure:
    """A whole figure.

    Attributes:
        name: of its files.
        panels: row by row.
        caption: Markdown; says what is shown, of what size, and n.
        note: sizes and n again, in small print.
        legend: entries above the panels.
        columns: of panels.
        size: width and height in inches.
        point: size of the markers in points.
    """

    name: str
    panels: Sequence[Panel]
    caption: str
    note: str = ""
    legend: Sequence[Series] = FORMS_LEGEND
    columns: int = 1
    size: tuple[float, float] = (DOUBLE, 3.5)
    point: float = 3.2


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


def label(activation: str) -> str:
    """Return what legends show, such as `SELU-GPN` for `selu_gpn`."""
    base, form = split_label(activation)
    return ACTIVATION_LABELS.get(base, base) + FORMS[form]


def dataset_label(name: str) -> str:
    """Return what captions call a dataset."""
    return DATASETS[name].label if name in DATASETS else name


def extent(values: Iterable[Any]) -> str:
    """Return `500`, or `100 to 500`."""
    ordered = sorted(values)
    least, most = ordered[0], ordered[-1]
    return str(least) if least == most else f"{least} to {most}"


def finite(values: Iterable[Any]) -> list[float]:
    """Return the finite ones of some numbers."""
    return [float(value) for value in values if math.isfinite(value)]


def power_of_ten(value: float) -> str:
    """Return the power of ten below a value, such as `$10^{-60}$`."""
    return f"$10^{{{math.floor(math.log10(value))}}}$"


def decades(values: Iterable[float], least: float = 0.0, margin: float = 0.0) -> tuple[float, float]:
    """Return limits of a logarithmic axis: whole powers of ten around all finite values above `least`.

    Args:
        values: to be shown.
        least: smaller ones run out of their panel.
        margin: room on both sides, in decades.
    """
    powers = np.log10([value for value in values if least < value < math.inf] or [1.0])
    low, high = math.floor(powers.min()), math.ceil(powers.max())
    return 10.0 ** (low - margin), 10.0 ** (max(high, low + 1) + margin)


def layer_axis(depth: int, parts: int = 2) -> Axis:
    """Return the axis of the layers, with a label at the first one and after each of so many equal parts."""
    return Axis("layer $l$", limits=(0, depth + 1), ticks=(1, *(round(depth * n / parts) for n in range(1, parts + 1))))
