"""The tables of the report as plain rows: ours beside the published numbers, approaches, findings, runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import read_text
from bsnn_cli.figures.comparisons import APPROACHES as LABELS
from bsnn_cli.report import provenance_table
from bsnn_cli.report.archive import neutral_config
from bsnn_cli.results import comparison_tables, statistics, tables
from bsnn_cli.results.approach_table import APPROACHES as WORDS
from bsnn_cli.results.store import Stored
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS, PAPER_ACTIVATIONS

STEPS = (1.0, 5.0, 20.0)
"""Percentage points where the colour of a difference changes."""


@dataclass
class Cell:
    """One number of the accuracy tables.

    Attributes:
        ours: as text; a dash where there is no run.
        link: id of the entry of its runs on the page; empty where there is none.
        better: whether it is the better one of GPN and non-GPN.
        published: as text, empty where the paper has none.
        difference: with its sign, empty where there is none.
        level: class of the colour, such as `up-2`; empty for none.
    """

    ours: str = tables.MARKDOWN.dash
    link: str = ""
    better: bool = False
    published: str = ""
    difference: str = ""
    level: str = ""


@dataclass
class Table:
    """Accuracies of one dataset and split.

    Attributes:
        forms: headings, of the cells of a row.
        rows: (label, cells).
        beside: whether the paper has numbers for this dataset.
    """

    dataset: str
    split: str
    forms: list[str]
    rows: list[tuple[str, list[Cell]]]
    beside: bool
    missing: str = ""


@dataclass
class Block:
    """The tables of one protocol.

    Attributes:
        apart: what sets it apart from the published protocol; empty for that itself.
        seeds: n, in words.
        warning: what a reader must know before comparing.
    """

    apart: str
    seeds: str
    tables: list[Table] = field(default_factory=list)
    warning: str | None = None

    @property
    def beyond(self) -> bool:
        """Whether it is the published protocol with what the paper does not have."""
        return self.apart == statistics.SEPARATION


def accuracy(stored: Stored) -> list[Block]:
    """A block for each protocol, the published one first; both of the paper's datasets where there is either."""
    if stored.finished.empty:
        return []
    cells = statistics.over_seeds(stored.finished)
    identities = stored.finished.groupby(statistics.CELL)["identity"].first()
    blocks = []
    for protocol, own in statistics.blocks(cells).items():
        if own.empty or set(statistics.ELSEWHERE) & set(statistics.settings(protocol)):
            continue
        sizes = sorted(set(own["n"]) - {0})
        seeds = " to ".join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
        block = Block(protocol, seeds, warning=statistics.mixed_numerics(own))
        names = sorted(set(own["dataset"]), key=statistics.axis_order)
        if set(names) & {*tables.PAPER_DATASETS}:
            names = [*tables.PAPER_DATASETS, *(name for name in names if name not in tables.PAPER_DATASETS)]
        published = statistics.compare(cells, "" if protocol == statistics.SEPARATION else protocol)
        for name in names:
            for split in statistics.SPLITS:
                block.tables.append(_table(own, published, identities, protocol, name, split))
        blocks.append(block)
    return blocks


def _table(
    cells: pd.DataFrame, published: pd.DataFrame, identities: pd.Series, protocol: str, dataset: str, split: str
) -> Table:
    shown = cells[(cells["dataset"] == dataset) & (cells["split"] == split)]
    beside = dataset in tables.PAPER_DATASETS
    forms = statistics.forms(cells)
    ours = {
        (row["activation"], row["gpn"], row["separation"], row["batch_norm"]): row for row in shown.to_dict("records")
    }
    theirs = {
        (row["activation"], row["gpn"], "", row["batch_norm"]): row
        for row in published[(published["dataset"] == dataset) & (published["split"] == split)].to_dict("records")
    }
    names = [*(PAPER_ACTIVATIONS if beside else ()), *shown["activation"]]
    norms = (
        (False, True) if (beside and protocol in ("", statistics.SEPARATION)) or shown["batch_norm"].any() else (False,)
    )
    rows = []
    for norm in norms:
        for name in sorted(set(names), key=statistics.axis_order):
            keys = [(name, *form, norm) for form in forms.values()]
            if not any(key in ours or key in theirs for key in keys):
                continue
            label = ACTIVATION_LABELS.get(name, name) + (" + batch norm" if norm else "")
            rows.append((label, [_cell(ours.get(key), theirs.get(key), identities) for key in keys]))
    label = DATASETS[dataset].label if dataset in DATASETS else dataset
    epochs = statistics.settings(protocol).get("optim.epochs")
    missing = f"bsnn train -m dataset={dataset}" + (f" optim.epochs={epochs}" if epochs else "")
    return Table(label, split, [*forms], rows, beside, missing if shown.empty else "")


def _cell(ours: Any, theirs: Any, identities: pd.Series) -> Cell:
    cell = Cell()
    if ours is not None:
        cell.ours, cell.better = tables.entry({**ours, "better": False}, tables.MARKDOWN), bool(ours["better"])
        cell.link = f"runs-{identities[tuple(ours[key] for key in statistics.CELL)]}"
    if theirs is not None:
        cell.published = f"{theirs['published']:.2f}"
        if not math.isnan(theirs["difference"]):
            cell.difference = f"{theirs['difference']:+.2f}".replace("-", "−")
            cell.level = level(theirs["difference"])
    return cell


def level(difference: float) -> str:
    """`same`, or `up-1` to `down-3` by the size of a difference in percentage points."""
    size = sum(abs(difference) > step for step in STEPS)
    return "same" if size == 0 else f"{'up' if difference > 0 else 'down'}-{size}"


def approaches(stored: Stored) -> list[dict[str, str]]:
    """The measured comparison of approaches, beside the paper's words."""
    rows = []
    for name, words in WORDS.items():
        own = [each for each in stored.measured if each["approach"] == name and each["source"] == "gaussian"]
        own = [each for each in own if each["trained"] is None]
        sizes = [(each["depth"], each["width"]) for each in own]
        for each in [each for each in own if (each["depth"], each["width"]) == max(sizes)]:
            said = [f"{label}: {text}" for label, text in vars(words).items() if text]
            rows.append(
                {
                    "approach": LABELS[name],
                    "activation": each["label"],
                    "words": "; ".join(said),
                    "forward": _number(each["forward_norm_last"]),
                    "ratio": _number(each["gradient_norm_ratio"]),
                    "spread": _number(each["derivative_std"]),
                    "linearity": _number(each["pseudo_linearity"]),
                    "angle": _number(each["one_minus_cosine_last"]),
                    "size": f"{each['depth']} × {each['width']}, {each['inputs']} inputs, n = {each['repeats']}",
                }
            )
    return rows


def _number(value: float | None) -> str:
    return tables.MARKDOWN.dash if value is None else comparison_tables.number(float(value))


def theorem_checks(stored: Stored) -> list[dict[str, str]]:
    """Probability of a deviation at the least and at the largest width, a row per activation and theorem."""
    if stored.theory is None:
        return []
    counted = stored.theory[stored.theory["estimate"].notna() & stored.theory["activation"].notna()]
    least, largest = counted["width"].min(), counted["width"].max()
    rows = []
    for keys, group in counted.groupby(["what", "activation"], sort=False):
        what, base = map(str, keys)
        row = {"theorem": what[-1], "activation": ACTIVATION_LABELS.get(base, base)}
        for case, own in group.groupby("case"):
            ends = [own[own["width"] == width]["estimate"].iloc[0] for width in (least, largest)]
            row[str(case)] = f"{ends[0]:.3f} → {ends[1]:.3f}"
        rows.append(row)
    return rows


def theory_setting(stored: Stored) -> str:
    """Widths, draws and ε of the theorem checks, in words."""
    if stored.theory is None:
        return ""
    counted = stored.theory[stored.theory["estimate"].notna()]
    return (
        f"deviation of ε = {counted['epsilon'].iloc[0]:.3f} or more, width n from {counted['width'].min()} to "
        f"{counted['width'].max()}, {counted['trials'].iloc[0]} draws each"
    )


def constraint(stored: Stored) -> list[dict[str, Any]]:
    """Exact orthogonality against unit rows."""
    return [
        {
            "setting": comparison_tables.setting(row),
            "network": comparison_tables.label(row),
            "weights": row["weights"].replace("_", " "),
            "cells": comparison_tables.constraint_cells(row),
            "link": _link(stored, row, "model.weights", row["weights"]),
        }
        for row in comparison_tables.records(stored.constraint)
    ]


def root_signals(stored: Stored) -> list[list[str]]:
    """What is predicted and measured for both roots b."""
    return [comparison_tables.root_cells(row) for row in comparison_tables.records(stored.root_signals)]


def roots(stored: Stored) -> list[dict[str, str]]:
    """Accuracy for both roots b."""
    return [
        {
            "setting": comparison_tables.setting(row),
            "network": comparison_tables.label(row),
            "root": row["root"],
            "test": comparison_tables.accuracy(row, "test"),
            "train": comparison_tables.accuracy(row, "train"),
            "link": _link(stored, row, "root", row["root"]),
        }
        for row in comparison_tables.records(stored.roots)
    ]


def _link(stored: Stored, row: Any, column: str, value: str) -> str:
    """Id of the entry of the runs that a row of the findings counts."""
    runs = stored.finished
    own = runs[
        (runs[column] == value) & (runs["dataset"] == row["dataset"]) & (runs["activation"] == row["activation"])
    ]
    for key in ("gpn", "separation", "batch_norm"):
        own = own[own[key] == row[key]]
    apart = statistics.ROOT if column == "root" else column
    for run in own.to_dict("records"):
        rest = {key: text for key, text in statistics.settings(run["protocol"]).items() if key != apart}
        if rest == statistics.settings(row["setting"]):
            return f"runs-{run['identity']}"
    return ""


def runs(stored: Stored) -> list[dict[str, Any]]:
    """All finished runs by configuration, with the config of one and what became of each seed."""
    if stored.finished.empty:
        return []
    ranks = [[statistics.axis_order(run[key]) for key in statistics.CELL] for run in stored.finished.to_dict("records")]
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    found = []
    for identity, own in stored.finished.iloc[order].groupby("identity", sort=False):
        rows = own.sort_values("seed").to_dict("records")
        first, dataset = rows[0], rows[0]["dataset"]
        found.append(
            {
                "id": f"runs-{identity}",
                "label": f"{first['label']} {first['separation']}".rstrip(),
                "dataset": DATASETS[dataset].label if dataset in DATASETS else dataset,
                "protocol": first["protocol"] or "the published protocol",
                "config": neutral_config(read_text(Path(first["directory"]) / "config.yaml")),
                "seeds": [_run(stored, row) for row in rows],
            }
        )
    return found


def _run(stored: Stored, row: Any) -> dict[str, Any]:
    """What became of one run, and where it comes from."""
    accuracies = "diverged"
    if row["status"] == "done":
        accuracies = f"test {row['test_accuracy']:.2f} %, train {row['train_accuracy']:.2f} %"
    directory = Path(row["directory"]).relative_to(stored.root).as_posix()
    return {
        "seed": row["seed"],
        "accuracies": accuracies,
        "time": f"{row['elapsed_s']:.0f} s{_together(row['networks'])}",
        "steps": f"{row['steps']:.0f}",
        "href": f"../{directory}/config.yaml",
        **provenance_table.of_run(row["directory"]),
    }


def _together(networks: Any) -> str:
    """How many networks the time of a run is shared by."""
    if networks is None or math.isnan(networks) or networks == 1:
        return ""
    return f" for {networks:.0f} networks together"
