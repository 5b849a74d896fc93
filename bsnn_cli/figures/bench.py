"""Figures of what `bsnn bench` has measured: speed beside plain PyTorch and the limit, and how cost grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bsnn_cli.figures.figure import COLOURS, DOUBLE, GREY, Axis, Figure, Missing, Panel, Series, Text
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import FiguresConfig
from bsnn_cli.timing.bench_table import VARIED, activation, exponent, heading, label, significant


def bench(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Speed of all implementations; growth with depth, width and number of networks."""
    table = stored.bench
    if table is None:
        yield Missing("bench", "times of steps", "bsnn bench growth=true")
        return
    compared, growing = table[~table["comparison"].isin(VARIED)], table[table["comparison"].isin(VARIED)]
    if not compared.empty:
        yield speeds(compared)
    if growing.empty:
        yield Missing("bench_growth", "times of steps by size", "bsnn bench growth=true")
    else:
        yield growth(growing)


WORDS = {"limit": "the limit of the machine", "products": "the products by PyTorch's library"}
"""Names of the lines beside this program, for the caption."""

OF_A_STEP = ("products", "arithmetic", "traffic", "limit", "floor", "floor_bytes")
"""Parts of a step, which are timed for comparison only; the last two are names of earlier versions."""


def looks(implementation: str) -> dict[str, Any]:
    """Return colour and marker: this program, a part of a step (open), everything else."""
    part = implementation in OF_A_STEP
    colour = COLOURS["tanh"] if implementation == "bsnn" else COLOURS["lrelu"] if part else GREY
    return {"colour": colour, "marker": "o", "hollow": part}


def machine(row: pd.Series) -> str:
    """Return what it was timed on, for the note."""
    threads = f"{row['threads']} CPU thread{'s' if row['threads'] > 1 else ''}"
    device = threads if row["device"] == "cpu" else row["device"]
    return f"{device}, {row['precision']}, batches of {row['batch_size']}"


def speeds(table: pd.DataFrame) -> Figure:
    """Return network-steps per second: a row for each implementation, comparisons one below the other."""
    series, factors, headings, names = [], [], [], {}
    y = 0
    for _, rows in table.groupby("comparison", sort=False):
        headings.append(Text(heading(rows), 0, y, "y", ("left", "center"), (4, 0), bold=True))
        for row in rows.sort_values("network_steps_per_s", ascending=False).to_dict("records"):
            y += 1
            per_second, speed = 1e3 * row["networks"], row["network_steps_per_s"]
            low, high = min(speed, per_second / row["step_ms_high"]), max(speed, per_second / row["step_ms_low"])
            names[y] = label(row) + (f", {row['networks']} networks" if row["networks"] > 1 else "")
            bars: dict[str, Any] = {"low": [low], "high": [high], "spread": "across", "dash": ""}
            series.append(Series(names[y], [speed], [y], **bars, **looks(row["implementation"])))
            if factor(row):
                factors.append(Text(factor(row), high, y, "xy", ("left", "center"), (5, 0)))
        y += 1
    return Figure(
        "bench",
        [
            Panel(
                plain_axis("network-steps per second", table["network_steps_per_s"]),
                Axis(limits=(y - 0.4, -0.6), ticks=tuple(names), words=tuple(names.values())),
                series,
                texts=[*factors, *headings],
            )
        ],
        "Updates per second, all networks of a fleet counted: medians and quartiles of steps that were timed in turns. "
        "Blue: this program; open: parts of a step alone; no step is faster than its arithmetic and its bytes; "
        f"numbers: times as fast as plain PyTorch. {machine(table.iloc[0])}.",
        machine(table.iloc[0]),
        legend=(),
        size=(DOUBLE, 0.7 + 0.165 * (len(table) + len(headings))),
        point=4,
    )


def factor(row: Mapping[Any, Any]) -> str:
    """Return how many times as fast as plain PyTorch it is, where that says something."""
    times = row["ratio_to_plain"]
    told = row["implementation"] not in (*OF_A_STEP, "plain") and not pd.isna(times)
    return f"{significant(times)}×" if told else ""


def growth(table: pd.DataFrame) -> Figure:
    """Return time of a step against each size, with the power law that fits."""
    y = plain_axis("time of a step (ms)", table["step_ms"])
    panels, shown = [], {}
    for name, words in VARIED.items():
        series, fits = [], []
        for implementation, times in grown(table[table["comparison"] == name], name).items():
            power, sizes = exponent(times), times.index.to_numpy(float)
            through = np.exp(np.log(times.to_numpy()).mean() + power * (np.log(sizes) - np.log(sizes).mean()))
            drawn = shown[implementation] = looks(implementation)
            series.append(Series(f"{implementation}, power law", sizes, through, colour=drawn["colour"]))
            series.append(Series(implementation, sizes, times, dash="", **drawn))
            if implementation == "bsnn":
                fits.append(f"~ {name}$^{{{power:.2f}}}$")
        if series:
            x = Axis(words, log=True, ticks=tuple(sorted({size for line in series for size in line.x})))
            panels.append(Panel(x, y, series, " ".join(fits)))
    first, fixed = table.iloc[0], table.iloc[-1]
    beside = " and ".join(WORDS[name] for name in shown if name in WORDS)
    return Figure(
        "bench_growth",
        panels,
        "Time of a step against depth, width and the number of networks trained at once; what is not varied is "
        f"{fixed['depth']} layers, {fixed['width']} units, 1 network. Medians, and power laws fitted to them, with the "
        f"exponent of this program above; open: {beside}. {activation(first)}, {machine(first)}.",
        f"{activation(first)}, {machine(first)}",
        [Series(name, **drawn) for name, drawn in shown.items()],
        len(panels),
        (DOUBLE, 2.5),
        point=4,
    )


def grown(rows: pd.DataFrame, name: str) -> dict[str, pd.Series]:
    """Return the times of a step and the limit against a size; files of earlier versions have products in its place."""
    ours = rows[rows["implementation"] == "bsnn"].set_index(name)
    floor = rows[rows["implementation"] == "floor"].set_index(name)["step_ms"]
    limit = ours["limit_ms"].dropna() if "limit_ms" in ours else floor.iloc[:0]
    beside = {"limit": limit, "products": floor}
    return {"bsnn": ours["step_ms"]} | {key: times for key, times in beside.items() if not times.empty}


def plain_axis(words: str, values: pd.Series) -> Axis:
    """Return a logarithmic axis with room on both sides, labelled 1, 2, 5, 10, ..."""
    low, high = values.min() / 1.4, values.max() * 1.6
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return Axis(words, log=True, limits=(low, high), ticks=tuple(tick for tick in ticks if low <= tick <= high))
