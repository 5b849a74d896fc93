"""The paper's figures, drawn from stored numbers. Where numbers are missing, the command that makes them is named.

Nothing is measured here. The only thing evaluated is the definition of an activation, in its own figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import bench, comparisons, networks, phases, signals, theory, trained, tuning
from bsnn_cli.figures.figure import DOUBLE, Axis, Figure, Missing, Panel, Series, Text, label
from bsnn_cli.figures.printing import save
from bsnn_cli.gpn import activations as named
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import FIGURES, FORMATS, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import FiguresConfig

OF_RUNS = ("after_training", "curves", "tuning", "constraint", "roots", "depth_aware")
"""Figures of training runs, among which `where` chooses."""

BY_CHOICE = ("curves", "tuning")
"""Figures whose key and metric are chosen by `by` and `metric`."""

Builder = Callable[[Results, FiguresConfig], Iterator[Figure | Missing]]


@dataclass(frozen=True)
class Drawn:
    """The outcome of drawing.

    Attributes:
        text: for a terminal.
        files: figures that were written.
        missing: what could not be drawn for want of numbers.
    """

    text: str
    files: list[Path]
    missing: list[Missing]


def draw(config: FiguresConfig) -> Drawn:
    """Draw all figures, or the one that is asked for, whose numbers are stored under `output_root`.

    Where all are drawn, those of before whose numbers are gone leave the folder. If runs are chosen among, only figures
    of runs are drawn.

    Raises:
        ConfigError: nothing can be drawn, with the commands that make the numbers, or no run has these settings.
        RunDirectoryError: a file cannot be written, or runs contradict each other.
    """
    where = config.where or ()
    for key, value in (("by", config.by), ("metric", config.metric)):
        if value is not None and config.only not in BY_CHOICE:
            alone, add = " and ".join(BY_CHOICE), " or ".join(f"only={name}" for name in BY_CHOICE)
            raise ConfigError(f"{key}: is for {alone} alone; add {add}")
    if where and config.only not in (None, *OF_RUNS):
        raise ConfigError(f"{where[0]}: chooses among runs, and only={config.only} shows none; leave it out")
    every = tuple(name for name in FIGURES if name in OF_RUNS) if where else FIGURES
    wanted = every if config.only is None else (config.only,)
    stored = Results(config.output_root, where)
    parts = [part for name in wanted for part in build(name, stored, config)]
    figures = [part for part in parts if isinstance(part, Figure)]
    missing = [part for part in parts if isinstance(part, Missing)]
    notes = [f"{part.name}: {part.what} not stored yet; run `{part.command}`" for part in missing]
    if not figures:
        raise ConfigError("\n".join(notes))
    directory = Path(config.output_root) / "figures"
    formats = FORMATS if config.formats is None else config.formats
    files = save(figures, directory, formats, afresh=config.only is None and not where)
    names = ", ".join(figure.name for figure in figures)
    written = f"Written to {directory} as {', '.join(formats)}, with captions.md: {names}"
    return Drawn("\n".join([written] if where else [*notes, written]), files, missing)


def build(name: str, stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Yield the figures of one name, and what is missing with the command that stores it in the same folder."""
    default = config.output_root == FiguresConfig().output_root
    for part in BUILDERS[name](stored, config):
        if isinstance(part, Missing) and not default:
            yield replace(part, command=f"{part.command} output_root={config.output_root}")
        else:
            yield part


def activations(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - needs no numbers
    """The paper's activations φ and their normalised forms aφ + b."""
    h = torch.linspace(-3.2, 3.2, 641, dtype=torch.float64)
    x = Axis("preactivation $h$", limits=(-3.2, 3.2), mark=0)
    y = Axis("activation", limits=(-2.1, 3.4), mark=0)
    panels = []
    for name in PAPER_ACTIVATIONS:
        phi, solution = named.get(name).phi(h), named.normalise(name)
        series = [
            Series(label(name), h, phi, name, "--"),
            Series(label(f"{name}_gpn"), h, solution.a * phi + solution.b, name),
        ]
        constants = f"$a$ = {solution.a:.4f}\n$b$ = {solution.b:.4f}".replace("-", "−")
        panels.append(Panel(x, y, series, label(name), texts=[Text(constants, 0.05, 0.95, align=("left", "top"))]))
    yield Figure(
        "activations",
        panels,
        "The paper's six activations φ (dashed) and their Gaussian-Poincaré normalised forms f = aφ + b (solid), with "
        "E[f(h)²] = E[f'(h)²] = 1 for h ~ N(0, 1). Of the two solutions b the published one is shown.",
        "E[f(h)²] = E[f'(h)²] = 1 for h ~ N(0, 1)",
        [Series("GPN: $f = a\\varphi + b$"), Series("$\\varphi$", dash="--")],
        3,
        (DOUBLE, 3.7),
    )


def depth_aware(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:
    """Signals of GPN beside those of depth-aware GPN, then accuracy against the angle that is left."""
    yield from signals.depth_aware(stored, config)
    yield from trained.depth_aware_accuracy(stored, config)


BUILDERS: dict[str, Builder] = {
    "activations": activations,
    "propagation": signals.propagation,
    "propagation_all": signals.propagation_all,
    "derivatives": signals.derivatives,
    "width": signals.width,
    "root_signals": signals.root_signals,
    "after_training": trained.after_training,
    "curves": trained.curves,
    "tuning": tuning.tuning,
    "approaches": comparisons.approaches,
    "theorems": theory.theorems,
    "lengths": theory.lengths,
    "angles": theory.angles,
    "gradients": theory.gradients,
    "phase_diagram": phases.phase_diagram,
    "bench": bench.bench,
    "constraint": comparisons.constraint,
    "roots": comparisons.roots,
    "depth_aware": depth_aware,
    "networks": networks.networks,
}
"""By the names of `choices.FIGURES`."""
