"""Numbers along any two keys of the configuration, for `bsnn table rows=… columns=…`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bsnn_cli.errors import ConfigError
from bsnn_cli.results import statistics
from bsnn_cli.results.approach_table import APPROACHES
from bsnn_cli.results.statistics import SEPARATION
from bsnn_cli.settings import approaches
from bsnn_cli.settings.choices import DEFAULT_SEPARATION
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import Protocol
from bsnn_cli.settings.options import options
from bsnn_cli.settings.suggestions import nearest

ALIASES = {"dataset.name": "dataset", "optim": "optim.kind", "network": "network.kind"}
AXES = {
    "activation": ["activation.name", "activation.gpn", "activation.fingerprint", SEPARATION],
    "dataset": ["dataset.kind", "dataset.name", "dataset.fingerprint"],
    "approach": [f"model.{key}" for key in approaches.preset("bsnn")],
}
"""Short names of an axis of a pivot table, and the keys of the configuration that each stands for."""

NO_APPROACH = "none"
"""The place of a network that follows no known approach; its settings then stand in the title of its block."""


def along(
    runs: pd.DataFrame,
    rows: str,
    columns: str,
    values: Mapping[str, pd.Series] | None = None,
    score: Callable[[pd.Series], pd.Series] | None = None,
    tuned: Sequence[str] = (),
) -> pd.DataFrame:
    """Return statistics over seeds along two chosen keys.

    Whatever else sets runs apart from the paper's protocol is never merged: it becomes the title of a block. Batch
    normalisation stays in the same block (it stands in parentheses) unless it is one of the two keys.

    Args:
        runs: as `statistics.finished` returns them.
        rows: a dotted key of the configuration such as `model.depth`, `seed`, `dataset`, or `activation` (labels such
            as `selu_gpn`). `activation.root` takes the root that was used rather than `auto`. `approach` is named after
            the settings of the network, with its activation behind it unless the columns name that.
        columns: another one.
        values: as `over_seeds` takes them; None for accuracies.
        score: of means, higher for a better one, as `with_better` takes it; None for accuracies.
        tuned: keys that set nothing apart, since each number has its own value of them, as `tuned.choose` chooses it.

    Returns:
        One row per block, row, column, batch_norm and split with the statistics of `over_seeds`, `better` and
        `in_parentheses`; `block` is a text, and `rest` the same as a `Protocol`.

    Raises:
        ConfigError: for an unknown key, with the nearest ones, or the same key twice.
    """
    axes = (axis_key("rows", rows), axis_key("columns", columns))
    if axes[0] == axes[1]:
        raise ConfigError(f"columns={columns}: must differ from rows={rows}")
    rests = [rest_of(run, covered_by((*axes, *tuned), run)) for run in runs.to_dict("records")]
    row, column = (_labels(runs, axis, axes) for axis in axes)
    frame = runs.assign(block=[str(rest) for rest in rests], row=row, column=column)
    keys = ["block", "row", "column", "dataset", "activation", "gpn", "batch_norm"]
    cells = statistics.over_seeds(frame, keys, values)
    # GPN and non-GPN differ along the axes that name the activation, and have the other axes in common.
    shared = [name for name, key in zip(("row", "column"), axes, strict=True) if key not in COMPARED]
    pair = shared if "approach" in axes else ["dataset", "activation", "batch_norm", *shared]
    cells = statistics.with_better(cells, ["block", *pair], None if score is None else score(cells["mean"]))
    named = {str(rest): rest for rest in rests}
    return cells.assign(
        rest=cells["block"].map(named),
        in_parentheses=cells["batch_norm"] & ("model.norm" not in (*axes, *tuned)) & ("approach" not in axes),
    )


def _labels(runs: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.Series:
    """Return the value of each run on one of the axes, of an approach with the activation that no other axis says."""
    values = axis_values(runs, axis, SEPARATION in axes)
    if axis != "approach" or "activation" in axes:
        return values
    return values + " (" + axis_values(runs, "activation", SEPARATION in axes) + ")"


def listed(
    runs: pd.DataFrame,
    rows: str,
    values: Mapping[str, pd.Series],
    score: Callable[[pd.DataFrame], pd.Series],
    tuned: Sequence[str] = (),
) -> pd.DataFrame:
    """Return statistics over seeds along one key, of several quantities.

    Args:
        runs: as `statistics.with_norm` returns them, so that batch normalisation is one of the settings that set them
            apart.
        rows: a key, as `along` takes it.
        values: a number of each run for each quantity, by its name.
        score: of the statistics that are returned, higher for a better mean.
        tuned: as `along` takes it.

    Returns:
        One row per rest, row and quantity with the statistics of `over_seeds`, in which `split` names the quantity;
        `rest`, `row`, and `better` among the approaches or among the forms of an activation.

    Raises:
        ConfigError: for an unknown key, with the nearest ones.
    """
    axis = axis_key("rows", rows)
    rests = [rest_of(run, covered_by((axis, *tuned), run)) for run in runs.to_dict("records")]
    frame = runs.assign(block=list(map(str, rests)), row=_labels(runs, axis, [axis]))
    cells = statistics.over_seeds(frame, ["block", "row", "dataset", "activation", "gpn", "batch_norm"], values)
    shared = [] if axis in COMPARED else ["row"]
    pair = ["block"] if axis == "approach" else ["block", "dataset", "activation", "batch_norm", *shared]
    named = {str(rest): rest for rest in rests}
    return statistics.with_better(cells, pair, score(cells)).assign(rest=cells["block"].map(named))


COMPARED = {"activation", "activation.name", "activation.gpn", "approach"}
"""Axes along which the better number is sought."""


def covered_by(axes: Sequence[str], run: dict[Any, Any]) -> set[str]:
    """Return the keys of a run that the axes of a table say."""
    covered = {key for axis in axes for key in (axis, *AXES.get(axis, []))}
    if "approach" not in axes:
        return covered
    if approaches.recognised(run) not in APPROACHES:
        covered -= set(AXES["approach"]) - set(axes)
    return covered | {"activation", *AXES["activation"]}


def axis_key(argument: str, key: str) -> str:
    """Return the key that a table's axis is named by, checked.

    Raises:
        ConfigError: naming the argument, the key and the nearest known ones.
    """
    known = [*AXES, *ALIASES, *(dotted for dotted, _, _ in options(TrainConfig()))]
    if key not in known and not key.startswith("network.kwargs."):
        near = nearest(key, known, n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{argument}={key}: must be activation, approach, dataset, seed or a dotted key such as model.depth{hint}"
        )
    return ALIASES.get(key, key)


def axis_values(runs: pd.DataFrame, key: str, named: bool) -> pd.Series:
    """Return the value of each run on an axis; absent values are the string `none`.

    Args:
        runs: as `statistics.finished` returns them.
        key: of the axis.
        named: whether the other axis says what an activation is tailored to; otherwise its label does, where that is
            not the default, as in `tanh_gpn_d 0.1`.
    """
    if key == "approach":
        return pd.Series([approaches.recognised(run) or NO_APPROACH for run in runs.to_dict("records")], runs.index)
    if key == "activation":
        silent = {"": "", f"{DEFAULT_SEPARATION:g}": "_d"}
        tailored = runs["separation"].map(lambda value: silent.get(value, "_d" if named else f"_d {value}"))
        return runs["activation"] + runs["gpn"].map({True: "_gpn", False: ""}) + tailored
    if key == SEPARATION:
        return runs["separation"].replace("", "none")
    column = {statistics.ROOT: "root", "activation.name": "activation"}.get(key, key)
    values = runs.get(column, pd.Series(index=runs.index, dtype=object)).astype(object)
    return values.where(values.notna(), "none")


def rest_of(run: dict[Any, Any], covered: set[str]) -> Protocol:
    """Return what sets a run apart that no axis says, its dataset and activation included."""
    axes = {
        "dataset": run["dataset"],
        "activation.name": run["activation"],
        "activation.gpn": str(run["gpn"]).lower(),
    }
    if run["separation"] != "":
        axes |= {SEPARATION: run["separation"]}
    rest = axes | run["protocol"].settings
    return Protocol(tuple((key, value) for key, value in rest.items() if key not in covered))
