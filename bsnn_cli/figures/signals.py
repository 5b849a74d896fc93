"""Figures of signals and gradients over the layers, and of slopes in the last one, at the start of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bsnn_cli.figures.figure import (
    DASHES,
    DOUBLE,
    SINGLE,
    Axis,
    Figure,
    Missing,
    Panel,
    Series,
    Text,
    decades,
    label,
    layer_axis,
    power_of_ten,
)
from bsnn_cli.figures.measurements import (
    Summary,
    of_paper,
    of_size,
    preferred,
    size_arguments,
    sizes,
    with_usual_root,
)
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import (
    AUTO_ROOT,
    DEFAULT_SEPARATION,
    PAPER_ACTIVATIONS,
    UNTAILORED,
    root_in_use,
    split_label,
)
from bsnn_cli.settings.config import FiguresConfig

PAIRS = ("tanh", "tanh_gpn", "selu", "selu_gpn")
"""The paper's four networks."""

PAPER = tuple(f"{name}{form}" for name in PAPER_ACTIVATIONS for form in ("", "_gpn"))

QUANTITIES = {
    "forward_norm": "$\\|x^l\\|^2/n$",
    "gradient_norm": "$\\|\\partial E/\\partial W^l\\|_F$",
    "one_minus_cosine": "$1 - \\cos$",
}
"""Columns of `layers.csv` that are drawn against the layer."""

NORMS = ("forward_norm", "gradient_norm")

ALL_THREE = (
    "Squared length of the signal per unit, Frobenius norm of the gradient and mean 1 − cosine between inputs against "
    "the layer"
)

BOTH_ROOTS = ("relu", "lrelu", "gelu", "silu")
"""Activations for which the choice of the root matters: χ = 1 or χ > 1 with the upper one."""

ROOTS = {"upper": "-", "lower": ":"}

AWARE = {"_gpn": "GPN", "_gpn_d": "depth-aware GPN"}

WIDTHS = (100, 250, 500, 1000, 1500)
"""The paper's."""

LOWEST, HIGHEST = 1e-12, 1e12
"""Smaller and larger lengths and gradients run out of their panel."""

DENSITIES = (3e-3, 300.0)
"""Shown in the histograms of slopes."""


@dataclass(frozen=True)
class Line:
    """The signals of one network, or the geometric mean over several.

    Attributes:
        name: for the legend.
        activation: base name.
        networks: summaries of the measurements.
        looks: of the `Series`.
    """

    name: str
    activation: str
    networks: Sequence[Summary]
    looks: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return `layers.csv`; of several the geometric mean, with the deviation of the logarithms as a factor."""
        tables = [pd.read_csv(Path(summary["directory"]) / "layers.csv") for summary in self.networks]
        if len(tables) == 1:
            return tables[0]
        values = pd.concat([table.set_index("layer")[list(QUANTITIES)] for table in tables])
        with np.errstate(divide="ignore"):  # of a signal that is exactly 0
            groups = values.apply(np.log).groupby("layer")
        mean, factor = groups.mean().apply(np.exp), groups.std().apply(np.exp)
        return mean.join((mean * (factor - 1)).add_suffix("_std")).reset_index()

    def series(self, table: pd.DataFrame, quantity: str) -> Series:
        """Return one quantity against the layer, with one standard deviation where there are several repeats.

        The deviation is a factor 1 + std / mean on both sides: mean − std may be negative, where a logarithmic axis
        has no place.
        """
        rows = table[table[quantity].notna()]
        mean = rows[quantity]
        factor = 1 + rows[f"{quantity}_std"] / mean
        spread: dict[str, Any] = {"low": mean / factor, "high": mean * factor} if factor.notna().any() else {}
        return Series(self.name, rows["layer"], mean, self.activation, **spread, **self.looks)


def line(activation: str, summary: Summary) -> Line:
    """Return the line of a network in the colour and dashes of its activation, such as `selu_gpn`."""
    base, form = split_label(activation)
    return Line(label(activation), base, [summary], {"dash": DASHES[form]})


def over_layers(
    name: str,
    headings: Mapping[str, Sequence[Line]],
    depth: int,
    caption: str,
    quantities: Sequence[str] = tuple(QUANTITIES),
    networks: str = "",
    over: str = "repeats",
    say_lost: bool = False,
    lowest: float = 1e-6,
    facet: str = "",
    **options: Any,
) -> Figure:
    """Return a figure of quantities against the layer: a row for each of them, a column for each heading.

    The caption describes the lines, without sizes. `networks` gives n in words where the repeats do not say it, and
    `over` names what the bands are taken over. With `say_lost`, words name the lines that the axes cannot show.
    """
    tables = {heading: [(line, line.table()) for line in lines] for heading, lines in headings.items()}
    layers = layer_axis(depth, 4 if len(headings) == 1 else 2)
    panels = []
    for row, quantity in enumerate(quantities):
        values = pd.concat([table[quantity] for lines in tables.values() for _, table in lines])
        low, high = decades([*values.dropna(), 0.1, 10.0], lowest)
        axis = Axis(QUANTITIES[quantity], log=True, limits=(low, min(high, HIGHEST)))
        for heading, lines in tables.items():
            series = [line.series(table, quantity) for line, table in lines]
            texts = [lost(table, quantity, line.looks["dash"] != "--") for line, table in lines] if say_lost else []
            title = heading if row == 0 else ""
            panels.append(Panel(layers, axis, series, title, texts=[text for text in texts if text], facet=facet))
    shown = [line for lines in headings.values() for line in lines]
    summaries = [summary for line in shown for summary in line.networks]
    small, words = sizes(summaries, networks)
    bands = any(len(line.networks) > 1 or line.networks[0]["repeats"] > 1 for line in shown)
    shaded = f" Shaded: one sample standard deviation over the {over}, as a factor." if bands else ""
    size = min(DOUBLE, max(SINGLE, 1.0 + 1.75 * len(headings))), 0.4 + 1.45 * len(quantities)
    return Figure(
        **{"name": name, "panels": panels, "caption": f"{caption}{shaded} {words}.", "note": small, "size": size}
        | {"columns": len(headings)}
        | options
    )


def lost(table: pd.DataFrame, quantity: str, gpn: bool) -> Text | None:
    """Say in words what a logarithmic axis cannot show: values that are exactly 0, or beyond the range of numbers."""
    values = table[quantity].dropna()
    zero, endless = (values == 0).sum(), (values.abs() == math.inf).sum()
    words = []
    if zero == len(values):
        words.append("all exactly 0")
    elif zero:
        words.append(f"exactly 0 in\n{zero} layers")
    elif min(values.iloc[0], values.iloc[-1]) < LOWEST:
        words.append(f"down to\n{power_of_ten(values.min())}")
    if endless:
        words.append(f"infinite in\n{endless} layers")
    who = "GPN" if gpn else "non-GPN"
    return Text("\n".join([who, *words]), 0.96, 0.05 + 0.27 * gpn, align=("right", "bottom")) if words else None


def propagation(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Forward and gradient norms of Tanh and SELU, plain and GPN, against the layer."""
    summaries, missing = of_size(stored, config, "propagation", PAIRS)
    yield from missing
    if summaries:
        figure = over_layers(
            "propagation",
            {"": [line(activation, summary) for activation, summary in summaries.items()]},
            config.depth,
            "Squared length of the signal per unit and Frobenius norm of the gradient of each layer's weights against "
            "the layer, at the start of training. Plain Tanh lets the signal shrink until the network is linear, plain "
            "SELU keeps it (its line lies under those of GPN) and lets gradients explode towards the input; with GPN "
            "both stay.",
            NORMS,
            lowest=LOWEST,
            size=(DOUBLE, 2.65),
            columns=2,
        )
        yield replace(figure, legend=figure.panels[0].series)


def propagation_all(
    stored: Results, config: FiguresConfig, wanted: Sequence[str] = PAPER
) -> Iterator[Figure | Missing]:
    """Forward and gradient norms of the paper's six activations, plain and GPN, or of others."""
    summaries, missing = of_size(stored, config, "propagation_all", wanted)
    yield from missing
    if not summaries:
        return
    columns: dict[str, list[Line]] = {label(split_label(activation)[0]): [] for activation in wanted}
    for activation, summary in summaries.items():
        columns[label(split_label(activation)[0])].append(line(activation, summary))
    silent = [label(activation) for activation, summary in summaries.items() if summary["zero_gradients"]]
    yield over_layers(
        "propagation_all",
        columns,
        config.depth,
        "Squared length of the signal per unit and Frobenius norm of the gradient of each layer's weights against the "
        "layer, at the start of training, plain (dashed) and GPN (solid). Plain SELU keeps the signal: its line lies "
        "under that of GPN." + (f" Gradients that are exactly 0: {', '.join(silent)}." if silent else ""),
        NORMS,
        lowest=LOWEST,
        say_lost=True,
    )


def of_variants(stored: Results, config: FiguresConfig, forms: Sequence[str]) -> dict[str, dict[str, Summary]]:
    """Return, by base name, the measurements at the wanted size by form and root, such as `_gpn upper`."""
    summaries: dict[str, dict[str, Summary]] = {}
    for summary in sorted(of_paper(stored, config.depth), key=lambda summary: summary["repeats"]):  # the best is last
        activation, (base, form) = summary["config"]["activation"], split_label(summary["activation"])
        if summary["width"] == config.width and form in forms:
            root = root_in_use(activation["name"], activation["root"])
            summaries.setdefault(base, {})[f"{form} {root}"] = summary
    return summaries


def root_signals(
    stored: Results, config: FiguresConfig, wanted: Sequence[str] = BOTH_ROOTS
) -> Iterator[Figure | Missing]:
    """Signals, gradients and angles with the upper and the lower solution b."""
    summaries = of_variants(stored, config, ["_gpn"])
    absent = [name for name in wanted if len(summaries.get(name, {})) < len(ROOTS)]
    if absent:
        names = ",".join(f"{name}_gpn" for name in absent)
        command = f"bsnn propagate -m activation={names} activation.root=upper,lower" + size_arguments(config)
        yield Missing("root_signals", f"signals with both roots of {', '.join(absent)}", command)
    columns = {
        label(f"{name}_gpn"): [
            Line(f"{label(f'{name}_gpn')}, {root} root", name, [summaries[name][f"_gpn {root}"]], {"dash": dash})
            for root, dash in ROOTS.items()
            if f"_gpn {root}" in summaries[name]
        ]
        for name in wanted
        if name in summaries
    }
    if columns:
        yield over_layers(
            "root_signals",
            columns,
            config.depth,
            f"{ALL_THREE}, at the start of training, with the upper (solid) and the lower (dotted) solution b. "
            "The upper one lets lengths wander (ReLU, LReLU: χ = 1) or drives them away (GELU, SiLU: χ > 1); the "
            "lower one keeps them, and does not keep inputs any further apart. Above 1e12 a line leaves its panel.",
            legend=[Series("upper root of $b$"), Series("lower root", dash=":")],
        )


def depth_aware(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Signals of GPN beside those of depth-aware GPN, for each activation that has been measured in both forms."""
    summaries = of_variants(stored, config, list(AWARE))
    columns: dict[str, list[Line]] = {}
    for name, root in AUTO_ROOT.items():
        if all(f"{form} {root}" in summaries.get(name, {}) for form in AWARE):
            columns[label(name)] = [line(f"{name}{form}", summaries[name][f"{form} {root}"]) for form in AWARE]
    if not columns:
        names = ",".join(f"{name}{form}" for name in PAPER_ACTIVATIONS if name not in UNTAILORED for form in AWARE)
        command = f"bsnn propagate -m activation={names}" + size_arguments(config)
        yield Missing("depth_aware", "signals of networks with depth-aware GPN", command)
        return
    yield over_layers(
        "depth_aware",
        columns,
        config.depth,
        f"{ALL_THREE}, at the start of training, with GPN (solid) and with depth-aware GPN (dash-dotted), set to keep "
        f"a 1 − cosine of {DEFAULT_SEPARATION}.",
        legend=[Series(words, dash=DASHES[form]) for form, words in AWARE.items()],
    )


def derivatives(stored: Results, config: FiguresConfig, wanted: Sequence[str] = PAPER) -> Iterator[Figure | Missing]:
    """Histograms of φ'(h) in the last layer."""
    summaries, missing = of_size(stored, config, "derivatives", wanted)
    yield from missing
    if not summaries:
        return
    x = Axis(f"slope  $f\\,'(h_i^l)$,  $l$ = {config.depth}", limits=(-0.22, 1.86), ticks=(0, 0.5, 1, 1.5))
    y = Axis("density", log=True, limits=DENSITIES)
    columns: dict[str, list[Series]] = {split_label(activation)[0]: [] for activation in wanted}
    for activation, summary in sorted(summaries.items(), key=lambda item: not item[0].endswith("_gpn")):
        base, form = split_label(activation)
        bins = pd.read_csv(Path(summary["directory"]) / "histogram.csv")
        bins = bins[bins["layer"] == bins["layer"].max()]
        edges, tops = np.repeat([*bins["left"], bins["right"].iloc[-1]], 2), np.repeat(bins["density"], 2)
        shape: dict[str, Any] = {"x": edges, "y": [0, *tops, 0], "filled": form == "_gpn"}
        columns[base].append(Series(label(activation), **shape, activation=base, dash=DASHES[form]))
    small, words = sizes(summaries.values())
    yield Figure(
        "derivatives",
        [Panel(x, y, series, label(base)) for base, series in columns.items()],
        "Density of the slopes of the activation at the preactivations of the last layer, the singular values of D, "
        "over all units and inputs: plain (dashed) and GPN (solid). Plain Tanh and ELU pile up at 1, where they are "
        f"linear; plain GELU sits at 0.5, as its signal is 0; ReLU and LReLU have two slopes only. {words}.",
        small,
        columns=3,
    )


def width(
    stored: Results, config: FiguresConfig, wanted: Sequence[str] = ("tanh_gpn", "selu_gpn")
) -> Iterator[Figure | Missing]:
    """Gradient norm ratio against width, Tanh-GPN and SELU-GPN, or others."""
    usual = with_usual_root(of_paper(stored, config.depth))
    repeated = preferred(row for row in usual if row["activation"] in wanted and row["repeats"] > 1)
    absent = [width for width in WIDTHS if any((name, width) not in repeated for name in wanted)]
    if absent:
        many = ",".join(map(str, absent))
        command = f"bsnn propagate -m model.width={many} activation={','.join(wanted)} propagate.repeats=5"
        command += size_arguments(config, "depth")
        yield Missing("width", f"repeated measurements at width {many}", command)
    if not repeated:
        return
    series = []
    for place, name in enumerate(sorted({name for name, _ in repeated}, key=wanted.index)):
        rows = pd.DataFrame([repeated[key] for key in sorted(repeated) if key[0] == name])
        ratio, spread = rows["gradient_norm_ratio"].astype(float), rows["gradient_norm_ratio_std"].astype(float)
        looks: dict[str, Any] = {"marker": "o", "spread": "bars", "nudge": 0.985 + 0.03 * place}
        looks |= {"low": ratio - spread, "high": ratio + spread, "activation": split_label(name)[0]}
        series.append(Series(label(name), rows["width"], ratio, **looks))
    shown = sorted({width for _, width in repeated})
    x = Axis("width $n$ (units)", log=True, limits=(shown[0] / 1.25, shown[-1] * 1.25), ticks=tuple(shown))
    y = Axis("gradient norm ratio, max / min", mark=1)
    small, words = sizes(repeated.values())
    yield Figure(
        "width",
        [Panel(x, y, series)],
        "Largest over smallest ‖∂E/∂W^l‖_F of all layers, against the width: the wider, the more equal. Mean and "
        f"sample standard deviation over the repeats; 1 (dotted) is equality. {words}.",
        small,
        legend=series,
        size=(SINGLE, 2.6),
    )
