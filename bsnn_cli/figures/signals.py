"""Figures of signals and gradients over depth and width, from what `bsnn propagate` has stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from bsnn_cli.figures.style import (
    COLOURS,
    DOUBLE,
    GREY,
    Missing,
    Picture,
    canvas,
    key,
    label,
    legend_above,
    log_axis,
    note,
    split,
    stroke,
)
from bsnn_cli.measuring import propagation_store
from bsnn_cli.settings.choices import (
    ACTIVATION_LABELS,
    AUTO_ROOT,
    DATASETS,
    DEFAULT_SEPARATION,
    PAPER_ACTIVATIONS,
    tailored_as_usual,
)
from bsnn_cli.settings.config import FiguresConfig, ModelConfig

PAIRS = ("tanh", "tanh_gpn", "selu", "selu_gpn")
"""The paper's four networks."""

ALL = tuple(f"{name}{suffix}" for name in PAPER_ACTIVATIONS for suffix in ("", "_gpn"))

LOWEST = 1e-12
"""Smaller lengths and gradients run out of their panel."""

DENSITIES = (3e-3, 300.0)
"""Shown in the histograms of slopes."""

FORWARD = "$\\|x^l\\|^2/n$"
GRADIENT = "$\\|\\partial E/\\partial W^l\\|_F$"
SLOPE = "slope  $f\\,'(h_i^l)$"

Summary = dict[str, Any]
"""Content of a `summary.json`, with its `directory`."""


def fresh(config: FiguresConfig) -> list[Summary]:
    """Summaries of untrained networks on Gaussian signals."""
    stored = propagation_store.load_all(config.output_root)
    return [each for each in stored if each["source"] == "gaussian" and each["trained"] is None]


def preferred(summaries: Iterable[Summary]) -> dict[tuple[str, int], Summary]:
    """By (activation, width): of several measurements of one network that of most inputs, then most repeats."""
    order = sorted(summaries, key=lambda each: (each["inputs"], each["repeats"], -each["seed"]))
    return {(each["activation"], each["width"]): each for each in order}


def of_depth(config: FiguresConfig) -> list[Summary]:
    """The paper's networks of the wanted depth, with the published root of b."""
    return [
        each
        for each in of_paper(config)
        if each["config"]["activation"]["root"] in ("auto", AUTO_ROOT.get(each["config"]["activation"]["name"]))
    ]


def of_paper(config: FiguresConfig) -> list[Summary]:
    """The paper's networks of the wanted depth, with either root of b; of depth-aware ones the default."""
    return [
        each
        for each in fresh(config)
        if each["depth"] == config.depth
        and each["approach"] is None
        and _usual(each["config"]["activation"], config.depth)
        and asdict(ModelConfig(depth=each["depth"], width=each["width"])) == asdict(ModelConfig()) | _model(each)
    ]


def _usual(activation: dict[str, Any], depth: int) -> bool:
    """Whether it is not tailored, or as `activation=NAME_gpn_d` does it; older measurements know neither key."""
    separation, layers = activation.get("separation"), activation.get("tailored_depth")
    usual = tailored_as_usual(activation["name"], activation.get("parameter"))
    return separation is None or (usual and (separation, layers) == (DEFAULT_SEPARATION, depth))


def _model(summary: Summary) -> dict[str, Any]:
    """What its config says of the network; Gaussian signals do not pass the input layer."""
    return {name: value for name, value in summary["config"]["model"].items() if name != "input_init"}


def of_size(config: FiguresConfig, name: str, wanted: Sequence[str]) -> tuple[dict[str, Summary], list[Missing]]:
    """The wanted activations at the wanted depth and width, as far as they are stored, and what is missing.

    Of several measurements those are taken whose inputs and repeats most of the networks have in common.
    """
    stored = [each for each in of_depth(config) if each["width"] == config.width and each["activation"] in wanted]
    common = Counter((each["inputs"], each["repeats"]) for each in stored)
    order = sorted(stored, key=lambda each: (common[each["inputs"], each["repeats"]], each["repeats"], -each["seed"]))
    latest = {each["activation"]: each for each in order}
    found = {each: latest[each] for each in wanted if each in latest}
    absent = [each for each in wanted if each not in found]
    what = f"signals of {len(absent)} of {len(wanted)} networks"
    return found, [Missing(name, what, measure(config, absent))] if absent else []


def measure(config: FiguresConfig, activations: Sequence[str]) -> str:
    """The command that measures these activations at the wanted size."""
    many = "-m " if len(activations) > 1 else ""
    return f"bsnn propagate {many}activation={','.join(activations)}" + size_arguments(config)


def size_arguments(config: FiguresConfig) -> str:
    """What a command must say of size and folder."""
    given, usual = (config.depth, config.width, config.output_root), FiguresConfig()
    keys = ("model.depth", "model.width", "output_root")
    default = (usual.depth, usual.width, usual.output_root)
    return "".join(f" {key}={ours}" for key, ours, theirs in zip(keys, given, default, strict=True) if ours != theirs)


def layers(summary: Summary) -> pd.DataFrame:
    """Its `layers.csv`."""
    return pd.read_csv(Path(summary["directory"]) / "layers.csv")


def extent(values: Iterable[Any]) -> str:
    """`500`, or `100 to 500`."""
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def counted(summaries: Iterable[Summary], networks: str = "") -> tuple[str, str]:
    """Sizes and n of some measurements, for the small print and for the caption; `networks` says n in its own words."""
    rows = list(summaries)
    depth, width, inputs, repeats = (
        extent(row[name] for row in rows) for name in ("depth", "width", "inputs", "repeats")
    )
    short = f"L = {depth}, n = {width}, {inputs} inputs, {networks or f'repeats: {repeats}'}"
    names = {row["dataset"] or "standard Gaussian" for row in rows}
    kind = " or ".join(sorted(DATASETS[name].label if name in DATASETS else name for name in names))
    long = f"L = {depth} layers, n = {width} units, {inputs} {kind} inputs"
    return short, f"{long}, {networks or f'repeats (seeds): {repeats}'}"


def shade(drawn: bool, over: str = "repeats") -> str:
    """What a caption says of the bands of `draw_signal`, where there are some."""
    return f" Shaded: one sample standard deviation over the {over}, as a factor." if drawn else ""


def repeated(summaries: Iterable[Summary]) -> bool:
    """Whether any of them has several repeats, and so a band."""
    return any(each["repeats"] > 1 for each in summaries)


def draw_signal(ax: Axes, table: pd.DataFrame, quantity: str, **looks: Any) -> None:
    """One quantity against the layer, on a logarithmic axis, with one standard deviation where there are repeats.

    The deviation is a factor 1 + std / mean on both sides: mean − std may be negative, where the axis has no place.
    """
    table = table[table[quantity].notna()]
    (line,) = ax.plot(table["layer"], table[quantity], **looks)
    mean, spread = table[quantity], table[f"{quantity}_std"]
    if spread.notna().any():
        factor = 1 + spread / mean
        ax.fill_between(table["layer"], mean / factor, mean * factor, color=line.get_color(), alpha=0.18, linewidth=0)


def limits(tables: Iterable[pd.DataFrame], quantity: str, lowest: float = LOWEST) -> tuple[float, float]:
    """Whole powers of ten around all positive values above `lowest`, and at least a factor of 100."""
    values = pd.concat([table[quantity] for table in tables])
    values = values[(values > lowest) & (values < math.inf)]
    if values.empty:
        return 0.1, 10.0
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    low, high = min(low, -1), max(high, 1)
    return 10.0**low, 10.0**high


def propagation(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Forward and gradient norms of Tanh and SELU, plain and GPN, against the layer."""
    found, missing = of_size(config, "propagation", PAIRS)
    yield from missing
    if not found:
        return
    figure, axes = canvas(DOUBLE, 2.65, 1, 2)
    tables = {name: layers(summary) for name, summary in found.items()}
    for ax, quantity, title in zip(
        axes,
        ("forward_norm", "gradient_norm"),
        (f"Signal  {FORWARD}", f"Gradient  {GRADIENT}"),
        strict=True,
    ):
        for name, table in tables.items():
            draw_signal(ax, table, quantity, label=label(*split(name)), **stroke(*split(name)))
        log_axis(ax, "y", *limits(tables.values(), quantity))
        over_layers(ax, config.depth)
        ax.set_ylabel(title)
        ax.set_xlabel("layer $l$")
    legend_above(figure, axes[0].get_lines(), 4)
    small, sizes = counted(found.values())
    note(figure, small)
    yield Picture(
        "propagation",
        figure,
        "Squared length of the signal per unit (left) and Frobenius norm of the gradient of each layer's weights "
        "(right) against the layer, at the start of training. Plain Tanh lets the signal shrink until the network is "
        "linear, plain SELU keeps it (its line lies under those of GPN) and lets gradients explode towards the input; "
        f"with GPN both stay.{shade(repeated(found.values()))} {sizes}.",
    )


def over_layers(ax: Axes, depth: int) -> None:
    """The axis of layers."""
    ax.set_xlim(0, depth + 1)
    ax.xaxis.set_major_locator(FixedLocator([1, *(round(depth * share) for share in (0.25, 0.5, 0.75, 1))]))


def propagation_all(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Forward and gradient norms of the paper's six activations, plain and GPN."""
    found, missing = of_size(config, "propagation_all", ALL)
    yield from missing
    if not found:
        return
    tables = {name: layers(summary) for name, summary in found.items()}
    figure, axes = canvas(DOUBLE, 3.4, 2, len(PAPER_ACTIVATIONS), sharex=True, sharey="row")
    rows = (("forward_norm", FORWARD), ("gradient_norm", GRADIENT))
    for row, (quantity, title) in enumerate(rows):
        for column, base in enumerate(PAPER_ACTIVATIONS):
            ax = axes[row * len(PAPER_ACTIVATIONS) + column]
            for gpn in (False, True):
                table = tables.get(base + ("_gpn" if gpn else ""))
                if table is not None:
                    draw_signal(ax, table, quantity, label=label(base, gpn), **stroke(base, gpn))
                    tell_the_dead(ax, table, quantity, gpn)
            log_axis(ax, "y", *limits(tables.values(), quantity), ticks=5)
            ax.set_xlim(0, config.depth + 1)
            ax.xaxis.set_major_locator(FixedLocator([1, config.depth // 2, config.depth]))
            if row == 0:
                ax.set_title(ACTIVATION_LABELS[base])
            else:
                ax.set_xlabel("layer $l$")
            if column == 0:
                ax.set_ylabel(title)
    figure.align_ylabels()
    legend_above(figure, [key("GPN"), key("non-GPN", linestyle="--")], 2)
    small, sizes = counted(found.values())
    note(figure, small)
    yield Picture(
        "propagation_all",
        figure,
        "Squared length of the signal per unit (top) and Frobenius norm of the gradient (bottom) against the layer, at "
        "the start of training, for the paper's six activations, plain (dashed) and GPN (solid). Plain SELU keeps the "
        "signal: its line lies under that of GPN. What falls below a panel, or is exactly 0, is said in words."
        f"{shade(repeated(found.values()))} {sizes}.",
    )


def tell_the_dead(ax: Axes, table: pd.DataFrame, quantity: str, gpn: bool) -> None:
    """Say in words what a logarithmic axis cannot show: values that are exactly 0, or beyond the range of numbers."""
    values = table.set_index("layer")[quantity].dropna()
    zero, endless = values[values == 0], values[values.abs() == math.inf]
    words = []
    if len(zero) == len(values):
        words.append("all exactly 0")
    elif len(zero) > 0:
        words.append(f"exactly 0 in\n{len(zero)} layers")
    elif values.iloc[-1] < LOWEST or values.iloc[0] < LOWEST:
        words.append(f"down to\n{power_of_ten(values.min())}")
    if len(endless) > 0:
        words.append(f"infinite in\n{len(endless)} layers")
    if words:
        who = "GPN" if gpn else "non-GPN"
        ax.text(0.96, 0.05 + 0.27 * gpn, f"{who}\n" + "\n".join(words), fontsize=7, color=GREY, ha="right",
                transform=ax.transAxes, linespacing=1.1)  # fmt: skip


def power_of_ten(value: float) -> str:
    """Such as `$10^{-60}$`."""
    return f"$10^{{{math.floor(math.log10(value))}}}$"


def derivatives(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Histograms of φ'(h) in the last layer."""
    found, missing = of_size(config, "derivatives", ALL)
    yield from missing
    if not found:
        return
    figure, axes = canvas(DOUBLE, 3.3, 2, 3, sharex=True, sharey=True)
    for ax, base in zip(axes, PAPER_ACTIVATIONS, strict=True):
        for gpn in (True, False):
            summary = found.get(base + ("_gpn" if gpn else ""))
            if summary is None:
                continue
            bins = pd.read_csv(Path(summary["directory"]) / "histogram.csv")
            bins = bins[bins["layer"] == bins["layer"].max()]
            edges = [*bins["left"], bins["right"].iloc[-1]]
            ax.stairs(bins["density"], edges, baseline=DENSITIES[0], label=label(base, gpn), **stroke(base, gpn))
            if gpn:
                looks: dict[str, Any] = {"color": COLOURS[base], "alpha": 0.3, "linewidth": 0}
                ax.stairs(bins["density"], edges, baseline=DENSITIES[0], fill=True, **looks)
        log_axis(ax, "y", *DENSITIES, ticks=4)
        ax.set_xlim(-0.22, 1.86)
        ax.set_title(ACTIVATION_LABELS[base])
    for ax in axes[3:]:
        ax.set_xlabel(f"{SLOPE},  $l$ = {config.depth}")
    for ax in axes[::3]:
        ax.set_ylabel("density")
    legend_above(figure, [key("GPN"), key("non-GPN", linestyle="--")], 2)
    small, sizes = counted(found.values())
    note(figure, small)
    yield Picture(
        "derivatives",
        figure,
        "Density of the slopes of the activation at the preactivations of the last layer, the singular values of D, "
        "over all units and inputs: plain (dashed) and GPN (solid). Plain Tanh and ELU pile up at 1, where they are "
        f"linear; plain GELU sits at 0.5, as its signal is 0; ReLU and LReLU have two slopes only. {sizes}.",
    )
