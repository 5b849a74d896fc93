"""Figures of training runs: signals of the trained networks, accuracy during training, and against the angle kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.figures import metrics, overlays
from bsnn_cli.figures.figure import (
    DASHES,
    DOUBLE,
    FORMS_LEGEND,
    GREY,
    Axis,
    Figure,
    Missing,
    Panel,
    Series,
    dataset_label,
    extent,
    label,
)
from bsnn_cli.figures.measurements import Summary
from bsnn_cli.figures.printing import file_name
from bsnn_cli.figures.signals import ALL_THREE, Line, over_layers
from bsnn_cli.gpn import meanfield
from bsnn_cli.gpn.activations import get
from bsnn_cli.gpn.tailored import tailored
from bsnn_cli.results import statistics, variation
from bsnn_cli.results.formats import Row, records, setting
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS, CUSTOM, parameter_in_use, root_in_use
from bsnn_cli.settings.config import FiguresConfig

TRAINED = {
    "unit_rows": "after training, unit rows",
    "orthogonal": "after training, orthogonal weights",
}
"""Names of the weights of a trained network in the legend of `after_training`."""

FRESH = "before training"

LOOKS: dict[str, dict[str, Any]] = {
    TRAINED["unit_rows"]: {"dash": "-"},
    TRAINED["orthogonal"]: {"dash": "--", "marker": "o", "hollow": True, "sparse": True},
    FRESH: {"dash": ":", "colour": GREY},
}
DESCRIBED = {TRAINED["unit_rows"]: "solid", TRAINED["orthogonal"]: "dashed, circles", FRESH: "dotted"}

SIGNALS = ("source", "dataset", "inputs")
"""Keys of a summary that say on what signals a network has been measured."""


def after_training(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Signals of trained networks, the mean over the seeds, beside those of the same network at the start of training.

    Of several trainings, or several kinds of signals, it is the one that most networks share.
    """
    figures = trained_signals(stored, config.depth, config.width)
    if figures:
        yield figures[0]
    else:
        command = "bsnn propagate run=RUN_DIRECTORY propagate.source=dataset"
        yield Missing("after_training", f"signals of trained networks, L = {config.depth}", command)


def trained_signals(stored: Results, depth: int, width: int) -> list[Figure]:
    """Return a figure for each way of training and kind of signals, that of most networks first."""
    size = depth, width, None
    same = [summary for summary in stored.measured if tuple(map(summary.get, ("depth", "width", "approach"))) == size]
    trained = [row for row in same if row["trained"] is not None and row["config"]["model"]["weights"] in TRAINED]
    runs = {} if stored.finished.empty else {row["directory"]: training(row) for row in records(stored.finished)}
    ways = [(runs.get(row["trained"], ""), *(row[key] for key in SIGNALS)) for row in trained]
    figures = []
    for way, _ in Counter(ways).most_common():
        columns = over_seeds([row for row, same_way in zip(trained, ways, strict=True) if same_way == way])
        n = extent(len(line.networks) for lines in columns.values() for line in lines)
        fresh = []
        for lines in columns.values():
            starts = [row for row in same if row["trained"] is None and is_start(row, lines[0].networks[0])][:1]
            heading = lines[0].name.partition(", ")[0]
            lines += [Line(f"{heading}, {FRESH}", lines[0].activation, starts, LOOKS[FRESH])] if starts else []
            fresh += starts
        names = {line.name.partition(", ")[2] for lines in columns.values() for line in lines}
        shown = [name for name in LOOKS if name in names]
        networks = f"networks: {n}" + (f", fresh: {extent(row['repeats'] for row in fresh)}" if fresh else "")
        on = f" Trained on {way[0]}." if way[0] else ""
        figures.append(
            over_layers(
                "after_training",
                columns,
                depth,
                f"{ALL_THREE}: {', '.join(f'{name} ({DESCRIBED[name]})' for name in shown)}; geometric mean over the "
                f"networks{', before training the mean' if fresh else ''}.{on}",
                networks=networks,
                over="networks or repeats" if any(row["repeats"] > 1 for row in trained) else "networks",
                facet=f"{depth} layers of {width} units, {way[1] if way[2] is None else dataset_label(way[2])} inputs"
                + (f", trained on {way[0]}" if way[0] else ""),
                legend=[Series(name, **LOOKS[name]) for name in shown],
            )
        )
    return figures


def training(run: Row) -> str:
    """Return what a run was trained on and how long, such as `MNIST, 1 epoch`, and what else sets it apart."""
    epochs = run["optim.epochs"]
    apart = statistics.without(run["protocol"], "model.weights", "optim.epochs")
    return setting({**run, "setting": f"{epochs} epoch{'s' if epochs > 1 else ''}" + (f", {apart}" if apart else "")})


def over_seeds(trained: list[Summary]) -> dict[str, list[Line]]:
    """Return, by heading, a line for each kind of weights: the networks that differ in nothing but the seed.

    Of several such sets the largest is taken.
    """
    found: dict[str, dict[str, dict[str, dict[str, Summary]]]] = {}
    for summary in sorted(trained, key=lambda summary: summary["repeats"]):  # of one network the best is last
        heading = summary["activation"] if "-bn" in summary["activation"] else summary["label"]
        but_seed = re.sub(r"-s\d+$", "", Path(summary["trained"]).name)
        sets = found.setdefault(heading, {}).setdefault(TRAINED[summary["config"]["model"]["weights"]], {})
        sets.setdefault(but_seed, {})[summary["trained"]] = summary
    columns: dict[str, list[Line]] = {heading: [] for heading in sorted(found)}
    for heading, lines in columns.items():
        for name in [name for name in TRAINED.values() if name in found[heading]]:
            networks = list(max(found[heading][name].values(), key=len).values())
            base = networks[0]["config"]["activation"]["name"]
            lines.append(Line(f"{heading}, {name}", base, networks, LOOKS[name]))
    return columns


def is_start(fresh: Summary, trained: Summary) -> bool:
    """Return whether a fresh network is the start of a trained one, measured on the same kind of signals."""
    same = ("activation", *SIGNALS)
    alike = all(fresh[name] == trained[name] for name in same) and _network(fresh) == _network(trained)
    return alike and fresh["config"]["model"]["init"] == "orthogonal"


def _network(summary: Summary) -> tuple[Any, ...]:
    """Return what training leaves as it is; older measurements know nothing of tailoring."""
    activation, model = summary["config"]["activation"], summary["config"]["model"]
    parameter = parameter_in_use(activation["name"], activation.get("parameter"))
    separation = activation.get("separation")
    tailoring = separation, activation.get("tailored_depth"), None if separation is None else parameter
    return root_in_use(activation["name"], activation["root"]), tailoring, model["norm"], model["residual"]


def curves(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Metrics against epoch: GPN against non-GPN for each dataset and protocol, or whatever differs in a key."""
    command = "bsnn train -m activation=tanh,tanh_gpn,selu,selu_gpn dataset=cifar10 seed=0,1,2"
    if stored.finished.empty or stored.epochs.empty:
        yield Missing("curves", "training runs", command)
        return
    metric = list(dict.fromkeys(config.metric or ["test_accuracy"]))
    for name in metric:
        metrics.require(name, stored.epochs)
    if config.by is not None:
        yield from overlays.overlays(stored, config.by, metric)
        return
    if config.metric is None and not (stored.finished["dataset"] == "cifar10").any():
        yield Missing("curves", "training runs on CIFAR-10, the paper's", command)
    elif stored.epochs["epoch"].max() < 2:
        yield Missing("curves", "training runs of several epochs", command)
    for name in metric:
        yield from of_epochs(shown(stored, config), stored.epochs, name)


def shown(stored: Results, config: FiguresConfig) -> pd.DataFrame:
    """Return the finished runs of a figure: where all figures are drawn, without those that `tuning` shows.

    Runs that try values of a setting would make a picture for each value.
    """
    runs = stored.finished
    return runs if runs.empty or config.only is not None else runs[~variation.tried(runs)[1]]


def of_epochs(runs: pd.DataFrame, epochs: pd.DataFrame, metric: str = "test_accuracy") -> Iterator[Figure]:
    """Yield a figure for each dataset and protocol of more than one epoch; of a single one, tables say as much.

    Args:
        runs: as `statistics.finished` returns them, or none.
        epochs: as `loading.load_epochs` reads them, of these runs at least.
        metric: a column of `epochs`.
    """
    if runs.empty:
        return
    cells = statistics.over_seeds(runs)
    cells = cells[cells["split"] == "test"]
    table = statistics.curves(runs, epochs, metric)
    for (protocol, dataset, norm), rows in table.groupby(["protocol", "dataset", "batch_norm"]):
        if rows["epoch"].max() > 1:
            same = (cells["protocol"] == protocol) & (cells["dataset"] == dataset) & (cells["batch_norm"] == norm)
            yield against_epoch(metric, str(protocol), str(dataset), bool(norm), cells[same], rows)


def against_epoch(
    metric: str, protocol: str, dataset: str, batch_norm: bool, cells: pd.DataFrame, table: pd.DataFrame
) -> Figure:
    """Return a figure of training curves: of rows of `statistics.over_seeds`, for n, and of `statistics.curves`."""
    forms = statistics.forms(cells)
    uneven = len(set(cells["n"])) > 1 or cells["diverged"].any()
    where = dataset_label(dataset) + (" with batch normalisation" if batch_norm else "")
    x = metrics.epochs(int(table["epoch"].max()))
    y = metrics.axis(metric, [table])
    facet = f"{where}: {protocol or 'the published protocol'}"
    panels = []
    for name in sorted(set(cells["activation"]), key=statistics.axis_order):
        series = []
        for gpn, separation in reversed(forms.values()):
            rows = table[(table["activation"] == name) & (table["gpn"] == gpn) & (table["separation"] == separation)]
            form = "_gpn_d" if separation else "_gpn" if gpn else ""
            words = label(name + form) + (f" {separation}" if separation else "")
            if len(rows):
                series.append(Series(words, activation=name, dash=DASHES[form], **metrics.curve(rows, y)))
        counts = seeds(cells[cells["activation"] == name]) if uneven else ""
        panels.append(Panel(x, y, series, label(name), counts, facet=facet))
    columns = min(3, len(panels))
    aware = ", ".join(list(forms)[2:])
    apart = f"the paper's protocol except {protocol}" if protocol else "the paper's protocol"
    n = sorted(set(cells["n"] + cells["diverged"]))
    averaged = f"mean over n = {' or '.join(map(str, n))} seeds" if n[-1] > 1 else "one seed"
    averaged += metrics.DIVERGED if cells["diverged"].any() else ""
    averaged += f", {metrics.spread_in_words([y])}" if table["std"].notna().any() else ""
    what = metrics.NAMES[metric]
    return Figure(
        file_name("curves", "" if metric == "test_accuracy" else metric, dataset, "bn" if batch_norm else "", protocol),
        panels,
        f"{what[0].upper()}{what[1:]} on {where} against the epoch, GPN (solid), non-GPN (dashed)"
        f"{' and depth-aware GPN (dash-dotted)' if aware else ''}: {averaged}; {apart}.",
        f"{where}; {apart}" + ("" if uneven else f"; n = {n[0]}"),
        [*FORMS_LEGEND, *([Series(aware, dash=DASHES["_gpn_d"])] if aware else [])],
        columns,
        (min(DOUBLE, 0.8 + 2.1 * columns), 0.7 + 1.75 * -(-len(panels) // columns)),
    )


def seeds(cells: pd.DataFrame) -> str:
    """Return such as `GPN: n = 3`, for each form, with what diverged."""
    parts = []
    for row in cells.sort_values(["gpn", "separation"], ascending=[False, True]).to_dict("records"):
        form = f"GPN-d {row['separation']}" if row["separation"] else "GPN" if row["gpn"] else "non-GPN"
        lost = f"{row['diverged']} diverged" if row["diverged"] else ""
        counted = f"n = {row['n']}" + (f" ({lost})" if lost else "")
        parts.append(f"{form}: {counted if row['n'] else lost}")
    return ", ".join(parts)


def depth_aware_accuracy(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Test accuracy against the 1 − c that is predicted of each network; a figure for each dataset and protocol."""
    runs = shown(stored, config)
    if runs.empty or not (runs["separation"] != "").any():
        yield Missing("depth_aware", "runs with depth-aware GPN", "bsnn train experiment=depth_aware")
        return
    chosen = runs[runs["gpn"] & ~runs["batch_norm"] & (runs["activation.name"] != CUSTOM)]
    chosen = chosen.assign(protocol=chosen["protocol"].map(lambda text: statistics.without(text, "model.depth")))
    for (dataset, protocol), group in chosen.groupby(["dataset", "protocol"]):
        if (group["separation"] != "").any():
            yield against_separation(str(dataset), str(protocol), group)


def against_separation(dataset: str, protocol: str, runs: pd.DataFrame) -> Figure:
    """Return a panel for each depth, of finished runs with GPN; the protocol is without the depth."""
    runs = runs.assign(predicted=[predicted_separation(run) for run in runs.to_dict("records")])
    keys = ["model.depth", "activation", "separation", "predicted", *statistics.CELL]
    cells = statistics.over_seeds(runs, list(dict.fromkeys(keys)))
    cells = cells[cells["split"] == "test"]
    least = min(5e-4, float(cells["predicted"].min()))
    x = Axis("predicted $1 - c$ at the end", log=True, limits=(least, 1.3))  # a linear network is at 1
    y = metrics.axis("test_accuracy", [cells])
    names = sorted(set(cells["activation"]), key=statistics.axis_order)
    panels = []
    for depth, at_depth in cells.groupby("model.depth"):
        series = []
        for name in names:
            rows = at_depth[at_depth["activation"] == name].sort_values("predicted")
            series.append(Series(label(name), rows["predicted"], rows["mean"], name))
            for form, marker in (("_gpn", "s"), ("_gpn_d", "o")):
                points = rows[(rows["separation"] != "") == (form == "_gpn_d")]
                looks: dict[str, Any] = {"dash": "", "marker": marker, "hollow": form == "_gpn", "spread": "bars"}
                looks |= {"low": points["mean"] - points["std"], "high": points["mean"] + points["std"]}
                series.append(Series(label(name + form), points["predicted"], points["mean"], name, **looks))
        panels.append(Panel(x, y, series, f"{depth:.0f} layers", facet=f"{depth:.0f} layers"))
    where = dataset_label(dataset)
    apart = f"the paper's protocol except {protocol}" if protocol else "the paper's protocol"
    n = extent(set(cells["n"]))
    bars = ", means over seeds, bars ± one sample standard deviation" if cells["std"].notna().any() else ""
    return Figure(
        file_name("depth_aware_accuracy", dataset, protocol),
        panels,
        f"Test accuracy on {where} against the 1 − cosine that mean-field theory predicts after all layers for inputs "
        f"at right angles: GPN (squares) and depth-aware GPN (dots){bars}, n = {n}; {apart}.",
        f"{where}; {apart}; n = {n}",
        [Series(ACTIVATION_LABELS.get(name, name), activation=name) for name in names]
        + [Series("GPN", dash="", marker="s", hollow=True), Series("GPN-d", dash="", marker="o")],
        len(panels),
        (min(DOUBLE, 1.0 + 2.6 * len(panels)), 3.2),
    )


def predicted_separation(run: dict[Any, Any]) -> float:
    """Return 1 − c after all layers of the network of a run, from right angles, at infinite width."""
    phi = get(run["activation.name"])
    if run["separation"] != "":
        separation, layers = float(run[statistics.SEPARATION]), int(run[statistics.TAILORED_DEPTH])
        phi = tailored(phi, separation, layers, statistics.parameter(run))
    return meanfield.separation(phi, int(run["model.depth"]))
