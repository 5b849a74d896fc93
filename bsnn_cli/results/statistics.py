"""From runs to statistics over seeds: mean, spread, interval and n. Each function takes a frame and returns one.

A number is always an average over the seeds of one identity (one configuration), nothing else. Runs that diverged are
counted, never averaged away; runs that are not finished do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from bsnn_cli.errors import ConfigError, RunDirectoryError
from bsnn_cli.results.approach_table import APPROACHES
from bsnn_cli.settings.choices import (
    ACTIVATION_LABELS,
    CUSTOM,
    DATASETS,
    FORMS,
    TAILORED_BY,
    parameter_in_use,
    split_label,
)
from bsnn_cli.settings.identity import Protocol

SPLITS = ("test", "train")
FINISHED = ("done", "diverged")
CONFIDENCE = 0.95
"""Probability that a two-sided interval holds the true value."""

FEWEST = 3
"""Runs below which there is no interval of their mean."""

CELL = ["protocol", "dataset", "activation", "gpn", "separation", "batch_norm"]
"""Columns that together fix the identity of a run: each of their values has one number in the paper's tables."""

PAIR = ["dataset", "activation", "batch_norm"]
"""Columns that the forms of an activation have in common, of which the better one is bold."""

ROOT = "activation.root"
SEPARATION, TAILORED_DEPTH = "activation.separation", "activation.tailored_depth"
PARAMETER = "activation.parameter"
COMPARED_KEYS = (ROOT, "model.weights")
"""Keys that `comparisons` varies; the report shows protocols that set them in tables of their own."""


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that count, with the axes of the tables as columns: those of `CELL`.

    Depth-aware GPN is an axis, not a protocol: `separation` is the 1 − c that an activation is tailored to, such as
    `0.3` or, of layers other than the network's, `0.3 over 50 layers`, with ` by gain` behind it where that is not the
    parameter that the program moves by itself; empty where it is taken as it is.

    Args:
        runs: one row per run directory, as `loading.load_all` reads them.

    Returns:
        The rows whose status is done or diverged. Where several image folders or custom activations go by one name,
        `dataset` or `activation` is `<name>@<start of the fingerprint>`: what differs in content is not the same.

    Raises:
        ConfigError: if there is none.
    """
    if runs.empty or not runs["status"].isin(FINISHED).any():
        present = "no run directory at all" if runs.empty else unfinished(runs)
        raise ConfigError(
            f"output_root: no finished run to tabulate ({present}); run for example `bsnn train dataset=digits` first"
        )
    runs = runs[runs["status"].isin(FINISHED)]
    return runs.assign(
        dataset=_told_apart(runs["dataset.name"], runs["dataset.fingerprint"]),
        activation=_told_apart(_base_names(runs), runs["activation.fingerprint"]),
        gpn=runs["activation.gpn"].astype(bool),
        separation=[tailoring(run) for run in runs.to_dict("records")],
        protocol=runs["settings"].map(lambda protocol: without(protocol, SEPARATION, TAILORED_DEPTH, PARAMETER)),
        batch_norm=runs["model.norm"] == "batch",
    ).reset_index(drop=True)


def with_norm(runs: pd.DataFrame) -> pd.DataFrame:
    """Return finished runs whose `protocol` names batch normalisation, for tables that put it in no parentheses."""
    protocols = [
        naming_norm(protocol) if norm else protocol
        for protocol, norm in zip(runs["protocol"], runs["batch_norm"], strict=True)
    ]
    return runs.assign(protocol=pd.Series(protocols, index=runs.index, dtype=object))


def naming_norm(protocol: Protocol) -> Protocol:
    """Return a protocol with batch normalisation as one of its settings."""
    return Protocol((*protocol.items, ("model.norm", "batch")))


def unfinished(runs: pd.DataFrame) -> str:
    """Count the runs that are not finished, such as `2 failed, 1 running`; empty if none."""
    counts = runs["status"].value_counts().sort_index().to_dict()
    return ", ".join(f"{n} {status}" for status, n in counts.items() if status not in FINISHED)


def tailoring(run: dict[Any, Any]) -> str:
    """Return what the activation of a run is tailored to, as `finished` describes it."""
    if pd.isna(run[SEPARATION]):
        return ""
    layers = "" if run[TAILORED_DEPTH] == run["model.depth"] else f" over {run[TAILORED_DEPTH]:.0f} layers"
    name = run["activation.name"]
    used = parameter_in_use(name, parameter(run))
    return f"{run[SEPARATION]:g}{layers}" + ("" if used in (None, "auto", TAILORED_BY.get(name)) else f" by {used}")


def parameter(run: dict[Any, Any]) -> str | None:
    """Return `activation.parameter` of a run; a frame may have NaN for null."""
    return run[PARAMETER] if isinstance(run[PARAMETER], str) else None


def _base_names(runs: pd.DataFrame) -> pd.Series:
    """Return the activations as `identity.base_name` names them."""
    functions = runs["activation.path"].astype(object).map(lambda path: str(path).rpartition(":")[2])
    return functions.where(runs["activation.name"] == CUSTOM, runs["activation.name"])


def _told_apart(names: pd.Series, fingerprints: pd.Series) -> pd.Series:
    prints = fingerprints.astype(object).where(fingerprints.notna(), "").astype(str)
    ambiguous = prints.groupby(names).transform("nunique") > 1
    return names.astype(str).where(~ambiguous, names.astype(str) + "@" + prints.str[:6])


def over_seeds(
    runs: pd.DataFrame, keys: Sequence[str] = CELL, values: Mapping[str, pd.Series] | None = None
) -> pd.DataFrame:
    """Return statistics over the seeds of each group of runs, in the order of the tables.

    Args:
        runs: as `finished` returns them.
        keys: columns whose values make a group.
        values: for each split a number of each run, NaN where it has none and infinite where it never got there;
            None for accuracies.

    Returns:
        One row per group and split with numbers or diverged runs: the keys, `split`, `mean` (of accuracies in percent),
        `std` (of the sample, n − 1), `n` (runs with a number), `diverged` (runs that did), `unreached` (runs with an
        infinite one), `numerics` (tuple of versions), `identity` and `interval` (half-width of the 95 % interval of the
        mean, Student's t). The interval is NaN below n = 3, as t is 12.7 at n = 2 and it would say nothing; std is NaN
        for n = 1, the mean too for n = 0.

    Raises:
        RunDirectoryError: if a group holds two runs of one seed, or runs of several configurations.
    """
    _check_groups(runs, list(keys))
    lost, versions = runs["status"] == "diverged", runs["numerics"].map(lambda version: {int(version)})
    values = {split: _accuracy(runs, split) for split in SPLITS} if values is None else values
    return _statistics(runs, values, lost, versions, keys)


def curves(
    runs: pd.DataFrame, epochs: pd.DataFrame, metric: str = "test_accuracy", keys: Sequence[str] = CELL
) -> pd.DataFrame:
    """Return a metric against epoch, over the seeds of each group of runs.

    Args:
        runs: as `finished` returns them.
        epochs: of these runs, as `loading.load_epochs` reads them.
        metric: a column of `epochs.csv`.
        keys: columns whose values make a group.

    Returns:
        One row per group and epoch in which it is measured: the keys, `epoch`, `mean` and `std` (sample), `n` (runs
        that got so far: fewer at the end where some diverged). Std is NaN for n = 1.

    Raises:
        RunDirectoryError: if a group holds two runs of one seed, or runs of several configurations.
    """
    _check_groups(runs, list(keys))
    rows = epochs.loc[epochs[metric].notna(), ["directory", "epoch", metric]]
    rows = rows.merge(runs[["directory", *keys]], on="directory")
    table = rows.groupby([*keys, "epoch"])[metric].agg(["mean", "std", "count"])
    return table.rename(columns={"count": "n"}).reset_index()


def _accuracy(runs: pd.DataFrame, split: str, side: str = "") -> pd.Series:
    return runs[f"{split}_accuracy{side}"].astype(float).where(runs[f"status{side}"] == "done")


def _statistics(
    runs: pd.DataFrame, values: Mapping[str, pd.Series], lost: pd.Series, versions: pd.Series, keys: Sequence[str]
) -> pd.DataFrame:
    """Return what `over_seeds` says, of a value per run and split; `versions` are sets."""
    parts = [
        runs.assign(
            split=split,
            value=value.mask(value.abs() == math.inf),
            unreached=value.abs() == math.inf,
            lost=lost,
            versions=versions,
        )
        for split, value in values.items()
    ]
    grouped = pd.concat(parts, ignore_index=True).groupby([*keys, "split"], dropna=False)
    cells = grouped.agg(
        mean=("value", "mean"), std=("value", "std"), n=("value", "count"), diverged=("lost", "sum"),
        unreached=("unreached", "sum"), numerics=("versions", _union), identity=("identity", "first"),
    ).reset_index()  # fmt: skip
    n = cells["n"].to_numpy()
    interval = stdtrit(n - 1.0, (1 + CONFIDENCE) / 2) * cells["std"] / n.clip(1) ** 0.5
    cells["interval"] = interval.where(n >= FEWEST)
    cells = cells[cells["n"] + cells["diverged"] + cells["unreached"] > 0]
    order = sorted(cells.index, key=lambda row: [axis_order(cells.at[row, key]) for key in [*keys, "split"]])
    return cells.loc[order].reset_index(drop=True)


def _union(versions: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({version for some in versions for version in some}))


def _check_groups(runs: pd.DataFrame, keys: list[str]) -> None:
    """Refuse groups that hold several identities, or a seed twice: their n would count what is not alike."""
    for _, group in runs.groupby(keys, dropna=False):
        distinct = group.drop_duplicates("identity")
        culprits = distinct if len(distinct) > 1 else group[group["seed"].duplicated(keep=False)]
        if len(culprits) > 0:
            raise RunDirectoryError(
                "these runs claim the same number of a table, though they are copies of one run or differ in more "
                f"than the seed; move all but one away: {', '.join(map(str, culprits['directory']))}"
            )


@dataclass(frozen=True)
class Block:
    """Numbers that stand side by side in a table.

    Attributes:
        protocol: what their runs have in common.
        cells: rows of `over_seeds`, with the column `better`.
        tailored: whether depth-aware GPN stands there, under the paper's protocol, which has none.
    """

    protocol: Protocol
    cells: pd.DataFrame
    tailored: bool = False

    @property
    def name(self) -> str:
        """`paper`, the key of depth-aware GPN, or the protocol's settings."""
        return SEPARATION if self.tailored else str(self.protocol) or "paper"

    @property
    def title(self) -> str:
        """The protocol in words for people."""
        if self.tailored:
            return "Paper's protocol, with depth-aware GPN"
        return "Paper's protocol" + (f" except {self.protocol}" if self.protocol else "")


def blocks(cells: pd.DataFrame) -> list[Block]:
    """Return the numbers of each protocol.

    The paper's is the first and always there; then come those that differ from it in few settings. The paper has no
    depth-aware GPN: under its protocol that stands in a block of its own, beside what it is compared with. Without GPN
    the choice of root means nothing, so a plain run also stands beside the GPN runs with another root.

    Args:
        cells: as `over_seeds(runs)` returns them.
    """
    made = []
    paper = Protocol()
    for protocol in sorted({paper, *cells["protocol"]}, key=lambda key: (len(key.settings), axis_order(key))):
        numbers = under(protocol, cells)
        tailored = numbers["separation"] != ""
        if protocol == paper and tailored.any():
            made.append(Block(paper, with_better(numbers[~tailored], PAIR)))
            datasets = numbers["dataset"].isin(numbers["dataset"][tailored])
            made.append(Block(paper, with_better(numbers[datasets], PAIR), tailored=True))
        else:
            made.append(Block(protocol, with_better(numbers, PAIR)))
    return made


def under(protocol: Protocol, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of a protocol; of one with another root, with the plain runs that its GPN runs stand beside.

    Args:
        protocol: one of `cells`.
        cells: as `over_seeds(runs)` returns them.
    """
    numbers = cells[cells["protocol"] == protocol]
    if ROOT not in protocol.settings:
        return numbers
    plain = cells[(cells["protocol"] == without(protocol, ROOT)) & ~cells["gpn"]]
    return pd.concat([numbers, plain.merge(numbers[PAIR].drop_duplicates(), on=PAIR)], ignore_index=True)


def forms(cells: pd.DataFrame) -> dict[str, tuple[bool, str]]:
    """Return the forms of an activation that stand side by side, as (gpn, separation) by heading."""
    tailored = sorted(set(cells["separation"]) - {""}, key=axis_order)
    return {"Non-GPN": (False, ""), "GPN": (True, "")} | {f"GPN-d {text}": (True, text) for text in tailored}


def without(protocol: Protocol, *keys: str) -> Protocol:
    """Return a protocol without some of its settings."""
    return Protocol(tuple((key, value) for key, value in protocol.items if key not in keys))


def with_better(cells: pd.DataFrame, pair: Sequence[str], score: pd.Series | None = None) -> pd.DataFrame:
    """Add the column `better`: whether this is the best one of those with a pair in common, such as non-GPN and GPN.

    That is the highest score (a tie has no best one) without a larger share of lost runs than any other: those that
    diverged or never got there. A number without a partner is not better than anything.

    Args:
        cells: statistics as `over_seeds` returns them, one row per index label.
        pair: the columns that the two have in common, besides `split`.
        score: of each number, higher for a better one, at the digits that are shown; None: accuracies.
    """
    cells = cells.assign(better=False)
    score = (cells["mean"].round(2) if score is None else score).fillna(float("-inf"))
    lost = cells["diverged"] + cells["unreached"]
    share = lost / (cells["n"] + lost)
    for _, group in cells.groupby([*pair, "split"], dropna=False):
        if len(group) > 1:
            *_, second, best = score[group.index].sort_values().index
            cells.loc[best, "better"] = bool(score[best] > score[second] and share[best] <= share[group.index].min())
    return cells


def mixed_numerics(cells: pd.DataFrame) -> str | None:
    """Return a warning where numbers of different numerics versions stand side by side, else None."""
    versions = _union(cells["numerics"])
    if len(versions) < 2:
        return None
    listed = ", ".join(map(str, versions))
    return f"results of numerics versions {listed} mix here; retrain the older ones with force=true to compare them"


def published() -> pd.DataFrame:
    """Return the paper's 96 accuracies: dataset, split, activation, gpn, batch_norm, published (in percent)."""
    with (resources.files("bsnn_cli.results") / "published_accuracy.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).rename(columns={"accuracy_percent": "published"})


def compare(cells: pd.DataFrame, protocol: Protocol | None = None) -> pd.DataFrame:
    """Return each of the paper's 96 numbers beside ours, in the order of the published table.

    Args:
        cells: as `over_seeds(runs)` returns them.
        protocol: of ours; None for the paper's.

    Returns:
        Columns dataset, split, activation, gpn, batch_norm, ours, ours_std, ours_interval, n, diverged, published,
        difference (ours − published); accuracies in percent, NaN where we have none.
    """
    ours = cells[
        (cells["protocol"] == (Protocol() if protocol is None else protocol)) & (cells["separation"] == "")
    ].rename(columns={"mean": "ours", "std": "ours_std", "interval": "ours_interval"})
    keys = ["dataset", "split", "activation", "gpn", "batch_norm"]
    measured = ["ours", "ours_std", "ours_interval", "n", "diverged"]
    table = published().merge(ours[[*keys, *measured]], on=keys, how="left")
    table = table.fillna({"n": 0, "diverged": 0}).astype({"n": int, "diverged": int})
    table["difference"] = table["ours"] - table["published"]
    return table[[*keys, *measured, "published", "difference"]]


def paired(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy with GPN minus that without, over the seeds that both have.

    The same seed gives both the same initial matrices and the same batches, so the difference is free of what they
    share. Without GPN the choice of root means nothing: every root is compared with the same plain runs.

    Args:
        runs: as `finished` returns them.

    Returns:
        One row per protocol, dataset, activation, separation, batch_norm and split with a common seed: `mean` and
        `std` of the difference in percentage points, `n` pairs, `interval` (half-width, 95 %, Student's t), `diverged`
        (pairs that are left out because one or both diverged).
    """
    _check_groups(runs, CELL)
    # A GPN run looks for its partner without the root, and reports its protocol with it.
    gpn = runs[runs["gpn"]].assign(partner=lambda frame: frame["protocol"].map(lambda text: without(text, ROOT)))
    plain = runs[~runs["gpn"]].rename(columns={"protocol": "partner"})
    common = ["partner", "dataset", "activation", "batch_norm", "seed"]
    measured = ["status", "numerics", *(f"{split}_accuracy" for split in SPLITS)]
    pairs = gpn.merge(plain[[*common, *measured]], on=common, suffixes=("", "_plain"))
    differences = {split: _accuracy(pairs, split) - _accuracy(pairs, split, "_plain") for split in SPLITS}
    lost = (pairs["status"] == "diverged") | (pairs["status_plain"] == "diverged")
    both = [{int(gpn), int(plain)} for gpn, plain in zip(pairs["numerics"], pairs["numerics_plain"], strict=True)]
    versions = pd.Series(both, index=pairs.index, dtype=object)
    keys = ["protocol", "dataset", "activation", "separation", "batch_norm"]
    return _statistics(pairs, differences, lost, versions, keys)


def axis_order(value: Any) -> tuple[Any, ...]:
    """Return a sort key: named activations and datasets in the order of their tables, then numbers, then text.

    Approaches come in the order of their table, each by the activation in parentheses. Numbers inside text count as
    numbers: `0.3 over 50 layers` comes before `0.3 over 200 layers`.
    """
    if isinstance(value, Protocol):
        return (2, [(key, axis_order(str(setting))) for key, setting in value.items])
    if not isinstance(value, str):
        return (1, float(value))
    name, _, tailored = value.partition(" ")
    base, form = split_label(name)
    known = [*ACTIVATION_LABELS, *DATASETS, *APPROACHES]
    if base in known:
        inside = tailored.removeprefix("(").removesuffix(")")
        return (0, known.index(base), [*FORMS].index(form), tailored if inside == tailored else axis_order(inside))
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", value)
    return (2, *(float(part) if i % 2 else part for i, part in enumerate(parts)))
