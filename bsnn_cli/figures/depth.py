"""Figures of depth-aware GPN: the angles that it keeps, and the accuracy that goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.ticker import PercentFormatter

from bsnn_cli.figures.signals import Summary, of_paper, size_arguments
from bsnn_cli.figures.style import (
    DOUBLE,
    Missing,
    Picture,
    canvas,
    colour,
    elsewhere,
    file_name,
    key,
    label,
    legend_above,
    log_axis,
    note,
)
from bsnn_cli.figures.variants import grid
from bsnn_cli.gpn import meanfield
from bsnn_cli.gpn.activations import Activation, get
from bsnn_cli.gpn.tailored import tailored
from bsnn_cli.results import statistics
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import (
    ACTIVATION_LABELS,
    CUSTOM,
    DATASETS,
    DEFAULT_SEPARATION,
    PAPER_ACTIVATIONS,
    UNTAILORED,
)
from bsnn_cli.settings.config import FiguresConfig

TAILORED = tuple(name for name in PAPER_ACTIVATIONS if name not in UNTAILORED)
WORDS = {"_gpn": "GPN", "_gpn_d": "depth-aware GPN"}


def depth_aware(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Signals of GPN beside those of depth-aware GPN, then accuracy against the angle that is left."""
    yield from signals(config)
    yield from accuracies(config)


def signals(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Three quantities over depth, for each activation that has been measured in both forms."""
    found: dict[str, dict[str, Summary]] = {}
    for each in sorted(of_paper(config), key=lambda each: each["repeats"]):
        activation = each["config"]["activation"]
        name, suffix = activation["name"], each["activation"].removeprefix(activation["name"])
        if each["width"] == config.width and suffix in WORDS and activation["root"] == "auto":
            found.setdefault(name, {})[suffix] = each
    both = {name: found[name] for name in ACTIVATION_LABELS if len(found.get(name, {})) == len(WORDS)}
    if not both:
        names = ",".join(f"{name}{suffix}" for name in TAILORED for suffix in WORDS)
        command = f"bsnn propagate -m activation={names}" + size_arguments(config)
        yield Missing("depth_aware", "signals of networks with depth-aware GPN", command)
        return
    yield grid(
        "depth_aware",
        {ACTIVATION_LABELS[name]: [(WORDS[form], [own[form]]) for form in WORDS] for name, own in both.items()},
        config.depth,
        {WORDS["_gpn"]: {"linestyle": "-"}, WORDS["_gpn_d"]: {"linestyle": "-."}},
        "Squared length of the signal per unit (top), Frobenius norm of the gradient (middle) and mean 1 − cosine "
        "between inputs (bottom) against the layer, at the start of training, with GPN (solid) and with depth-aware "
        f"GPN (dash-dotted), set to keep a 1 − cosine of {DEFAULT_SEPARATION}.",
    )


def accuracies(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Test accuracy against the 1 − c that is predicted of each network; a picture for each dataset and protocol."""
    counted = Results(config.output_root).finished
    if counted.empty or not (counted["separation"] != "").any():
        command = "bsnn train experiment=depth_aware" + elsewhere(config)
        yield Missing("depth_aware", "runs with depth-aware GPN", command)
        return
    chosen = counted[counted["gpn"] & ~counted["batch_norm"] & (counted["activation.name"] != CUSTOM)]
    chosen = chosen.assign(protocol=chosen["protocol"].map(lambda text: statistics.without(text, "model.depth")))
    for (dataset, protocol), group in chosen.groupby(["dataset", "protocol"]):
        if (group["separation"] != "").any():
            yield accuracy(str(dataset), str(protocol), group)


def accuracy(dataset: str, protocol: str, trained: pd.DataFrame) -> Picture:
    """One picture, a panel for each depth.

    Args:
        dataset: name.
        protocol: without the depth.
        trained: runs as `summary.finished` returns them, with GPN.
    """
    trained = trained.assign(predicted=[predicted(run) for run in trained.to_dict("records")])
    keys = ["model.depth", "activation", "separation", "predicted", *statistics.CELL]
    cells = statistics.over_seeds(trained, list(dict.fromkeys(keys)))
    cells = cells[cells["split"] == "test"]
    depths = sorted(set(cells["model.depth"]))
    names = sorted(set(cells["activation"]), key=statistics.axis_order)
    figure, axes = canvas(min(DOUBLE, 1.0 + 2.6 * len(depths)), 3.2, 1, len(depths), sharey=True)
    for ax, depth in zip(axes, depths, strict=True):
        for name in names:
            own = cells[(cells["model.depth"] == depth) & (cells["activation"] == name)].sort_values("predicted")
            ax.plot(own["predicted"], own["mean"], color=colour(name), linewidth=0.8, alpha=0.6)
            for aware, marker in ((False, "s"), (True, "o")):
                part = own[(own["separation"] != "") == aware]
                looks: dict[str, Any] = {"color": colour(name), "fmt": marker, "markersize": 4, "capsize": 2}
                looks["markerfacecolor"] = colour(name) if aware else "white"
                ax.errorbar(part["predicted"], part["mean"], part["std"], **looks)
        log_axis(ax, "x", min(5e-4, float(cells["predicted"].min())), 1.3, ticks=4)  # a linear network is at 1
        ax.set_title(f"{depth:.0f} layers")
        ax.set_xlabel("predicted $1 - c$ at the end")
    axes[0].set_ylim(0, 100)
    axes[0].yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes[0].set_ylabel("test accuracy")
    legend = [key(label(name, False), color=colour(name)) for name in names]
    legend += [key("GPN", linestyle="", marker="s", markerfacecolor="white"), key("GPN-d", linestyle="", marker="o")]
    legend_above(figure, legend, len(legend))
    where = DATASETS[dataset].label if dataset in DATASETS else dataset
    apart = f"the paper's protocol except {protocol}" if protocol else "the paper's protocol"
    sizes = " to ".join(str(n) for n in sorted({cells["n"].min(), cells["n"].max()}))
    note(figure, f"{where}; {apart}; n = {sizes}")
    return Picture(
        file_name("depth_aware_accuracy", dataset, protocol),
        figure,
        f"Test accuracy on {where} against the 1 − cosine that mean-field theory predicts after all layers for inputs "
        f"at right angles: GPN (squares) and depth-aware GPN (dots), means over seeds, bars ± one sample standard "
        f"deviation, n = {sizes}; {apart}.",
    )


def predicted(run: dict[Any, Any]) -> float:
    """1 − c after all layers of the network of a run, from right angles, at infinite width."""
    phi: Activation = get(run["activation.name"])
    if run["separation"] != "":
        phi = tailored(
            phi, float(run[statistics.SEPARATION]), int(run[statistics.TAILORED_DEPTH]), statistics.parameter(run)
        )
    return meanfield.separation(phi, int(run["model.depth"]))
