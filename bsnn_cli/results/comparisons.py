"""Two questions that the paper leaves open, from stored numbers: exact orthogonality, and the root b.

Each function takes frames and returns one. `constraint` compares `WᵀW = I` kept exactly with rows of unit length, which
the paper trains as the exact constraint is expensive. `roots` compares the upper with the lower solution b of
normalisation, which the paper does not mention.
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
"""Columns that two compared numbers have in common; `setting` is the protocol without the key that is varied."""

SIGNALS = ("forward_norm_last", "gradient_norm_ratio", "one_minus_cosine_last")
"""Fields of `Summary` that say what becomes of a network's signals."""

Measured = Sequence[Mapping[str, Any]]
"""Summaries of measurements, as `propagation_store.load_all` reads them."""


def constraint(
    runs: pd.DataFrame, epochs: pd.DataFrame, measured: Measured, bench: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Compare exact orthogonality with unit rows, wherever both have been trained with all else equal.

    Args:
        runs: as `statistics.finished` returns them.
        epochs: of these runs, as `loading.load_epochs` reads them.
        measured: of their trained networks, and others.
        bench: `bench.csv`, or None.

    Returns:
        The columns of `_compared` for `weights`, `step_ms` (of one network of this size, of both in turns, from
        `bench`; NaN where it has none), each of `SIGNALS` after training (mean over the measured networks),
        `orthogonality_error` (largest |WᵀW − I| that any epoch of any seed reports), and `measured` (networks).
    """
    cells = _compared(runs, "model.weights", "weights", runs["model.weights"], WEIGHTS)
    signals = {row["trained"]: row for row in measured if row["source"] == "gaussian"}
    errors = epochs.groupby("directory")["orthogonality_error"].max()
    details = runs[["identity"]].assign(
        step_ms=[_step_ms(bench, run) for run in runs.to_dict("records")],
        **{key: [math.nan if (row := signals.get(directory)) is None or row[key] is None else float(row[key])
                 for directory in runs["directory"]] for key in SIGNALS},
        orthogonality_error=runs["directory"].map(errors),
    ).groupby("identity")  # fmt: skip
    means = details[["step_ms", *SIGNALS]].mean().assign(
        orthogonality_error=details["orthogonality_error"].max(), measured=details[SIGNALS[0]].count()
    )  # fmt: skip
    return cells.merge(means.reset_index(), on="identity", how="left")


def _step_ms(bench: pd.DataFrame | None, run: Mapping[Any, Any]) -> float:
    """Return the time of one network like that of a run, where both kinds of weights have been timed in turns."""
    if bench is None:
        return math.nan
    form = ("_gpn" if run["gpn"] else "") + ("_d" if run["separation"] else "")
    same = (bench["comparison"] == "weights=orthogonal") & (bench["implementation"] == "bsnn")
    same &= bench["activation"] == run["activation"] + form
    for key in ("model.depth", "model.width", "model.norm", "model.weights", "optim.batch_size"):
        same &= bench[key.rpartition(".")[2]] == run[key]
    return float(bench.loc[same, "step_ms"].mean())


def roots(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare the upper with the lower root b, wherever both have been trained with all else equal.

    Args:
        runs: as `statistics.finished` returns them.

    Returns:
        The columns of `_compared` for `root`.
    """
    gpn = runs[runs["gpn"]]
    return _compared(gpn, statistics.ROOT, "root", gpn["root"], ROOTS)


def _compared(runs: pd.DataFrame, key: str, column: str, values: pd.Series, both: Sequence[str]) -> pd.DataFrame:
    """Return the accuracies of the networks that have been trained with both values of a key, all else equal.

    Returns:
        One row per `SETTING` and `column`: `test`, `test_std`, `test_interval` and the same of `train` (percent, over
        seeds, as in `statistics.over_seeds`), `n`, `diverged` and `identity`.
    """
    keys = [*SETTING, column]
    settings = runs["protocol"].map(lambda protocol: statistics.without(protocol, key))
    runs = runs.assign(**{"setting": settings, column: values})
    runs = runs[runs[column].isin(both)]
    # Where a name does not tell what `auto` comes to, `auto` and that root are two identities of one network.
    runs = runs[runs["identity"] == runs.groupby(keys)["identity"].transform("first")]
    runs = runs[runs.groupby(SETTING)[column].transform("nunique") == len(both)]
    if runs.empty:
        return pd.DataFrame(columns=[*keys, "identity"])
    cells = statistics.over_seeds(runs, keys)
    test, train = (
        cells[cells["split"] == split]
        .rename(columns={"mean": split, "std": f"{split}_std", "interval": f"{split}_interval"})
        .loc[:, [*keys, split, f"{split}_std", f"{split}_interval", "n", "diverged", "identity"]]
        for split in statistics.SPLITS
    )
    merged = test.merge(train.drop(columns=["n", "diverged", "identity"]), on=keys, how="left")
    order = [[*(statistics.axis_order(row[name]) for name in SETTING), both.index(row[column])] for row in
             merged.to_dict("records")]  # fmt: skip
    return merged.loc[sorted(merged.index, key=order.__getitem__)].reset_index(drop=True)


def root_signals(measured: Measured, theory: pd.DataFrame | None) -> pd.DataFrame:
    """Return what is predicted of a signal's length for each root b, and what is measured.

    Args:
        measured: summaries; of fresh networks, and others.
        theory: `theory.csv`, or None.

    Returns:
        One row per activation and root that is measured: `activation`, `root`, `published` (whether it is the paper's
        choice), `chi`, `predicted_low` and `predicted_high` (where ‖x^{L+1}‖²/n must lie that starts at 1, by the
        theory of fluctuations), `depth`, `width`, `inputs`, `n` (repeats), and the least and largest of the repeats of
        each of `SIGNALS` as `<name>_low` and `<name>_high`.
    """
    sizes: dict[tuple[str, int, int], dict[str, Mapping[str, Any]]] = {}
    for summary in sorted(measured, key=lambda row: (row["width"], row["depth"], row["repeats"], row["inputs"])):
        activation, model = summary["config"]["activation"], summary["config"]["model"]
        fresh = summary["trained"] is None and summary["source"] == "gaussian" and summary["approach"] is None
        plain = (model["norm"], model["weights"]) == ("none", "unit_rows") and not model.get("residual")
        if fresh and plain and activation["gpn"] and activation.get("separation") is None:
            name, root = activation["name"], root_in_use(activation["name"], activation["root"])
            sizes.setdefault((name, summary["width"], summary["depth"]), {})[root] = summary
    chosen = {name: both for (name, _, _), both in sizes.items() if len(both) == len(ROOTS)}  # the largest stands last
    rows = []
    for name, root in ((name, root) for name in AUTO_ROOT if name in chosen for root in ROOTS):
        summary = chosen[name][root]
        row = {"activation": name, "root": root, "published": root == AUTO_ROOT[name]}
        row |= _predicted(theory, summary, name, root)
        row |= {key: summary[key] for key in ("depth", "width", "inputs", "directory")} | {"n": summary["repeats"]}
        for key in SIGNALS:
            values = [math.inf if repeat[key] is None else repeat[key] for repeat in summary["each_repeat"]]
            row |= {f"{key}_low": min(values), f"{key}_high": max(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def _predicted(theory: pd.DataFrame | None, measured: Mapping[str, Any], name: str, root: str) -> dict[str, float]:
    values = {"chi": math.nan, "predicted_low": math.nan, "predicted_high": math.nan}
    if theory is None:
        return values
    rows = theory[(theory["what"] == "length") & (theory["activation"] == name) & (theory["root"] == root)]
    rows = rows[(rows["start"] == 1) & rows["layer"].notna()]
    if len(rows):
        values["chi"] = rows["chi"].iloc[0]
    same = rows[(rows["width"] == measured["width"]) & (rows["layer"] == measured["depth"])]
    if len(same):
        values |= {"predicted_low": same["band_low"].iloc[0], "predicted_high": same["band_high"].iloc[0]}
    return values
