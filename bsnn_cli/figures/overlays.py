"""Training curves of runs that differ in one key, over each other: `bsnn figures only=curves by=optim.lr metric=…`.

Whatever else sets runs apart is never merged: there is a figure for each set of other settings. Every line is the mean
over the seeds, in a panel for each metric; more lines than one panel bears stand in several panels side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import metrics
from bsnn_cli.figures.figure import COLOURS, DASHES, DOUBLE, Figure, Panel, Series, dataset_label, extent, label
from bsnn_cli.figures.printing import file_name, legend_rows
from bsnn_cli.results import pivot, statistics
from bsnn_cli.results.formats import records, value_text
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import split_label
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import Protocol
from bsnn_cli.settings.options import options

AnyLine = TypeVar("AnyLine")

MOST = 6
"""Lines in one panel."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
"""Colours of values without an order, told apart by colour-blind readers too (Okabe and Ito 2008)."""

STROKES = ("-", "--", "-.", ":")
"""Dashes of values without an order: a new one for every round of the palette."""

SHADES = "viridis"
DARKEST, LIGHTEST = 0.0, 0.88
"""Colours of numbers, from the smallest to the largest: a part of this map of matplotlib's."""


@dataclass(frozen=True)
class Line:
    """The runs with one value of the key.

    Attributes:
        value: of the key, as `values_of` has it.
        name: for the legend.
        looks: colour and dashes of the `Series`.
        runs: finished runs, one for each seed.
    """

    value: Any
    name: str
    looks: dict[str, Any]
    runs: pd.DataFrame

    @property
    def diverged(self) -> int:
        """The number of runs that diverged."""
        return int((self.runs["status"] == "diverged").sum())


def overlays(stored: Results, by: str, chosen: Sequence[str]) -> Iterator[Figure]:
    """Yield a figure for each set of settings that runs with several values of a key have in common.

    Args:
        stored: results.
        by: a dotted key of the configuration, `activation`, `approach`, `dataset` or `seed`.
        chosen: metrics, of `choices.METRICS`.

    Raises:
        ConfigError: the key is unknown, or no two finished runs differ in it alone, or there is nothing to draw.
    """
    key = pivot.axis_key("by", by)
    runs = stored.finished
    settings = pd.Series([shared(run, key) for run in records(runs)], index=runs.index, dtype=object)
    runs = runs.assign(value=values_of(runs, key))
    values = sorted(set(runs["value"]), key=statistics.axis_order)
    if len(values) == 1:
        raise ConfigError(f"by={by}: {same(runs, key, values[0])}")
    groups = {common: runs[settings == common] for common in sorted(set(settings))}
    groups = {common: group for common, group in groups.items() if group["value"].nunique() > 1}
    if not groups:
        raise ConfigError(
            f"by={by}: no two runs differ in it alone; they also differ in {', '.join(varied(runs, key))}"
        )
    measured = stored.epochs[stored.epochs[list(chosen)].notna().any(axis=1)].groupby("directory").size()
    groups = {common: group for common, group in groups.items() if group["directory"].map(measured).max() > 1}
    if not groups:
        raise ConfigError(
            f"by={by}: runs that differ in it have {' and '.join(chosen)} of one epoch at most, which makes no curve; "
            f"`bsnn table rows={by}` has what they came to"
        )
    for common, group in groups.items():
        yield overlay(key, common, group, stored.epochs, chosen)


def shared(run: dict[Any, Any], *keys: str) -> Protocol:
    """Return all settings of a run, but for its seed, that the keys do not cover."""
    covered = pivot.covered_by(keys, run)
    norm = (("model.norm", "batch"),) if run["batch_norm"] and "model.norm" not in covered else ()
    return Protocol((*pivot.rest_of(run, covered).items, *norm))


def values_of(runs: pd.DataFrame, key: str) -> pd.Series:
    """Return the value of each run; of an approach with the activation behind it, which is its own."""
    values = pivot.axis_values(runs, key, named=False)
    if key == "approach":
        return values + " (" + pivot.axis_values(runs, "activation", named=False).map(activation_label) + ")"
    return values


def varied(runs: pd.DataFrame, *besides: str) -> list[str]:
    """Return the keys in which runs differ and that can change a result, or the seed."""
    keys = [name for name, entry, _ in options(TrainConfig()) if entry.metadata["result"] or name == "seed"]
    covered = {name for key in besides for name in (key, *pivot.AXES.get(key, []))}
    there = [name for name in keys if name in runs and name not in covered]  # a mapping has a column for each entry
    return [name for name in there if runs[name].astype(str).nunique() > 1]


def same(runs: pd.DataFrame, key: str, value: Any) -> str:
    """Say that runs do not differ in a key, and in which they do."""
    n, others = len(runs), varied(runs, key)
    who = f"all {n} finished runs have" if n > 1 else "the only finished run has"
    rest = f"; they differ in {', '.join(others)}" if others else ""
    return f"{who} {value_text(value)}" + (rest or "; run others, or choose others by their settings")


def overlay(key: str, settings: Protocol, runs: pd.DataFrame, epochs: pd.DataFrame, chosen: Sequence[str]) -> Figure:
    """Return the figure of runs that have these settings in common and several values of a key."""
    lines = lines_of(key, runs)
    tables = {
        (metric, line.value): statistics.curves(line.runs, epochs, metric, ["value"])
        for metric in chosen
        for line in lines
    }
    last = max(table["epoch"].max() for table in tables.values() if len(table))
    x = metrics.epochs(int(last))
    axes = {metric: metrics.axis(metric, (tables[metric, line.value] for line in lines)) for metric in chosen}
    parts = list(split(lines))
    panels = []
    for metric, y in axes.items():
        for part in parts:
            drawn = [(line, tables[metric, line.value]) for line in part]
            series = [Series(line.name, **metrics.curve(rows, y), **line.looks) for line, rows in drawn]
            panels.append(Panel(x, y, series))
    columns = len(parts) if len(parts) > 1 else min(3, len(panels))
    width = min(DOUBLE, 1.2 + 2.6 * columns)
    common = Common(settings)
    legend = [Series(line.name, **line.looks) for line in lines]
    what = listed([metrics.NAMES[metric] for metric in chosen])
    banded = [panel.y for panel in panels if any(line.low is not None for line in panel.series)]
    bands = f", {metrics.spread_in_words(banded)}" if banded else ""
    counts = extent(len(line.runs) for line in lines)
    return Figure(
        file_name("curves", f"by_{key}", "-".join(chosen), *common.parts),
        panels,
        f"{what[0].upper()}{what[1:]} against the epoch, by {key}: {common}; {averaged(key, lines, counts)}{bands}.",
        str(common) + ("" if key == "seed" else f"; n = {counts}"),
        legend,
        columns,
        (width, 0.5 + 0.17 * legend_rows(legend, width) + 1.9 * -(-len(panels) // columns)),
        point=2.2,
    )


def lines_of(key: str, runs: pd.DataFrame) -> list[Line]:
    """Return a line for each value of a key, in the order of the tables, with the number of seeds where it varies."""
    groups = dict(list(runs.groupby("value")))
    values = sorted(groups, key=statistics.axis_order)
    if len(values) > MOST * len(STROKES):
        raise ConfigError(
            f"by={key}: has {len(values)} values, and a picture shows at most {MOST * len(STROKES)}; choose some, such "
            f"as {key}={','.join(map(value_text, values[:3]))}"
        )
    sizes = {len(group) for group in groups.values()}
    lines = []
    for value, looks in zip(values, looks_of(key, values), strict=True):
        line = Line(value, in_legend(key, value), looks, groups[value])
        notes = [f"n = {len(line.runs)}"] if len(sizes) > 1 else []
        if line.diverged:
            count = f"{line.diverged} " if line.diverged < len(line.runs) else "all " if len(line.runs) > 1 else ""
            notes.append(f"{count}diverged")
        lines.append(replace(line, name=line.name + (f" ({', '.join(notes)})" if notes else "")))
    return lines


def looks_of(key: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the colour and dashes of each value of a key.

    Activations have those that they have in every figure; numbers have shades from the smallest to the largest; all
    else has colours that differ as much as they can.
    """
    if key == "activation":
        forms = [split_label(value.partition(" ")[0]) for value in values]
        if len(set(forms)) == len(values) and all(base in COLOURS for base, _ in forms):
            return [{"activation": base, "dash": DASHES[form]} for base, form in forms]
    if key != "seed" and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        places = [DARKEST + (LIGHTEST - DARKEST) * place / max(1, len(values) - 1) for place in range(len(values))]
        dashes = itertools.cycle(STROKES if len(values) > MOST else STROKES[:1])  # neighbouring shades are alike
        shades = [to_hex(colormaps[SHADES](place)) for place in places]
        return [{"colour": shade, "dash": dash} for shade, dash in zip(shades, dashes, strict=False)]
    return [{"colour": PALETTE[n % MOST], "dash": STROKES[n // MOST]} for n in range(len(values))]


def in_legend(key: str, value: Any) -> str:
    """Return a value as a legend names it, such as `lr = 0.001`, `Tanh-GPN` or `MNIST`."""
    if key == "activation":
        return activation_label(value)
    if key == "approach":
        return str(value)
    if key == "dataset":
        return dataset_label(value)
    return f"{key.rpartition('.')[2]} = {value_text(value)}"


def activation_label(value: str) -> str:
    """Return an activation of `pivot.axis_values` as a legend names it, such as `Tanh-GPN-d 0.1`."""
    name, _, tailored = value.partition(" ")
    return " ".join(part for part in (label(name), tailored) if part)


def split(lines: Sequence[AnyLine]) -> Iterator[Sequence[AnyLine]]:
    """Yield as few parts as there can be of at most `MOST` lines, of about equal size."""
    parts = -(-len(lines) // MOST)
    ends = [round(len(lines) * part / parts) for part in range(parts + 1)]
    for first, end in itertools.pairwise(ends):
        yield lines[first:end]


class Common:
    """Network, dataset and protocol that runs have in common. As a text it is for a caption.

    Args:
        settings: as `shared` returns them.

    Attributes:
        network: such as `tanh_gpn`, or `GPN` where runs differ in φ; empty where they differ in both.
        separation: what depth-aware GPN is tailored to, or empty.
        dataset: its name, or empty.
        norm: whether there is batch normalisation.
        protocol: all else that differs from the paper's protocol.
    """

    def __init__(self, settings: Protocol) -> None:
        rest = settings.settings
        keys = ("activation.name", "activation.gpn", statistics.SEPARATION, "dataset")
        name, gpn, self.separation, self.dataset = (str(rest.pop(key, "")) for key in keys)
        form = ("_gpn_d" if self.separation else "_gpn") if gpn == "true" else ""
        self.network = f"{name}{form}" if name else {"true": "GPN", "false": "non-GPN", "": ""}[gpn]
        self.norm = rest.get("model.norm") == "batch"
        self.protocol = statistics.without(settings, *keys, *(["model.norm"] if self.norm else []))

    @property
    def parts(self) -> list[str]:
        """Return its part of the name of a file: dataset, activation such as `tanh_gpn-bn`, protocol."""
        network = "_".join(part for part in (self.network, self.separation) if part)
        return [
            self.dataset,
            "-".join(part for part in (network, "bn" if self.norm else "") if part),
            str(self.protocol),
        ]

    def __str__(self) -> str:
        network = " ".join(part for part in (label(self.network), self.separation) if part)
        where = " on ".join(part for part in (network, dataset_label(self.dataset)) if part)
        normalised = "with batch normalisation" if self.norm else ""
        apart = f"the paper's protocol except {self.protocol}" if self.protocol else "the paper's protocol"
        return ", ".join(part for part in (f"{where} {normalised}".strip(), apart) if part)


def averaged(key: str, lines: Sequence[Line], counts: str) -> str:
    """Return what each line is the mean of."""
    text = "one run each" if key == "seed" else "one seed" if counts == "1" else f"mean over n = {counts} seeds"
    return text + (metrics.DIVERGED if any(line.diverged for line in lines) else "")


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
