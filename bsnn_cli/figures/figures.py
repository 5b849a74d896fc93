"""The paper's figures, from stored numbers: what there is is drawn, what is missing is named with its command.

Nothing is measured here. The only thing evaluated is the definition of an activation, in its own figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import approaches, bench, comparisons, depth, signals, theory, variants
from bsnn_cli.figures.style import (
    DOUBLE,
    GREY,
    Missing,
    Picture,
    canvas,
    colour,
    elsewhere,
    file_name,
    key,
    label,
    legend_above,
    looks,
    note,
    save,
    stroke,
)
from bsnn_cli.gpn import activations as named
from bsnn_cli.results import statistics
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS, FIGURES, FORMATS, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import FiguresConfig

Builder = Callable[[FiguresConfig], Iterator[Picture | Missing]]


@dataclass(frozen=True)
class Drawn:
    """What came of it.

    Attributes:
        text: for a terminal.
        files: pictures that were written.
        missing: what could not be drawn for want of numbers.
    """

    text: str
    files: list[Path]
    missing: list[Missing]


def draw(config: FiguresConfig) -> Drawn:
    """Draw all figures, or the one that is asked for, whose numbers are stored under `output_root`.

    Where all are drawn, those of before whose numbers are gone leave the folder.

    Raises:
        ConfigError: nothing can be drawn, with the commands that make the numbers.
        RunDirectoryError: a file cannot be written, or runs contradict each other.
    """
    wanted = FIGURES if config.only is None else (config.only,)
    with looks():
        found = [part for name in wanted for part in BUILDERS[name](config)]
    pictures = [part for part in found if isinstance(part, Picture)]
    missing = [part for part in found if isinstance(part, Missing)]
    notes = [f"{part.name}: {part.what} not stored yet; run `{part.command}`" for part in missing]
    if not pictures:
        raise ConfigError("\n".join(notes))
    directory = Path(config.output_root) / "figures"
    formats = FORMATS if config.formats is None else config.formats
    with looks():
        files = save(pictures, directory, formats, afresh=config.only is None)
    names = ", ".join(picture.name for picture in pictures)
    written = f"Written to {directory} as {', '.join(formats)}, with captions.md: {names}"
    return Drawn("\n".join([*notes, written]), files, missing)


def activations(config: FiguresConfig) -> Iterator[Picture | Missing]:  # noqa: ARG001 - needs no numbers
    """The paper's activations φ and their normalised forms aφ + b."""
    h = torch.linspace(-3.2, 3.2, 641, dtype=torch.float64)
    figure, axes = canvas(DOUBLE, 3.7, 2, 3, sharex=True, sharey=True)
    for ax, name in zip(axes, PAPER_ACTIVATIONS, strict=True):
        phi, solution = named.get(name).phi(h), named.normalise(name)
        ax.axhline(0, color="#BBBBBB", linewidth=0.6)
        ax.axvline(0, color="#BBBBBB", linewidth=0.6)
        ax.plot(h, phi, label=label(name, False), **stroke(name, False))
        ax.plot(h, solution.a * phi + solution.b, label=label(name, True), **stroke(name, True))
        ax.set_title(ACTIVATION_LABELS[name])
        constants = f"$a$ = {solution.a:.4f}\n$b$ = {signed(solution.b)}"
        ax.text(0.05, 0.95, constants, transform=ax.transAxes, va="top", fontsize=7.5, linespacing=1.4)
    axes[0].set_xlim(-3.2, 3.2)
    axes[0].set_ylim(-2.1, 3.4)
    for ax in axes[3:]:
        ax.set_xlabel("preactivation $h$")
    for ax in axes[::3]:
        ax.set_ylabel("activation")
    handles = [key("GPN: $f = a\\varphi + b$"), key("$\\varphi$", linestyle="--")]
    legend_above(figure, handles, 2)
    note(figure, "E[f(h)²] = E[f'(h)²] = 1 for h ~ N(0, 1)")
    yield Picture(
        "activations",
        figure,
        "The paper's six activations φ (dashed) and their Gaussian-Poincaré normalised forms f = aφ + b (solid), with "
        "E[f(h)²] = E[f'(h)²] = 1 for h ~ N(0, 1). Of the two solutions b the published one is shown.",
    )


def signed(value: float) -> str:
    """With a real minus."""
    return f"{value:.4f}".replace("-", "−")


def curves(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Test accuracy against epoch, GPN against non-GPN: a picture for each dataset and protocol of several epochs."""
    stored = Results(config.output_root)
    counted = stored.finished
    command = "bsnn train -m activation=tanh,tanh_gpn,selu,selu_gpn dataset=cifar10 seed=0,1,2"
    command += elsewhere(config)
    if not ("test_accuracy" in counted and counted["test_accuracy"].notna().any()):
        yield Missing("curves", "training runs", command)
        return
    table = statistics.curves(counted, stored.epochs)
    cells = statistics.over_seeds(counted)
    if not (cells["dataset"] == "cifar10").any():
        yield Missing("curves", "training runs on CIFAR-10, the paper's", command)
    cells = cells[(cells["split"] == "test") & ~cells["batch_norm"]]
    for (dataset, protocol), group in cells.groupby(["dataset", "protocol"]):
        own = table[(table["dataset"] == dataset) & (table["protocol"] == protocol) & ~table["batch_norm"]]
        if own["epoch"].max() > 1:  # one epoch makes no curve; tables have it
            yield training(str(dataset), str(protocol), group, own)


def training(dataset: str, protocol: str, cells: pd.DataFrame, table: pd.DataFrame) -> Picture:
    """One picture of training curves.

    Args:
        dataset: name.
        protocol: as `identity.protocol` says it.
        cells: rows of `summary.over_seeds`, for n and what diverged.
        table: rows of `summary.curves`.
    """
    names = sorted(set(cells["activation"]), key=statistics.axis_order)
    forms = statistics.forms(cells)
    uneven = len(set(cells["n"])) > 1 or cells["diverged"].any()
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = canvas(
        min(DOUBLE, 0.8 + 2.1 * columns), 0.7 + 1.75 * lines, lines, columns, sharex=True, sharey=True
    )
    for ax, name in zip(axes, names, strict=False):
        for gpn, separation in reversed(forms.values()):
            own = table[(table["activation"] == name) & (table["gpn"] == gpn) & (table["separation"] == separation)]
            ax.plot(own["epoch"], own["mean"], **stroke(name, gpn, separation != ""))
            if own["std"].notna().any():
                low, high = own["mean"] - own["std"], own["mean"] + own["std"]
                ax.fill_between(own["epoch"], low, high, color=colour(name), alpha=0.18, linewidth=0)
        ax.set_title(ACTIVATION_LABELS.get(name, name), pad=12 if uneven else None)
        if uneven:
            words = counts(cells[cells["activation"] == name])
            ax.text(0.5, 1, words, transform=ax.transAxes, ha="center", va="bottom", fontsize=6, color=GREY)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    axes[0].set_ylim(0, 100)
    axes[0].set_xlim(1, table["epoch"].max())
    axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for index in range(len(names)):
        if index + columns >= len(names):
            axes[index].set_xlabel("epoch")
            axes[index].tick_params(labelbottom=True)
        if index % columns == 0:
            axes[index].set_ylabel("test accuracy (%)")
    legend = [key("GPN"), key("non-GPN", linestyle="--")]
    if len(forms) > 2:
        legend.append(key(", ".join(list(forms)[2:]), linestyle="-."))
    legend_above(figure, legend, len(legend))
    where = DATASETS[dataset].label if dataset in DATASETS else dataset
    apart = f"the paper's protocol except {protocol}" if protocol else "the paper's protocol"
    sizes = sorted(set(cells["n"]))
    note(figure, f"{where}; {apart}" + ("" if uneven else f"; n = {sizes[0]}"))
    depth_aware = " and depth-aware GPN (dash-dotted)" if len(forms) > 2 else ""
    return Picture(
        file_name("curves", dataset, protocol),
        figure,
        f"Test accuracy on {where} against the epoch, GPN (solid), non-GPN (dashed){depth_aware}: "
        f"{averaged(sizes)}; {apart}.",
    )


def averaged(sizes: Sequence[int]) -> str:
    """Say in a caption over how many seeds a line is averaged."""
    if max(sizes) == 1:
        return "one seed"
    numbers = " or ".join(map(str, sizes))
    return f"mean over n = {numbers} seeds that did not diverge, band ± one sample standard deviation"


def counts(cells: pd.DataFrame) -> str:
    """Such as `GPN: n = 3`, for each form, with what diverged."""
    lines = []
    for row in cells.sort_values(["gpn", "separation"], ascending=[False, True]).to_dict("records"):
        lost = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        form = f"GPN-d {row['separation']}" if row["separation"] else "GPN" if row["gpn"] else "non-GPN"
        lines.append(f"{form}: n = {row['n']}{lost}")
    return ", ".join(lines)


BUILDERS: dict[str, Builder] = {
    "activations": activations,
    "propagation": signals.propagation,
    "propagation_all": signals.propagation_all,
    "derivatives": signals.derivatives,
    "width": approaches.width,
    "root_signals": variants.root_signals,
    "after_training": variants.after_training,
    "curves": curves,
    "approaches": approaches.approaches,
    "theorems": theory.theorems,
    "lengths": theory.lengths,
    "angles": theory.angles,
    "bench": bench.bench,
    "constraint": comparisons.constraint,
    "roots": comparisons.roots,
    "depth_aware": depth.depth_aware,
}
"""By the names of `choices.FIGURES`."""
