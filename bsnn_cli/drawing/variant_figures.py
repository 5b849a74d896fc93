"""Figures of one network in variants: both solutions b of the normalisation, and before and after training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from matplotlib.ticker import FixedLocator

from bsnn_cli.drawing.plotting import (
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
from bsnn_cli.drawing.signal_figures import (
    FORWARD,
    GRADIENT,
    Summary,
    counted,
    draw_signal,
    layers,
    limits,
    of_paper,
    size_arguments,
)
from bsnn_cli.measuring import propagation_store
from bsnn_cli.settings.choices import ACTIVATION_LABELS, root_in_use
from bsnn_cli.settings.config import FiguresConfig

BOTH_ROOTS = ("relu", "lrelu", "gelu", "silu")
"""Where the choice of the root matters: χ = 1 or χ > 1 with the upper one."""

QUANTITIES = (("forward_norm", FORWARD), ("gradient_norm", GRADIENT), ("one_minus_cosine", "$1 - \\cos$"))

AFTER = {
    "after training, unit rows": ("-", "solid"),
    "after training, orthogonal weights": ("--", "dashed"),
    "before training": (":", "dotted"),
}
"""Line styles of `after_training`, and how the caption calls them."""

HIGHEST, LOWEST = 1e12, 1e-6
"""Larger and smaller values run out of their panel."""

Variant: TypeAlias = "tuple[str, Summary]"
"""A line style, and the measurement that it shows."""


def root_signals(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Signals, gradients and angles with the upper and the lower solution b."""
    found: dict[str, dict[str, Summary]] = {}
    for each in sorted(of_paper(config), key=lambda each: each["repeats"]):  # of several the best stands last
        activation = each["config"]["activation"]
        normalised = activation["gpn"] and activation.get("separation") is None
        if each["width"] == config.width and normalised and activation["name"] in BOTH_ROOTS:
            root = root_in_use(activation["name"], activation["root"])
            found.setdefault(activation["name"], {})[root] = each
    absent = [name for name in BOTH_ROOTS if len(found.get(name, {})) < 2]
    if absent:
        names = ",".join(f"{name}_gpn" for name in absent)
        command = f"bsnn propagate -m activation={names} activation.root=upper,lower" + size_arguments(config)
        yield Missing("root_signals", f"signals with both roots of {', '.join(absent)}", command)
    styles = {"upper": "-", "lower": ":"}
    columns = {
        ACTIVATION_LABELS[name] + "-GPN": [(styles[root], found[name][root]) for root in styles if root in found[name]]
        for name in BOTH_ROOTS
        if name in found
    }
    if not columns:
        return
    yield grid(
        "root_signals",
        columns,
        config.depth,
        {"upper root of $b$": "-", "lower root": ":"},
        "Squared length of the signal per unit (top), Frobenius norm of the gradient (middle) and mean 1 − cosine "
        "between inputs (bottom) against the layer, at the start of training, with the upper (solid) and the lower "
        "(dotted) of the two solutions b. The upper one lets lengths wander (ReLU, LReLU: χ = 1) or drives them away "
        "(GELU, SiLU: χ > 1); the lower one keeps them, and does not keep inputs any further apart. Above 1e12 a line "
        "leaves its panel.",
    )


def after_training(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Signals of trained networks, beside those of the same network at the start of training."""
    stored = [
        each
        for each in propagation_store.load_all(config.output_root)
        if (each["depth"], each["width"], each["approach"]) == (config.depth, config.width, None)
    ]
    trained = [each for each in stored if each["trained"] is not None]
    if not trained:
        command = "bsnn propagate run=RUN_DIRECTORY propagate.source=dataset"
        yield Missing("after_training", f"signals of trained networks, L = {config.depth}", command + elsewhere(config))
        return
    columns: dict[str, list[Variant]] = {}
    for each in trained:
        style = "--" if each["config"]["model"]["weights"] == "orthogonal" else "-"
        columns.setdefault(each["activation"], []).append((style, each))
    for lines in columns.values():
        lines += [(":", each) for each in stored if each["trained"] is None and starts(each, lines[0][1])][:1]
    shown = {style for lines in columns.values() for style, _ in lines}
    ordered = {columns[name][0][1]["label"] if "-bn" not in name else name: columns[name] for name in sorted(columns)}
    yield grid(
        "after_training",
        ordered,
        config.depth,
        {text: style for text, (style, _) in AFTER.items() if style in shown},
        "Squared length of the signal per unit (top), Frobenius norm of the gradient (middle) and mean 1 − cosine "
        "between inputs (bottom) against the layer: "
        f"{', '.join(f'{text} ({look})' for text, (style, look) in AFTER.items() if style in shown)}.",
    )


def starts(fresh: Summary, trained: Summary) -> bool:
    """Whether a fresh network is the start of a trained one, measured on the same kind of signals."""
    same = ("activation", "source", "dataset", "inputs")
    alike = all(fresh[name] == trained[name] for name in same) and _network(fresh) == _network(trained)
    return alike and fresh["config"]["model"]["init"] == "orthogonal"


def _network(summary: Summary) -> tuple[Any, ...]:
    """What training leaves as it is; older measurements know nothing of tailoring."""
    activation, model = summary["config"]["activation"], summary["config"]["model"]
    tailoring = activation.get("separation"), activation.get("tailored_depth")
    return root_in_use(activation["name"], activation["root"]), tailoring, model["norm"], model["residual"]


def grid(
    name: str, columns: Mapping[str, Sequence[Variant]], depth: int, legend: Mapping[str, str], caption: str
) -> Picture:
    """Three quantities against the layer, a column for each activation and a line for each variant.

    Args:
        name: of the picture.
        columns: heading → variants.
        depth: layers.
        legend: words → line style.
        caption: what there is to see, without sizes.
    """
    tables = {heading: [(style, layers(each), each) for style, each in lines] for heading, lines in columns.items()}
    width = min(DOUBLE, 1.0 + 1.75 * len(columns))
    figure, axes = canvas(width, 4.6, len(QUANTITIES), len(columns), sharex=True, sharey="row")
    for row, (quantity, title) in enumerate(QUANTITIES):
        low, high = limits([table for lines in tables.values() for _, table, _ in lines], quantity, LOWEST)
        for column, (heading, lines) in enumerate(tables.items()):
            ax = axes[row * len(columns) + column]
            for style, table, summary in lines:
                looks: dict[str, Any] = {"color": colour(summary["config"]["activation"]["name"]), "linestyle": style}
                draw_signal(ax, table, quantity, **looks)
            log_axis(ax, "y", low, min(high, HIGHEST), ticks=5)
            ax.set_xlim(0, depth + 1)
            ax.xaxis.set_major_locator(FixedLocator([1, depth // 2, depth]))
            if row == 0:
                ax.set_title(heading)
            if row == len(QUANTITIES) - 1:
                ax.set_xlabel("layer $l$")
            if column == 0:
                ax.set_ylabel(title)
    figure.align_ylabels()
    handles = [key(text, linestyle=style, color=GREY) for text, style in legend.items()]
    legend_above(figure, handles, min(len(handles), len(columns)))  # side by side as far as there is room
    small, sizes = counted(each for lines in columns.values() for _, each in lines)
    note(figure, small)
    return Picture(name, figure, f"{caption} {sizes}.")
