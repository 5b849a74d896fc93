"""Charts of dots, a row for each network: the approaches the paper names, exact orthogonality, and both roots b."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bsnn_cli.figures.figure import (
    DOUBLE,
    Axis,
    Figure,
    Missing,
    Panel,
    Series,
    Text,
    decades,
    extent,
    label,
    power_of_ten,
)
from bsnn_cli.figures.measurements import fresh, preferred, size_arguments, sizes
from bsnn_cli.results import comparison_tables, formats
from bsnn_cli.results.formats import Row, records, setting
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import split_label
from bsnn_cli.settings.config import FiguresConfig

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
"""Names of the approaches in the figure, from top to bottom."""

APPROACH_AXES = {
    "forward_norm_last": Axis("signal  $\\|x^{L+1}\\|^2/n$", log=True, limits=(1e-8, 1e8), mark=1),
    "gradient_norm_ratio": Axis("gradient norm ratio", log=True, limits=(1.0, 1e20)),
    "derivative_std": Axis("spread of slopes", limits=(0.0, 0.8), ticks=(0, 0.3, 0.6)),
    "one_minus_cosine_last": Axis("$1 - \\cos$ of inputs", log=True, limits=(1e-6, 100.0), mark=1),
}
"""Numbers of `summary.json` that are compared, and the ranges shown."""


CONSTRAINTS = {"orthogonal": "WᵀW = I", "unit_rows": "unit rows"}


@dataclass(frozen=True)
class Dot:
    """One number of one row, with its spread.

    Attributes:
        low, value, high: the dot, and the ends of its bar; not finite where there is none.
        words: above the dot, or in its place.
    """

    low: float
    value: float
    high: float
    words: str = ""


Column = tuple[Axis, Sequence[Dot]]


def approaches(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """The approaches the paper compares, by the numbers at the end of the network."""
    sized = [row for row in fresh(stored) if (row["depth"], row["width"]) == (config.depth, config.width)]
    measured = {name: list(preferred(row for row in sized if row["approach"] == name).values()) for name in APPROACHES}
    absent = [name for name, rows in measured.items() if not rows]
    if absent:
        command = f"bsnn propagate -m approach={','.join(absent)}" + size_arguments(config)
        yield Missing("approaches", f"signals of {len(absent)} of {len(APPROACHES)} approaches", command)
    rows = [row for summaries in measured.values() for row in summaries]
    if not rows:
        return
    names = [f"{APPROACHES[row['approach']]} ({row['label']})" for row in rows]
    activations = [split_label(row["activation"].removesuffix("-bn")) for row in rows]
    small, words = sizes(rows)
    yield dot_chart(
        "approaches",
        names,
        [base for base, _ in activations],
        [form != "" for _, form in activations],
        [(axis, [approach_dot(row, key) for row in rows]) for key, axis in APPROACH_AXES.items()],
        ("GPN", "non-GPN"),
        "The approaches that the paper compares, at the start of training: squared length of the signal after the last "
        "layer; largest over smallest gradient norm of all layers; standard deviation of the slopes f'(h) in the last "
        "layer, 0 for a linear network; what is left to tell inputs apart. Dotted: as at the input. Filled: GPN. "
        f"Triangles point to values beyond the panel; without a gradient there is no ratio. {words}.",
        small,
    )


def constraint(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Accuracy, error and signals of exactly orthogonal weights and of unit rows."""
    if stored.constraint.empty:
        yield Missing("constraint", "trainings with both weights are", comparison_tables.CONSTRAINT_COMMAND)
        return
    rows = records(stored.constraint)
    exact = [row["weights"] == "orthogonal" for row in rows]
    settings = "; ".join(dict.fromkeys(setting(row) for row in rows))
    yield dot_chart(
        "constraint",
        [f"{formats.label(row)}, {row['weights'].replace('orthogonal', 'WᵀW = I').replace('_', ' ')}" for row in rows],
        [row["activation"] for row in rows],
        exact,
        [
            accuracies(rows),
            ranges(rows, "orthogonality_error", Axis("largest $|W^TW - I|$", log=True)),
            ranges(rows, "one_minus_cosine_last", Axis("$1 - \\cos$ after training", log=True)),
        ],
        tuple(CONSTRAINTS.values()),
        f"Exact orthogonality (filled) against rows of unit length (open): test accuracy{spread_over_seeds(rows)}; "
        "largest entry of |WᵀW − I| at the end of any epoch, for orthogonal weights also "
        "before every retraction; mean 1 − cosine of two inputs behind the last hidden layer after training. "
        f"{settings}; n = {counts(rows)}.",
        f"{settings}; n = {counts(rows)}",
    )


def roots(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """χ, measured length and accuracy with each of the two roots b."""
    signals, trained = stored.root_signals, stored.roots
    if not trained.empty:
        trained = trained[trained["separation"] == ""]  # the signals are those of φ as it is
    if signals.empty:
        yield Missing("roots", "signals with both roots are", comparison_tables.ROOT_SIGNALS_COMMAND)
        return
    rows, accuracy, words = records(signals), [], ""
    if trained.empty:
        yield Missing("roots", "trainings with both roots are", comparison_tables.ROOTS_COMMAND)
    else:
        first = records(trained[common_setting(trained)])
        by_network = {(row["activation"], row["root"]): row for row in first}
        accuracy = [accuracies([by_network.get((row["activation"], row["root"])) for row in rows])]
        words = f"; test accuracy{spread_over_seeds(first)}. Accuracy: {setting(first[0])}; n = {counts(first)}"
    size = f"L = {rows[0]['depth']}, n = {rows[0]['width']}, {rows[0]['inputs']} inputs, repeats: {rows[0]['n']}"
    yield dot_chart(
        "roots",
        [f"{label(row['activation'])}-GPN, {row['root']}" for row in rows],
        [row["activation"] for row in rows],
        [bool(row["published"]) for row in rows],
        [
            ranges(rows, "chi", Axis("slope χ", mark=1)),
            ranges(rows, "forward_norm_last", Axis("$\\|x^{L+1}\\|^2/n$", log=True, mark=1)),
            ranges(rows, "one_minus_cosine_last", Axis("$1 - \\cos$ of inputs", log=True)),
            *accuracy,
        ],
        ("root of the paper's rule", "the other root"),
        "Upper and lower root b of normalisation; filled: the one of the paper's rule (activation.root=auto). Slope χ "
        "of the variance map, above 1 (dotted) it drives lengths away; squared length per unit behind the last layer, "
        f"and 1 − cosine of two inputs, least to largest of the repeats, at the start of training ({size}){words}.",
        size,
    )


def common_setting(trained: pd.DataFrame) -> Any:
    """Return which rows have the setting that most of the activations share."""
    keys = trained["setting"].astype(str) + trained["dataset"] + trained["batch_norm"].astype(str)
    return keys == keys.mode().iloc[0]


def counts(rows: Sequence[Row]) -> str:
    """Return `3 seeds`, or `1 to 3 seeds`, and what becomes of those that diverged."""
    text = extent(row["n"] + row["diverged"] for row in rows)
    lost = " (those that diverged are in no mean)" if any(row["diverged"] for row in rows) else ""
    return f"{text} seed{'' if text == '1' else 's'}{lost}"


def spread_over_seeds(rows: Sequence[Row]) -> str:
    """Return what the bars of accuracies are; nothing where no network has several seeds."""
    bars = any(row["n"] > 1 for row in rows)
    return ", mean ± sample standard deviation over the seeds" if bars else ""


def approach_dot(row: Mapping[str, Any], key: str) -> Dot:
    """Return a number of a measurement ± its sample standard deviation over the repeats."""
    if row[key] is None:
        return Dot(math.nan, math.nan, math.nan, "not defined")
    spread = row[f"{key}_std"] or 0.0
    return Dot(row[key] - spread, row[key], row[key] + spread)


def ranges(rows: Sequence[Row], key: str, axis: Axis) -> Column:
    """Return a number of each row; where it is least and largest of the repeats, the dot stands in the middle."""
    dots = []
    for row in rows:
        low, high = (float(row.get(f"{key}_{end}", row.get(key))) for end in ("low", "high"))
        middle = math.sqrt(low * high) if axis.log and low > 0 else (low + high) / 2
        dots.append(Dot(low, middle, high, "∞" if math.isinf(middle) else "not stored" if math.isnan(middle) else ""))
    return axis, dots


def accuracies(rows: Sequence[Row | None]) -> Column:
    """Return the test accuracies, with what diverged in words."""
    dots = []
    for row in rows:
        if row is None:
            dots.append(Dot(math.nan, math.nan, math.nan, "not stored"))
            continue
        mean, spread = row["test"], 0.0 if math.isnan(row["test_std"]) else row["test_std"]
        lost = f"{row['diverged']} of {row['n'] + row['diverged']} diverged" if row["diverged"] else ""
        dots.append(Dot(mean - spread, mean, mean + spread, lost if row["n"] else "diverged"))
    return Axis("test accuracy (%)"), dots


def dot_chart(
    name: str,
    rows: Sequence[str],
    activations: Sequence[str],  # base name of each row, for its colour
    filled: Sequence[bool],  # whether the dots of a row are filled
    columns: Sequence[Column],
    legend: Sequence[str],  # words for filled and for open dots
    caption: str,
    note: str,
) -> Figure:
    """Return a figure with a labelled row for each network and a panel with its dots for each number."""
    y = Axis(limits=(len(rows) - 0.4, -0.6), ticks=tuple(range(len(rows))), words=tuple(rows))
    panels = []
    for axis, dots in columns:
        x = replace(axis, label="", limits=axis.limits or around(axis, dots))
        series: list[Series] = []
        texts: list[Text] = []
        for place, (dot, activation, fill) in enumerate(zip(dots, activations, filled, strict=True)):
            looks: dict[str, Any] = {"activation": activation, "dash": "", "hollow": not fill, "spread": "across"}
            low, high = x.limits or (0.0, 1.0)
            if not math.isfinite(dot.value):
                texts.append(Text(dot.words, 0.5, place, "y"))
            elif dot.value < low:
                series.append(Series(rows[place], [low], [place], marker="<", **looks))
                words = "0" if dot.value == 0 else power_of_ten(dot.value)
                texts.append(Text(words, 0.07, place, "y", ("left", "center")))
            elif dot.value > high:
                series.append(Series(rows[place], [high], [place], marker=">", **looks))
                texts.append(Text(power_of_ten(dot.value), 0.93, place, "y", ("right", "center")))
            else:
                looks |= {"marker": "o", "low": [max(dot.low, low)], "high": [min(dot.high, high)]}
                series.append(Series(rows[place], [dot.value], [place], **looks))
                if dot.words:  # above the dot and inside the panel
                    share = x.share(dot.value)
                    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
                    texts.append(Text(dot.words, dot.value, place, "xy", (side, "bottom"), (0, 3)))
        panels.append(Panel(x, y, series, axis.label, texts=texts))
    entries = [
        Series(words, dash="", marker="o", hollow=hollow) for words, hollow in zip(legend, (False, True), strict=True)
    ]
    size = DOUBLE, 1.15 + 0.22 * len(rows)
    return Figure(name, panels, caption, note, entries, len(panels), size, point=4.5)


def around(axis: Axis, dots: Sequence[Dot]) -> tuple[float, float]:
    """Return limits of an axis that leave room on both sides of all dots, bars and the mark."""
    values = [value for dot in dots for value in (dot.low, dot.value, dot.high) if math.isfinite(value)]
    values += [] if axis.mark is None else [axis.mark]
    if axis.log:
        return decades(values, margin=0.2)
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
