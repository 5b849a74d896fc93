"""The interactive plots of the report as plain data: panels and series, from stored numbers. Computes nothing.

A plot is `{"panels": [...], "series": [...]}`; the script in the page draws it and lets a reader choose. A series
belongs to a panel, to a `group` that can be switched on and off, such as an activation, and to a `facet`, of which one
is shown at a time; the facet "" belongs to all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.figures.signals import of_depth, of_size, preferred
from bsnn_cli.figures.style import colour, label
from bsnn_cli.results import statistics
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS, AUTO_ROOT, DATASETS, FORMS, split_label
from bsnn_cli.settings.config import FiguresConfig

Plot = dict[str, Any]
Series = dict[str, Any]

DASHES = {"": "dash", "_gpn": "", "_gpn_d": "dashdot"}
"""Of the lines of each of `FORMS`."""


def panel(title: str, x: str, y: str, **options: Any) -> dict[str, Any]:
    """One pair of axes; options `logx`, `logy`, `ticks` (of x), `range` (of y), `mark` (a line at this y)."""
    return {"title": title, "x": x, "y": y, **options}


def line(x: Iterable[Any], y: Iterable[Any], name: str, base: str, **options: Any) -> Series:
    """One line; what is not finite is a gap. Options `panel`, `facet`, `dash`, `mode`, `low`, `high`, `legend`."""
    series: Series = {"x": [numbers(value) for value in x], "y": [numbers(value) for value in y], "name": name}
    series |= {"colour": colour(base), "group": label(base, False), "panel": 0, "facet": ""}
    for key in ("low", "high"):
        if key in options:
            options[key] = [numbers(value) for value in options[key]]
    return series | options


def numbers(value: Any) -> float | None:
    """Five digits; None for what is not finite."""
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def name_of(activation: str) -> tuple[str, str, str]:
    """(base, as legends show it, dash of its lines) of `selu_gpn`."""
    base, form = split_label(activation)
    return base, ACTIVATION_LABELS.get(base, base) + FORMS[form], DASHES[form]


def headline(stored: Results) -> FiguresConfig:
    """The size whose signals are shown: the paper's, or else the one that most networks have been measured at."""
    config = FiguresConfig(output_root=str(stored.root))
    sizes = [(each["depth"], each["width"]) for each in stored.measured if each["approach"] is None]
    if sizes and (config.depth, config.width) not in sizes:
        config.depth, config.width = max(sizes, key=sizes.count)
    return config


def fresh_networks(stored: Results) -> dict[str, Mapping[str, Any]]:
    """Measurements of the paper's networks at the headline size, by activation."""
    config = headline(stored)
    names = [name + form for name in AUTO_ROOT for form in FORMS]
    return dict(of_size(config, "", names)[0])


def signals(stored: Results) -> Plot:
    """Length of the signal and norm of the gradient of every layer at the start of training."""
    series = []
    for activation, measured in fresh_networks(stored).items():
        base, words, dash = name_of(activation)
        series += layer_lines(measured, words, base, dash)
    return {"panels": layer_panels(), "series": series, "start": ["Tanh", "SELU"]}


def layer_panels() -> list[dict[str, Any]]:
    """Axes of `layer_lines`."""
    return [
        panel("Signal", "layer l", "‖xˡ‖²/n", logy=True),
        panel("Gradient", "layer l", "‖∂E/∂Wˡ‖", logy=True),
    ]


def layer_lines(measured: Mapping[Any, Any], words: str, base: str, dash: str, **options: Any) -> list[Series]:
    """Signal and gradient of one network against the layer; zeros are gaps on the logarithmic axis."""
    table = pd.read_csv(Path(measured["directory"]) / "layers.csv")
    found = []
    for place, quantity in enumerate(("forward_norm", "gradient_norm")):
        rows = table[table[quantity].notna() & (table[quantity] > 0)]
        found.append(line(rows["layer"], rows[quantity], words, base, panel=place, dash=dash, **options))
    return found


def silent(stored: Results) -> list[str]:
    """Labels of networks whose gradients are exactly 0 somewhere."""
    return [name_of(name)[1] for name, each in fresh_networks(stored).items() if each["zero_gradients"]]


def slopes(stored: Results) -> Plot:
    """Histograms of f'(h) in the last layer."""
    series = []
    for activation, measured in fresh_networks(stored).items():
        base, words, dash = name_of(activation)
        bins = pd.read_csv(Path(measured["directory"]) / "histogram.csv")
        bins = bins[bins["layer"] == bins["layer"].max()]
        edges = [edge for bar in bins.itertuples() for edge in (bar.left, bar.right)]
        tops = [top or math.nan for bar in bins.itertuples() for top in (bar.density, bar.density)]
        series.append(line(edges, tops, words, base, dash=dash))
    axes = [panel("Slopes in the last layer", "slope f'(h)", "density", logy=True)]
    return {"panels": axes, "series": series, "start": ["Tanh", "SELU"]}


def widths(stored: Results) -> Plot:
    """Gradient norm ratio against width, with one standard deviation over the repeats."""
    config = headline(stored)
    repeated = [each for each in of_depth(config) if each["repeats"] > 1]
    chosen = preferred(each for each in repeated if each["activation"].endswith("_gpn"))
    series = []
    for activation in dict.fromkeys(name for name, _ in chosen):
        base, words, _ = name_of(activation)
        rows = [chosen[where] for where in sorted(chosen) if where[0] == activation]
        if len(rows) > 1:
            ratio = [math.nan if row["gradient_norm_ratio"] is None else row["gradient_norm_ratio"] for row in rows]
            spread = [row["gradient_norm_ratio_std"] or 0.0 for row in rows]
            low, high = [[r + sign * s for r, s in zip(ratio, spread, strict=True)] for sign in (-1, 1)]
            options: dict[str, Any] = {"mode": "lines+markers", "low": low, "high": high}
            series.append(line([row["width"] for row in rows], ratio, words, base, **options))
    ticks = sorted({width for _, width in chosen})
    axes = [panel("Gradient norm ratio", "width n (units)", "largest / smallest ‖∂E/∂Wˡ‖", logx=True, ticks=ticks)]
    return {"panels": axes, "series": series}


def curves(stored: Results) -> Plot:
    """Test accuracy against the epoch; a facet for each dataset and protocol of more than one epoch."""
    series: list[Series] = []
    axes = [panel("Test accuracy", "epoch", "test accuracy (%)", range=[0, 100])]
    if stored.finished.empty:
        return {"panels": axes, "series": series}
    table = statistics.curves(stored.finished, stored.epochs)
    apart = ["dataset", "protocol", "batch_norm", "activation", "gpn", "separation"]
    for keys, rows in table.groupby(apart, sort=False):
        dataset, protocol, batch_norm, base, gpn = (*map(str, keys[:2]), keys[2], str(keys[3]), bool(keys[4]))
        if rows["epoch"].max() < 2:
            continue
        words = label(base, gpn, str(keys[5]))
        where = DATASETS[dataset].label if dataset in DATASETS else dataset
        facet = f"{where}{' with batch normalisation' if batch_norm else ''}: {protocol or 'the published protocol'}"
        options: dict[str, Any] = {"facet": facet, "dash": DASHES["_gpn_d" if keys[5] else "_gpn" if gpn else ""]}
        if rows["std"].notna().any():
            options |= {"low": rows["mean"] - rows["std"], "high": rows["mean"] + rows["std"]}
        options["mode"] = "lines+markers" if rows["epoch"].max() < 12 else "lines"
        series.append(line(rows["epoch"], rows["mean"], words, base, **options))
    distinct = dict.fromkeys(each["facet"] for each in series)
    facets = sorted(distinct, key=lambda facet: any(key in facet for key in statistics.COMPARED_KEYS))
    return {"panels": axes, "series": series, "facets": facets}


def theorems(stored: Results) -> Plot:
    """Probability of a deviation against width; a facet for each assumption that is broken."""
    cases = {"none": "all assumptions hold", "haar": "W is the identity and x spiky", "shell": "‖x‖²/n = 2",
             "gpn": "φ is not normalised"}  # fmt: skip
    series: list[Series] = []
    ticks: list[int] = []
    if stored.theory is not None:
        counted = stored.theory[stored.theory["estimate"].notna() & stored.theory["activation"].notna()]
        for keys, rows in counted.groupby(["what", "case", "activation"], sort=False):
            what, case, base = map(str, keys)
            options: dict[str, Any] = {"facet": cases[case], "panel": int(what[-1]) - 1, "mode": "lines+markers"}
            options |= {"low": rows["low"], "high": rows["high"]}
            series.append(line(rows["width"], rows["estimate"], label(base, False), base, **options))
        ticks = sorted({int(width) for width in counted["width"]})
    options = {"logx": True, "range": [-0.03, 1.03], "ticks": ticks}
    axes = [panel(f"Theorem {number}", "width n (units)", "probability", **options) for number in (1, 2)]
    return {"panels": axes, "series": series, "start": ["Tanh", "ReLU", "ELU", "SELU", "GELU"]}


def depths(stored: Results) -> Plot:
    """Lengths and angles over depth, predicted (lines) and measured (dots)."""
    axes = [
        panel("Length, starting at 2", "layer l", "‖xˡ⁺¹‖²/n", logy=True, range=[-4, 4], mark=1),
        panel("Angle, starting orthogonal", "layer l", "1 − cosine", logy=True, range=[-4.2, 0.3]),
    ]
    series = []
    if stored.theory is not None:
        followed = stored.theory[stored.theory["layer"].notna()]
        followed = followed[(followed["what"] == "angle") | (followed["start"] == 2)]
        for keys, rows in followed.groupby(["what", "activation", "root"], sort=False, dropna=False):
            (what, base), root, plain = map(str, keys[:2]), keys[2], not isinstance(keys[2], str)
            words = label(base, not plain) + ("" if plain else f", {root} root")
            dash = "dash" if plain else "" if root == AUTO_ROOT.get(base.removesuffix("_d"), root) else "dot"
            place = 0 if what == "length" else 1
            series.append(line(rows["layer"], rows["predicted"], f"{words}, predicted", base, panel=place, dash=dash))
            dots = rows[
                [layer & (layer - 1) == 0 or layer == rows["layer"].max() for layer in rows["layer"].astype(int)]
            ]
            options: dict[str, Any] = {"panel": place, "mode": "markers", "hollow": dash == "dot"}
            series.append(line(dots["layer"], dots["measured"], f"{words}, measured", base, **options))
    return {"panels": axes, "series": series, "start": ["Tanh", "GELU"]}


def trained(stored: Results) -> Plot:
    """Signals of trained networks, unit rows against exactly orthogonal weights."""
    series = []
    found = [each for each in stored.measured if each["trained"] is not None and each["source"] == "gaussian"]
    for each in sorted(found, key=lambda each: each["directory"]):
        network = each["config"]
        base, words, _ = name_of(each["activation"].removesuffix("-bn"))
        exact = network["model"]["weights"] == "orthogonal"
        seed = Path(each["trained"]).name.rpartition("-s")[2]
        words += f", {'orthogonal' if exact else network['model']['weights'].replace('_', ' ')}"
        size = f"{each['depth']} layers of {each['width']} units"
        series += layer_lines(
            each, f"{words}, seed {seed}", base, "" if exact else "dash", facet=size, legend=f"{words}, each seed"
        )
    return {"panels": layer_panels(), "series": series}


def roots(stored: Results) -> Plot:
    """Signals of every layer with the upper and with the lower root b."""
    series = []
    signals_table = stored.root_signals
    for row in signals_table.to_dict("records"):
        words = f"{label(row['activation'], True)}, {row['root']} root"
        series += layer_lines(row, words, row["activation"], "" if row["published"] else "dot")
    return {"panels": layer_panels(), "series": series}


PLOTS = {
    "curves": curves,
    "signals": signals,
    "slopes": slopes,
    "widths": widths,
    "theorems": theorems,
    "depths": depths,
    "trained": trained,
    "roots": roots,
}


def plots(stored: Results) -> dict[str, Plot]:
    """All plots that there are numbers for."""
    ranks = {group: rank for rank, group in enumerate(ACTIVATION_LABELS.values())}
    made = {name: make(stored) for name, make in PLOTS.items()}
    for plot in made.values():
        plot["series"].sort(key=lambda each: ranks.get(each["group"], len(ranks)))  # stable
    return {name: plot for name, plot in made.items() if plot["series"]}
