"""Figures of one network in variants: both solutions b of the normalisation, and before and after training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator

from bsnn_cli.figures.signals import (
    FORWARD,
    GRADIENT,
    Summary,
    counted,
    draw_signal,
    extent,
    layers,
    limits,
    of_paper,
    repeated,
    shade,
    size_arguments,
)
from bsnn_cli.figures.style import (
    DOUBLE,
    GREY,
    SINGLE,
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
from bsnn_cli.results import statistics
from bsnn_cli.results.formats import Row, records, setting
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS, parameter_in_use, root_in_use
from bsnn_cli.settings.config import FiguresConfig

BOTH_ROOTS = ("relu", "lrelu", "gelu", "silu")
"""Where the choice of the root matters: χ = 1 or χ > 1 with the upper one."""

QUANTITIES = (("forward_norm", FORWARD), ("gradient_norm", GRADIENT), ("one_minus_cosine", "$1 - \\cos$"))

TRAINED = {
    "unit_rows": "after training, unit rows",
    "orthogonal": "after training, orthogonal weights",
}
"""How the legend of `after_training` calls the weights of a trained network."""

FRESH = "before training"

SIGNALS = ("source", "dataset", "inputs")
"""Of a summary: what a network has been measured on."""

AFTER: dict[str, dict[str, Any]] = {
    TRAINED["unit_rows"]: {"linestyle": "-", "linewidth": 1.6},
    TRAINED["orthogonal"]: {"linestyle": "--", "linewidth": 0.9, "marker": "o", "markersize": 4, "markevery": 0.12,
                            "markerfacecolor": "white"},
    FRESH: {"linestyle": ":", "color": GREY},
}  # fmt: skip
"""Lines of `after_training`, by the words of the legend."""

HIGHEST, LOWEST = 1e12, 1e-6
"""Larger and smaller values run out of their panel."""

Variant: TypeAlias = "tuple[str, Sequence[Summary]]"
"""Words of the legend, and the measurements whose geometric mean the line is."""


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
    words = {"upper": "upper root of $b$", "lower": "lower root"}
    columns = {
        ACTIVATION_LABELS[name] + "-GPN": [(words[root], [found[name][root]]) for root in words if root in found[name]]
        for name in BOTH_ROOTS
        if name in found
    }
    if not columns:
        return
    yield grid(
        "root_signals",
        columns,
        config.depth,
        {words["upper"]: {"linestyle": "-"}, words["lower"]: {"linestyle": ":"}},
        "Squared length of the signal per unit (top), Frobenius norm of the gradient (middle) and mean 1 − cosine "
        "between inputs (bottom) against the layer, at the start of training, with the upper (solid) and the lower "
        "(dotted) of the two solutions b. The upper one lets lengths wander (ReLU, LReLU: χ = 1) or drives them away "
        "(GELU, SiLU: χ > 1); the lower one keeps them, and does not keep inputs any further apart. Above 1e12 a line "
        "leaves its panel.",
    )


def after_training(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Signals of trained networks, the mean over the seeds, beside those of the same network at the start of training.

    Of several trainings, or several kinds of signals, it is the one that most networks share.
    """
    stored = Results(config.output_root)
    size = config.depth, config.width, None
    same = [each for each in stored.measured if (each["depth"], each["width"], each["approach"]) == size]
    trained = [each for each in same if each["trained"] is not None and each["config"]["model"]["weights"] in TRAINED]
    if not trained:
        command = "bsnn propagate run=RUN_DIRECTORY propagate.source=dataset"
        yield Missing("after_training", f"signals of trained networks, L = {config.depth}", command + elsewhere(config))
        return
    told = {} if stored.finished.empty else {row["directory"]: training(row) for row in records(stored.finished)}
    ways = [(told.get(each["trained"], ""), *(each[key] for key in SIGNALS)) for each in trained]
    [(way, _)] = Counter(ways).most_common(1)
    columns = over_seeds([each for each, own in zip(trained, ways, strict=True) if own == way])
    n = extent(len(networks) for lines in columns.values() for _, networks in lines)
    fresh = []
    for lines in columns.values():
        start = [each for each in same if each["trained"] is None and starts(each, lines[0][1][0])][:1]
        lines += [(FRESH, start)] if start else []
        fresh += start
    shown = {words for lines in columns.values() for words, _ in lines}
    looks = {TRAINED["unit_rows"]: "solid", TRAINED["orthogonal"]: "dashed, circles", FRESH: "dotted"}
    yield grid(
        "after_training",
        columns,
        config.depth,
        {words: AFTER[words] for words in AFTER if words in shown},
        "Squared length of the signal per unit (top), Frobenius norm of the gradient (middle) and mean 1 − cosine "
        "between inputs (bottom) against the layer: "
        f"{', '.join(f'{words} ({looks[words]})' for words in AFTER if words in shown)}; geometric mean over the "
        f"networks{', before training the mean' if fresh else ''}.{f' Trained on {way[0]}.' if way[0] else ''}",
        "networks or repeats" if repeated(trained) else "networks",
        f"networks: {n}" + (f", fresh: {extent(each['repeats'] for each in fresh)}" if fresh else ""),
    )


def training(run: Row) -> str:
    """What a run was trained on and how long, such as `MNIST, 1 epoch`, and what else sets the protocol apart."""
    epochs = run["optim.epochs"]
    apart = statistics.without(run["protocol"], "model.weights", "optim.epochs")
    return setting({**run, "setting": f"{epochs} epoch{'s' if epochs > 1 else ''}" + (f", {apart}" if apart else "")})


def over_seeds(trained: Sequence[Summary]) -> dict[str, list[Variant]]:
    """By heading and weights, the networks that differ in nothing but the seed; of several such sets the largest."""
    found: dict[str, dict[str, dict[str, dict[str, Summary]]]] = {}
    for each in sorted(trained, key=lambda each: each["repeats"]):  # of one network the best stands last
        heading = each["activation"] if "-bn" in each["activation"] else each["label"]
        but_seed = re.sub(r"-s\d+$", "", Path(each["trained"]).name)
        sets = found.setdefault(heading, {}).setdefault(TRAINED[each["config"]["model"]["weights"]], {})
        sets.setdefault(but_seed, {})[each["trained"]] = each
    return {
        heading: [
            (words, list(max(found[heading][words].values(), key=len).values()))
            for words in TRAINED.values()
            if words in found[heading]
        ]
        for heading in sorted(found)
    }


def starts(fresh: Summary, trained: Summary) -> bool:
    """Whether a fresh network is the start of a trained one, measured on the same kind of signals."""
    same = ("activation", *SIGNALS)
    alike = all(fresh[name] == trained[name] for name in same) and _network(fresh) == _network(trained)
    return alike and fresh["config"]["model"]["init"] == "orthogonal"


def _network(summary: Summary) -> tuple[Any, ...]:
    """What training leaves as it is; older measurements know nothing of tailoring."""
    activation, model = summary["config"]["activation"], summary["config"]["model"]
    parameter = parameter_in_use(activation["name"], activation.get("parameter"))
    separation = activation.get("separation")
    tailoring = separation, activation.get("tailored_depth"), None if separation is None else parameter
    return root_in_use(activation["name"], activation["root"]), tailoring, model["norm"], model["residual"]


def grid(
    name: str,
    columns: Mapping[str, Sequence[Variant]],
    depth: int,
    legend: Mapping[str, dict[str, Any]],
    caption: str,
    over: str = "repeats",
    networks: str = "",
) -> Picture:
    """Three quantities against the layer, a column for each activation and a line for each variant.

    Args:
        name: of the picture.
        columns: heading → variants.
        depth: layers.
        legend: words → looks of the line.
        caption: what there is to see, without sizes.
        over: what the bands are over.
        networks: n in words, where repeats do not tell it.
    """
    tables = {
        heading: [(words, together(each), each[0]) for words, each in lines] for heading, lines in columns.items()
    }
    width = min(DOUBLE, max(SINGLE, 1.0 + 1.75 * len(columns)))
    figure, axes = canvas(width, 4.6, len(QUANTITIES), len(columns), sharex=True, sharey="row")
    for row, (quantity, title) in enumerate(QUANTITIES):
        low, high = limits([table for lines in tables.values() for _, table, _ in lines], quantity, LOWEST)
        for column, (heading, lines) in enumerate(tables.items()):
            ax = axes[row * len(columns) + column]
            for words, table, first in lines:
                own: dict[str, Any] = {"color": colour(first["config"]["activation"]["name"])}
                draw_signal(ax, table, quantity, **own | legend[words])
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
    handles = [key(words, **looks) for words, looks in legend.items()]
    legend_above(figure, handles, min(len(handles), len(columns)))  # side by side as far as there is room
    shown = [own for lines in columns.values() for _, own in lines]
    bands = any(len(own) > 1 or repeated(own) for own in shown)
    small, sizes = counted((each for own in shown for each in own), networks)
    note(figure, small)
    return Picture(name, figure, f"{caption}{shade(bands, over)} {sizes}.")


def together(networks: Sequence[Summary]) -> pd.DataFrame:
    """Their `layers.csv`; of several the geometric mean, with the deviation of the logarithms as a factor."""
    if len(networks) == 1:
        return layers(networks[0])
    names = [quantity for quantity, _ in QUANTITIES]
    values = pd.concat([layers(each).set_index("layer")[names] for each in networks])
    with np.errstate(divide="ignore"):  # of a signal that is exactly 0
        groups = values.apply(np.log).groupby("layer")
    mean, factor = groups.mean().apply(np.exp), groups.std().apply(np.exp)
    return mean.join((mean * (factor - 1)).add_suffix("_std")).reset_index()
