"""Small stored numbers to draw, and a look at what is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as DrawnFigure

from bsnn_cli.figures import figures
from bsnn_cli.figures.figure import COLOURS, Figure, Missing
from bsnn_cli.figures.printing import render
from bsnn_cli.measuring import propagation_store
from bsnn_cli.measuring.records import LayerRecord, Measurement
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.results.store import Results
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.settings.choices import split_label
from bsnn_cli.settings.config import FiguresConfig, PropagateConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve

DEPTH, WIDTH = 4, 10


def measured(root: Path, activation: str, scale: float = 1.0, repeats: int = 1, **model: Any) -> pd.DataFrame:
    """Store a measurement whose signal is scale·2^-l and whose gradient is scale·l; returns its `layers.csv`."""
    config = PropagateConfig(output_root=str(root))
    config.activation.name, form = split_label(activation)
    config.activation.gpn = form != ""
    if activation.endswith("_d"):
        config.activation.separation, config.activation.tailored_depth = model.pop("separation", 0.3), DEPTH
    config.approach, config.run = model.pop("approach", None), model.pop("run", None)
    config.activation.root = model.pop("root_of_b", "auto")
    if config.run is not None:
        config.weights_digest = hashlib.sha256(config.run.encode()).hexdigest()[:10]
    config.propagate.inputs, config.propagate.repeats = 8, repeats
    for name, value in {"depth": DEPTH, "width": WIDTH, **model}.items():
        setattr(config.model, name, value)
    measurements = []
    for repeat in range(repeats):
        rows = [
            LayerRecord(
                layer=layer,
                forward_norm=scale * 2.0**-layer,
                one_minus_cosine=0.5,
                **({} if layer > DEPTH else {"backward_norm": 1.0, "gradient_norm": scale * (layer + repeat),
                                              "derivative_mean": 1.0, "derivative_std": 0.25, "pseudo_linearity": 0.9,
                                              "saturated": 0.0}),
            )
            for layer in range(1, DEPTH + 2)
        ]  # fmt: skip
        measurements.append(Measurement(rows, {1: torch.tensor([0.1, 0.2]), DEPTH: torch.tensor([0.0, 0.5, 0.5, 1.0])}))
    path = propagation_store.directory(config)
    propagation_store.write(path, config, measurements, {})
    return pd.read_csv(path / "layers.csv")


def trained(root: Path, activation: str, seed: int, accuracies: list[float], diverged: bool = False) -> None:
    """Store a run on digits with these test accuracies."""
    config = TrainConfig(output_root=str(root), seed=seed)
    config.activation.name, form = split_label(activation)
    config.activation.gpn = form != ""
    config.activation.separation = 0.3 if activation.endswith("_d") else None
    config.dataset.kind = "digits"
    config = resolve(config)
    directory = RunDirectory(run_directory(config))
    directory.claim(config)
    directory.write_epochs(
        [
            EpochRecord(epoch=epoch, step=epoch, train_loss=1, test_loss=1, test_accuracy=accuracy, train_accuracy=None,
                        learning_rate=1, orthogonality_error=0, elapsed_s=0)
            for epoch, accuracy in enumerate(accuracies, 1)
        ]
    )  # fmt: skip
    last = None if diverged else accuracies[-1]
    result = RunResult(
        status="diverged" if diverged else "done", train_accuracy=last, test_accuracy=last, train_loss=last,
        test_loss=last, epochs=len(accuracies), steps=1, elapsed_s=1, activation=config.activation.name,
        gpn=config.activation.gpn, root=None, norm="none", batch_norm=False, dataset="digits", depth=200, width=500,
        weights="unit_rows", seed=seed, parameters=1,
    )  # fmt: skip
    directory.finish(result, "none")


def theorised(root: Path) -> pd.DataFrame:
    """Store a `theory.csv` of Tanh and GELU by hand; returns it."""
    rows: list[dict[str, Any]] = [
        {"what": "tsc", "case": "none", "width": width, "epsilon": 0.1, "estimate": 10 / width, "low": 0.0, "high": 1.0,
         "trials": 7}
        for width in (32, 64)
    ]  # fmt: skip
    for name in ("tanh", "gelu"):
        for number in (1, 2):
            for place, case in enumerate(("none", "haar", "shell", "gpn")):
                for width in (32, 64):
                    estimate = number * (place + 1) / width
                    rows.append(
                        {"what": f"theorem_{number}", "case": case, "activation": name, "width": width, "epsilon": 0.1,
                         "estimate": estimate, "low": 0.0, "high": 1.0, "trials": 7}
                    )  # fmt: skip
        for what, starts in (("length", (0.5, 2.0)), ("angle", (1.0,)), ("gradient", (1.0,))):
            for start in starts:
                for root_of_b in (None, "upper", "lower"):
                    for layer in (1, 2, 3):
                        value = start * (0.9 if root_of_b == "upper" else 0.5) ** layer
                        rows.append(
                            {"what": what, "activation": name, "root": root_of_b, "width": 16, "layer": layer,
                             "start": start, "predicted": value, "measured": 1.1 * value, "band_low": value / 2,
                             "band_high": value * 2, "trials": 3}
                        )  # fmt: skip
    table = pd.DataFrame(rows)
    (root / "theory").mkdir(parents=True)
    table.to_csv(root / "theory" / "theory.csv", index=False)
    return table


def settings(root: Path, **values: Any) -> FiguresConfig:
    return FiguresConfig(**{"output_root": str(root), "depth": DEPTH, "width": WIDTH} | values)


@dataclass(frozen=True)
class Picture:
    """A figure as matplotlib has drawn it."""

    name: str
    figure: DrawnFigure
    caption: str


def built(root: Path, name: str, **values: Any) -> tuple[list[Picture], list[Missing]]:
    """Return the figures of a name, drawn, and what is missing."""
    parts = list(figures.build(name, Results(root), settings(root, **values)))
    drawn = [Picture(part.name, render(part), part.caption) for part in parts if isinstance(part, Figure)]
    return drawn, [part for part in parts if isinstance(part, Missing)]


def lines(ax: Axes, activation: str) -> Iterator[Any]:
    """The lines of an activation, known by its colour and dashes."""
    name, form = split_label(activation)
    for line in ax.get_lines():
        if to_hex(line.get_color()) == COLOURS[name].lower() and line.get_linestyle() == ("-" if form else "--"):
            yield line
