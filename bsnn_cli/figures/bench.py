"""Figures of what `bsnn bench` has measured: speed beside plain PyTorch and the floor, and how cost grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bsnn_cli.figures.style import (
    COLOURS,
    DOUBLE,
    GREY,
    Missing,
    Picture,
    canvas,
    elsewhere,
    key,
    legend_above,
    note,
)
from bsnn_cli.settings.config import FiguresConfig
from bsnn_cli.timing.bench_table import VARIED, activation, exponent, heading, label, significant

OURS, FLOOR = COLOURS["tanh"], COLOURS["lrelu"]


def bench(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Speed of all implementations; growth with depth, width and number of networks."""
    path = Path(config.output_root) / "bench" / "bench.csv"
    arguments = elsewhere(config)
    if not path.is_file():
        yield Missing("bench", "times of steps", f"bsnn bench growth=true{arguments}")
        return
    table = pd.read_csv(path)
    compared, growing = table[~table["comparison"].isin(VARIED)], table[table["comparison"].isin(VARIED)]
    if not compared.empty:
        yield speeds(compared)
    if growing.empty:
        yield Missing("bench_growth", "times of steps by size", f"bsnn bench growth=true{arguments}")
    else:
        yield growth(growing)


def colour(implementation: str) -> str:
    """Ours, the floor, everything else."""
    return OURS if implementation == "bsnn" else FLOOR if implementation.startswith("floor") else GREY


def machine(row: pd.Series) -> str:
    """What it was timed on, for the note."""
    threads = f"{row['threads']} CPU thread{'s' if row['threads'] > 1 else ''}"
    device = threads if row["device"] == "cpu" else row["device"]
    return f"{device}, {row['precision']}, batches of {row['batch_size']}"


def speeds(table: pd.DataFrame) -> Picture:
    """Network-steps per second: a line for each implementation, comparisons one below the other."""
    lines = len(table) + table["comparison"].nunique()
    figure, [ax] = canvas(DOUBLE, 0.7 + 0.165 * lines)
    names, headings, y = [], [], 0
    for _, rows in table.groupby("comparison", sort=False):
        headings.append((y, heading(rows)))
        for row in rows.sort_values("network_steps_per_s", ascending=False).to_dict("records"):
            y += 1
            speed, per_second = row["network_steps_per_s"], 1e3 * row["networks"]
            low, high = per_second / row["step_ms_high"], per_second / row["step_ms_low"]
            spread = [[max(0, speed - low)], [max(0, high - speed)]]
            look: dict[str, Any] = {"fmt": "o", "markersize": 4, "color": colour(row["implementation"])}
            if row["implementation"].startswith("floor"):
                look["markerfacecolor"] = "white"
            ax.errorbar(speed, y, xerr=spread, elinewidth=1.2, **look)
            ax.annotate(factor(row), (high, y), (5, 0), textcoords="offset points", va="center", fontsize=7)
            names.append((y, label(row) + (f", {row['networks']} networks" if row["networks"] > 1 else "")))
        y += 1
    ax.set_yticks([place for place, _ in names], [text for _, text in names])
    ax.set_ylim(y - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    for place, text in headings:
        looks: dict[str, Any] = {"va": "center", "weight": "bold", "fontsize": 6.7}
        ax.annotate(text, (0, place), (4, 0), ("axes fraction", "data"), "offset points", **looks)
    plain_axis(ax, "x", table["network_steps_per_s"])
    ax.set_xlabel("network-steps per second")
    note(figure, machine(table.iloc[0]))
    return Picture(
        "bench",
        figure,
        "Updates per second, all networks of a fleet counted: medians and quartiles of steps that were timed in turns. "
        "Blue: this program; open: what is timed without anything around it and bounds every implementation; numbers: "
        f"times as fast as plain PyTorch. {machine(table.iloc[0])}.",
    )


def factor(row: Mapping[Any, Any]) -> str:
    """How many times as fast as plain PyTorch, where that says something."""
    times = row["ratio_to_plain"]
    told = not row["implementation"].startswith("floor") and row["implementation"] != "plain" and not pd.isna(times)
    return f"{significant(times)}×" if told else ""


def growth(table: pd.DataFrame) -> Picture:
    """Time of a step against each size, with the power law that fits."""
    figure, axes = canvas(DOUBLE, 2.5, 1, 3, sharey=True)
    for ax, name in zip(axes, VARIED, strict=True):
        rows = table[table["comparison"] == name]
        if rows.empty:
            ax.set_visible(False)
            continue
        fits = []
        for implementation in rows["implementation"].unique():
            own = rows[rows["implementation"] == implementation].set_index(name)["step_ms"]
            power, sizes = exponent(own), own.index.to_numpy(float)
            through = np.exp(np.log(own.to_numpy()).mean() + power * (np.log(sizes) - np.log(sizes).mean()))
            filled = "white" if implementation.startswith("floor") else colour(implementation)
            ax.plot(sizes, through, color=colour(implementation))
            ax.plot(sizes, own, "o", color=colour(implementation), markersize=4, markerfacecolor=filled)
            if implementation == "bsnn":
                fits.append(f"~ {name}$^{{{power:.2f}}}$")
        ax.set_title(" ".join(fits))
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(rows[name]))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        ax.set_xlabel(VARIED[name])
    plain_axis(axes[0], "y", table["step_ms"])
    axes[0].set_ylabel("time of a step (ms)")
    legend_above(
        figure,
        [key("bsnn", color=OURS, marker="o", markersize=4),
         key("floor", color=FLOOR, marker="o", markersize=4, markerfacecolor="white")],
        2,
    )  # fmt: skip
    first, fixed = table.iloc[0], table.iloc[-1]
    note(figure, f"{activation(first)}, {machine(first)}")
    return Picture(
        "bench_growth",
        figure,
        "Time of a step against depth, width and the number of networks trained at once; what is not varied is "
        f"{fixed['depth']} layers, {fixed['width']} units, 1 network. Medians, and power laws fitted to them, with the "
        f"exponent of this program above; open: the floor. {activation(first)}, {machine(first)}.",
    )


def plain_axis(ax: Axes, which: str, values: pd.Series) -> None:
    """A logarithmic axis with room on both sides, labelled 1, 2, 5, 10, ..."""
    low, high = values.min() / 1.4, values.max() * 1.6
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(low, high)
    axis = getattr(ax, f"{which}axis")
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    axis.set_major_locator(FixedLocator([digit * 10.0**power for power in decades for digit in (1, 2, 5)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
