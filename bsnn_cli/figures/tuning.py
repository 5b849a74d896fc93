"""Accuracy against a setting that was varied, a line for each network: `bsnn figures only=tuning by=optim.lr`.

Whatever else sets runs apart is never merged: there is a figure for each set of other settings. More networks than one
panel bears stand in several, by kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import metrics, overlays
from bsnn_cli.figures.figure import COLOURS, DASHES, DOUBLE, Axis, Figure, Missing, Panel, Series, extent
from bsnn_cli.figures.printing import file_name, legend_rows
from bsnn_cli.results import statistics, tuned
from bsnn_cli.results.formats import records
from bsnn_cli.results.store import Results
from bsnn_cli.results.variation import BY_THEMSELVES, FEWEST, RATE, alike, numbers, varied
from bsnn_cli.settings.choices import METRICS, split_label
from bsnn_cli.settings.config import FiguresConfig
from bsnn_cli.settings.identity import Protocol

AT_THE_END = tuple(name for name in METRICS if name.endswith(("_accuracy", "_loss")))
"""The metrics of a run that its result has."""

GPN, TAILORED, LINEAR, PLAIN, OTHERS = "GPN", "depth-aware GPN", "linear", "non-GPN", "other approaches"
PANELS = ((GPN,), (TAILORED, LINEAR), (PLAIN,), (OTHERS,))
"""Kinds of networks that share panels, where one panel does not bear all networks."""

NARROW = 4.6
"""Width in inches of a figure of one panel."""

HEIGHT = 2.5
"""Height in inches of a panel with its legend."""

ROOM = 0.06
"""Left free at both ends of the values, as a share of what they span."""

MARKERS = ("o", "s", "^", "D", "v", "p")

APART = 0.006
"""Distance between the points of two networks at one value, as a share of a logarithmic axis: none hides another."""

STRIP = 0.08
"""Height of the part of a panel where crosses stand for what diverged, as a share of the rest."""


@dataclass(frozen=True)
class Network:
    """One line of a figure.

    Attributes:
        name: for the legend.
        kind: of `PANELS`.
        activation: such as `tanh_gpn`.
        cells: rows of `statistics.over_seeds`, one for each `setting` of the key in rising order.
        chosen: the value with the highest mean validation accuracy, or None.
    """

    name: str
    kind: str
    activation: str
    cells: pd.DataFrame
    chosen: float | None


def tuning(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Yield a figure for each metric and set of other settings of runs that differ in a key and their network alone.

    Raises:
        ConfigError: a key without numbers, or in which no two runs of a network differ; a metric that no run has.
    """
    chosen = list(dict.fromkeys(config.metric or []))
    for metric in chosen:
        if metric not in AT_THE_END:
            raise ConfigError(
                f"metric={metric}: is not in the result of a run, which tuning draws; choose among "
                f"{', '.join(AT_THE_END)}"
            )
    if config.by is None:
        key, groups = varied(stored.finished)
    else:
        key, groups = config.by, asked_for(stored.finished, config.by)
    if not groups:
        command = "bsnn train experiment=approaches 'approach=glob(*)'"
        yield Missing("tuning", f"runs at {FEWEST} or more values of a setting such as {RATE}", command)
    wanted: list[str | None] = [*chosen] or [None]
    figures = [
        figure for metric in wanted for common, runs in groups.items() for figure in against(key, common, runs, metric)
    ]
    if groups and not figures:
        remedy = metrics.MEASURED_BY.get(chosen[0].partition("_")[0], "train again with force=true")
        raise ConfigError(f"metric={chosen[0]}: no run that differs in {key} has it at its end ({remedy})")
    yield from figures


def asked_for(runs: pd.DataFrame, key: str) -> dict[Protocol, pd.DataFrame]:
    """Return the runs that differ in a key which is asked for.

    Raises:
        ConfigError: it is unknown, has no numbers, or no two runs of a network differ in it alone.
    """
    tuned.check([key], "by")
    if runs.empty:
        return {}
    values = numbers(runs, key)
    if values.empty:
        raise ConfigError(f"by={key}: no run has a number there, and tuning draws against one such as {RATE}")
    if values.nunique() == 1:
        raise ConfigError(f"by={key}: {overlays.same(runs.loc[values.index], key, values.iloc[0])}")
    groups = alike(runs, key, 2)
    if not groups:
        others = ", ".join(overlays.varied(runs, key))
        raise ConfigError(f"by={key}: no two runs differ in it alone; they also differ in {others}")
    return groups


def against(key: str, common: Protocol, runs: pd.DataFrame, metric: str | None) -> Iterator[Figure]:
    """Yield the figure of runs that have these settings in common; none if no run has the metric.

    Args:
        key: that was varied.
        common: settings, as `variation.shared` returns them.
        runs: as `variation.alike` returns them.
        metric: of `AT_THE_END`; None for validation accuracy or, where no part was set aside, test accuracy.
    """
    labels = runs["form"].map(overlays.activation_label)
    by_themselves = runs["followed"].isin(BY_THEMSELVES)
    runs = runs.assign(network=labels.where(by_themselves, runs["followed"] + " (" + labels + ")"))
    validated = runs["validation_accuracy"].notna().any()
    metric = metric or ("validation_accuracy" if validated else "test_accuracy")
    measured = runs[metric].astype(float).where(runs["status"] == "done")
    if measured.isna().all() and (runs["status"] == "done").any():
        return
    cells = statistics.over_seeds(runs, ["network", "setting"], {metric: measured})
    choices = tuned.choose(runs, [key]).of(key)["value"] if validated else pd.Series(dtype=object)
    networks = networks_of(runs, cells, choices)
    lost = bool(((cells["n"] == 0) & (cells["diverged"] > 0)).any())
    x = x_axis(key, cells["setting"])
    y, height = with_strip(metrics.axis(metric, [cells]), metric, lost)
    y = replace(y, mark=chance(runs, metric))
    panels = []
    for title, part in parts(networks):
        looks = looks_of(part, x)
        lines = [drawn(network, look, y, height) for network, look in zip(part, looks, strict=True)]
        series = [entry for layer in zip(*lines, strict=True) for entry in layer if len(list(entry.x))]
        legend = [Series(network.name, **look) for network, look in zip(part, looks, strict=True)]
        facet = f"{overlays.Common(common)}{title and ': '}{title}"
        panels.append(Panel(x, y, series, title, facet=facet, legend=legend))
    columns = min(2, len(panels))
    width = DOUBLE if columns == 2 else NARROW
    words = described(runs, common)
    counts = extent(cells["n"][cells["n"] > 0]) if (cells["n"] > 0).any() else "0"
    marks = signs(key, metric, networks, lost, y)
    yield Figure(
        file_name("tuning", f"by_{key}", metric, *overlays.Common(common).parts),
        panels,
        caption(key, metric, words, cells, counts, x, y, list(marks.values())),
        f"{words}; seeds of a point: {counts}",
        list(marks),
        columns,
        (width, 0.5 + 0.17 * legend_rows(list(marks), width) + HEIGHT * -(-len(panels) // columns)),
    )


def networks_of(runs: pd.DataFrame, cells: pd.DataFrame, choices: pd.Series) -> list[Network]:
    """Return the networks of some runs, in the order of the tables, with what is chosen for each by identity."""
    runs = runs.assign(chosen=runs["identity"].map(choices))
    rows = records(runs.drop_duplicates("network"))
    rows.sort(key=lambda row: (row["followed"] not in BY_THEMSELVES, *map(statistics.axis_order, order_of(row))))
    networks = []
    for row in rows:
        name = row["network"]
        best = runs.loc[runs["network"] == name, "chosen"].dropna()
        networks.append(
            Network(
                name,
                kind_of(row["followed"], row["form"]),
                row["form"],
                cells[cells["network"] == name].sort_values("setting"),
                None if best.empty else float(best.iloc[0]),
            )
        )
    return networks


def order_of(run: dict[Any, Any]) -> tuple[str, str]:
    """Return what networks are ordered by: those named after their activation alone have no approach."""
    return "" if run["followed"] in BY_THEMSELVES else run["followed"], run["form"]


def kind_of(approach: str, activation: str) -> str:
    """Return the kind of a network, of `PANELS`."""
    if approach not in BY_THEMSELVES:
        return OTHERS
    base, form = split_label(activation.partition(" ")[0])
    return LINEAR if base == "identity" else {"_gpn": GPN, "_gpn_d": TAILORED, "": PLAIN}[form]


def parts(networks: Sequence[Network]) -> Iterator[tuple[str, Sequence[Network]]]:
    """Yield the heading and the networks of each panel; a single one needs no heading."""
    if len(networks) <= overlays.MOST:
        yield "", networks
        return
    for kinds in PANELS:
        members = [network for network in networks if network.kind in kinds]
        title = " and ".join(kind for kind in kinds if any(network.kind == kind for network in members))
        divided = list(overlays.split(members)) if members else []
        for number, part in enumerate(divided, 1):
            count = f", {number} of {len(divided)}" if len(divided) > 1 else ""
            yield f"{title[0].upper()}{title[1:]}{count}", part


def looks_of(networks: Sequence[Network], x: Axis) -> list[dict[str, Any]]:
    """Return how the `Series` of each network of a panel looks.

    Activations have their colour of every figure. Other networks have colours that are left over.
    """
    forms = [split_label(network.activation.partition(" ")[0]) for network in networks]
    named = [
        network.kind != OTHERS and base in COLOURS and (base, form) not in forms[:place]
        for place, (network, (base, form)) in enumerate(zip(networks, forms, strict=True))
    ]
    taken = {COLOURS[base] for (base, _), by_name in zip(forms, named, strict=True) if by_name}
    spare = itertools.cycle([colour for colour in overlays.PALETTE if colour not in taken] or overlays.PALETTE)
    low, high = x.limits or (1.0, 1.0)
    apart = (high / low) ** APART if x.log else 1.0
    return [
        ({"activation": base} if by_name else {"colour": next(spare)})
        | {"dash": DASHES[form], "marker": MARKERS[place], "hollow": True}
        | {"nudge": apart ** (place - (len(networks) - 1) / 2)}
        for place, ((base, form), by_name) in enumerate(zip(forms, named, strict=True))
    ]


def drawn(network: Network, look: dict[str, Any], y: Axis, height: float) -> tuple[Series, Series, Series]:
    """Return the line of a network with all its points, the chosen one, and crosses where all runs diverged."""
    cells = network.cells
    points = cells[cells["n"] > 0]
    best = points[points["setting"] == network.chosen]
    lost = cells["setting"][(cells["n"] == 0) & (cells["diverged"] > 0)]
    look = look | {"spread": "bars"}
    alone = look | {"dash": "", "hollow": False}
    low, high = metrics.band(points, y.log)
    bars: dict[str, Any] = {"low": low, "high": high} if points["std"].notna().any() else {}
    return (
        Series(network.name, points["setting"], points["mean"], **look, **bars),
        Series(network.name, best["setting"], best["mean"], **alone),
        Series(network.name, lost, [height] * len(lost), **alone | {"marker": "x", "nudge": look["nudge"] ** 2}),
    )


def x_axis(key: str, values: pd.Series) -> Axis:
    """Return the axis of a key: logarithmic if its values span more than a decade."""
    entry = tuned.OPTIONS.get(key)
    words = "" if entry is None else entry.metadata["meaning"] if key == RATE else entry.metadata["unit"]
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > 10 * low
    room = (high / low) ** ROOM if log else ROOM * (high - low)
    limits = (low / room, high * room) if log else (low - room, high + room)
    ticks = metrics.ticks(*limits) if log else ()
    whole = not log and bool((values % 1 == 0).all())
    return Axis(f"{key} ({words})" if words else key, log=log, limits=limits, ticks=ticks, whole=whole)


def with_strip(y: Axis, metric: str, lost: bool) -> tuple[Axis, float]:
    """Return the axis with room for crosses at its bad end, if there are any, and the height at which they stand."""
    low, high = y.limits or (0.0, 100.0)
    if not lost:
        return replace(y, limits=(low, high)), low
    ends = np.log([low, high]) if y.log else np.array([low, high])
    strip = STRIP * (ends[1] - ends[0])
    bad, sign = (0, -1) if metric.endswith("_accuracy") else (1, 1)
    height = ends[bad] + sign * strip / 2
    ends[bad] += sign * strip
    back = np.exp if y.log else np.asarray
    return replace(y, limits=(float(back(ends[0])), float(back(ends[1])))), float(back(height))


def chance(runs: pd.DataFrame, metric: str) -> float | None:
    """Return the accuracy of guessing, in percent; None if the runs do not say how many classes there are."""
    classes = set(runs["classes"].dropna()) if metric.endswith("_accuracy") else set[Any]()
    return 100 / classes.pop() if len(classes) == 1 else None


def described(runs: pd.DataFrame, common: Protocol) -> str:
    """Return size of the networks, epochs, dataset and protocol in words."""
    plain = runs[["network.path", "model.widths", "model.taper"]].isna().all(axis=None)
    plain = plain and (runs["network.kind"] == "mlp").all()
    sizes = {"model.depth": "L = {} layers", "model.width": "n = {} units"} if plain else {}
    sizes |= {"optim.epochs": "{} epoch" + ("" if (runs["optim.epochs"] == 1).all() else "s")}
    told = ", ".join(text.format(extent(runs[key].astype(int))) for key, text in sizes.items())
    rest = str(overlays.Common(statistics.without(common, *sizes)))
    return f"{told} on {rest}".replace("the paper's protocol", "else the paper's protocol")


def signs(key: str, metric: str, networks: Sequence[Network], lost: bool, y: Axis) -> dict[Series, str]:
    """Return the entries of the legend above the panels, and what the caption says of each."""
    low, high = y.limits or (0.0, 0.0)
    told = {}
    if any(network.chosen is not None for network in networks):
        best = f"filled: the value with the highest mean validation accuracy, as bsnn table tune={key} chooses it"
        told[Series("chosen by validation", dash="", marker="o")] = best
        told[Series("tried", dash="", marker="o", hollow=True)] = ""
    if lost:
        end = "bottom" if metric.endswith("_accuracy") else "top"
        told[Series("all diverged", dash="", marker="x")] = f"crosses at the {end}: all runs diverged"
    if y.mark is not None and low < y.mark < high:
        told[Series("chance", dash=":")] = "dotted: chance"
    return told


def caption(
    key: str, metric: str, words: str, cells: pd.DataFrame, counts: str, x: Axis, y: Axis, signs: Sequence[str]
) -> str:
    """Return the caption of the figure of some cells."""
    what = metrics.NAMES[metric]
    averaged = {"0": "", "1": "one seed a point"}.get(counts, f"mean over n = {counts} seeds")
    averaged += " (of those that did not diverge)" if ((cells["n"] > 0) & (cells["diverged"] > 0)).any() else ""
    bars = f", {metrics.spread_in_words([y]).replace('band', 'bars')}" if cells["std"].notna().any() else ""
    return (
        f"{what[0].upper()}{what[1:]} at the end of training against {key}, a line for each network: {words}; "
        + "; ".join(part for part in (f"{averaged}{bars}", *signs) if part)
        + ("; networks are set apart a little." if x.log and cells["network"].nunique() > 1 else ".")
    )
