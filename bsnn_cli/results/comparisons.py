"""Two questions that the paper leaves open, from stored numbers: exact orthogonality, and the root b.

DataFrames in, DataFrames out. `constraint`: `WᵀW = I` kept exactly against rows of unit length, which the paper trains
as the exact constraint is expensive. `roots`: the upper against the lower solution b of normalisation, which the paper
does not mention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bsnn_cli.results import statistics
from bsnn_cli.settings.choices import AUTO_ROOT, root_in_use

WEIGHTS = ("unit_rows", "orthogonal")
ROOTS = ("upper", "lower")
SETTING = ["setting", "dataset", "activation", "gpn", "separation", "batch_norm"]
"""What two numbers have in common that are compared; `setting` is what sets the protocol apart from the paper's."""

SIGNALS = ("forward_norm_last", "gradient_norm_ratio", "one_minus_cosine_last")
"""Of `Summary`: what is told of a network's signals."""

Measured = Sequence[Mapping[str, Any]]
"""Summaries of measurements, as `propagation_store.load_all` reads them."""


def constraint(
    runs: pd.DataFrame, epochs: pd.DataFrame, measured: Measured, bench: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Exact orthogonality against unit rows, wherever both have been trained with all else equal.

    Args:
        runs: as `summary.finished` returns them.
        epochs: of these runs, as `runs.load_epochs` reads them.
        measured: of their trained networks, and others.
        bench: `bench.csv`, or None.

    Returns:
        One row per `SETTING` and `weights`: `test`, `test_std`, `test_interval` and the same of `train` (percent, over
        seeds, as in `summary.over_seeds`), `n`, `diverged`, `orthogonality_error` (largest |WᵀW − I| that any epoch of
        any seed reports), `step_ms` (of one network of this size, of both in turns, from `bench`; NaN where it has
        none), and each of `SIGNALS` after training (mean over the `measured` networks).
    """
    cells = _compared(runs, "model.weights", "weights", runs["model.weights"], WEIGHTS)
    error = epochs.groupby("directory")["orthogonality_error"].max()
    own = {each["trained"]: each for each in measured if each["trained"] is not None and each["source"] == "gaussian"}
    details = runs.assign(
        setting=runs["protocol"].map(lambda text: statistics.without(text, "model.weights")),
        weights=runs["model.weights"],
        orthogonality_error=runs["directory"].map(error),
        step_ms=[_step_ms(bench, row) for row in runs.to_dict("records")],
        **{name: runs["directory"].map({key: each[name] for key, each in own.items()}).astype(float)
           for name in SIGNALS},
    )  # fmt: skip
    grouped = details.groupby([*SETTING, "weights"])
    extra = grouped[["step_ms", *SIGNALS]].mean().assign(
        orthogonality_error=grouped["orthogonality_error"].max(), measured=grouped[SIGNALS[0]].count()
    )  # fmt: skip
    return cells.merge(extra.reset_index(), on=[*SETTING, "weights"], how="left")


def _step_ms(bench: pd.DataFrame | None, run: Mapping[Any, Any]) -> float:
    """Of one network like that of a run, where `bench` has timed unit rows and orthogonal weights in turns."""
    if bench is None:
        return math.nan
    form = ("_gpn" if run["gpn"] else "") + ("_d" if run["separation"] else "")
    same = (bench["comparison"] == "weights=orthogonal") & (bench["implementation"] == "bsnn")
    same &= bench["activation"] == run["activation"] + form
    for key in ("model.depth", "model.width", "model.norm", "model.weights", "optim.batch_size"):
        same &= bench[key.rpartition(".")[2]] == run[key]
    return float(bench.loc[same, "step_ms"].mean())


def roots(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with the upper and with the lower root b, wherever both have been trained with all else equal.

    Args:
        runs: as `summary.finished` returns them.

    Returns:
        One row per `SETTING` and `root`: `test`, `test_std`, `test_interval`, the same of `train`, `n`, `diverged`.
    """
    gpn = runs[runs["gpn"]]
    return _compared(gpn, statistics.ROOT, "root", gpn["root"], ROOTS)


def root_signals(measured: Measured, theory: pd.DataFrame | None) -> pd.DataFrame:
    """What is predicted of a signal's length for each root b, and what is measured.

    Args:
        measured: summaries; of fresh networks, and others.
        theory: `theory.csv`, or None.

    Returns:
        One row per activation and root that is measured: `activation`, `root`, `published` (whether it is the paper's
        choice), `chi`, `predicted_low` and `predicted_high` (where ‖x^{L+1}‖²/n must lie that starts at 1, by the
        theory of fluctuations), `depth`, `width`, `inputs`, `n` (repeats), and the least and largest of the repeats of
        each of `SIGNALS` as `<name>_low` and `<name>_high`.
    """
    rows = []
    fresh = [each for each in measured if each["trained"] is None and each["source"] == "gaussian"]
    sizes: dict[tuple[str, int, int], dict[str, Mapping[str, Any]]] = {}
    for each in sorted(fresh, key=lambda each: (each["width"], each["depth"], each["repeats"], each["inputs"])):
        network = each["config"]
        plain = network["model"]["norm"] == "none" and network["model"]["weights"] == "unit_rows"
        plain = plain and network["activation"].get("separation") is None
        if network["activation"]["gpn"] and each["approach"] is None and plain and not network["model"]["residual"]:
            name, root = network["activation"]["name"], network["activation"]["root"]
            sizes.setdefault((name, each["width"], each["depth"]), {})[root_in_use(name, root)] = each
    chosen = {name: both for (name, _, _), both in sizes.items() if len(both) == len(ROOTS)}  # the largest stands last
    for name, root in ((name, root) for name in AUTO_ROOT if name in chosen for root in ROOTS):
        each = chosen[name][root]
        row = {
            "activation": name,
            "root": root,
            "published": root == AUTO_ROOT[name],
            **_predicted(theory, each, name, root),
        }
        row |= {key: each[key] for key in ("depth", "width", "inputs", "directory")} | {"n": each["repeats"]}
        for key in SIGNALS:
            values = [math.inf if repeat[key] is None else repeat[key] for repeat in each["each_repeat"]]
            row |= {f"{key}_low": min(values), f"{key}_high": max(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def _predicted(theory: pd.DataFrame | None, measured: Mapping[str, Any], name: str, root: str) -> dict[str, float]:
    found = {"chi": math.nan, "predicted_low": math.nan, "predicted_high": math.nan}
    if theory is None:
        return found
    rows = theory[(theory["what"] == "length") & (theory["activation"] == name) & (theory["root"] == root)]
    rows = rows[(rows["start"] == 1) & rows["layer"].notna()]
    if len(rows):
        found["chi"] = rows["chi"].iloc[0]
    same = rows[(rows["width"] == measured["width"]) & (rows["layer"] == measured["depth"])]
    if len(same):
        found |= {"predicted_low": same["band_low"].iloc[0], "predicted_high": same["band_high"].iloc[0]}
    return found


def _compared(runs: pd.DataFrame, key: str, column: str, values: pd.Series, both: Sequence[str]) -> pd.DataFrame:
    """Accuracies of the groups in which both values of a key have been trained, a row per group and value."""
    keys = [*SETTING, column]
    frame = runs.assign(**{"setting": runs["protocol"].map(lambda text: statistics.without(text, key)), column: values})
    frame = frame[frame[column].isin(both)]
    # Where a name does not tell what `auto` comes to, `auto` and that root are two identities of one network.
    frame = frame[frame["identity"] == frame.groupby(keys)["identity"].transform("first")]
    complete = frame.groupby(SETTING)[column].transform("nunique") == len(both)
    frame = frame[complete]
    if frame.empty:
        return pd.DataFrame(columns=keys)
    cells = statistics.over_seeds(frame, keys)
    parts = []
    for split in statistics.SPLITS:
        names = {"mean": split, "std": f"{split}_std", "interval": f"{split}_interval"}
        parts.append(cells[cells["split"] == split].rename(columns=names)[[*keys, *names.values(), "n", "diverged"]])
    merged = parts[0].merge(parts[1].drop(columns=["n", "diverged"]), on=keys, how="left")
    order = {value: place for place, value in enumerate(both)}
    ranks = merged.apply(
        lambda row: [statistics.axis_order(row[name]) for name in SETTING] + [order[row[column]]], axis=1
    )
    return merged.loc[sorted(merged.index, key=lambda index: ranks[index])].reset_index(drop=True)
