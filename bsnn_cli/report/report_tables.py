"""The tables of the report: ours beside the published numbers, approaches, theorem checks, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import read_text
from bsnn_cli.common.table import DASH, Cell, Column, Table, table
from bsnn_cli.figures.comparisons import APPROACHES as LABELS
from bsnn_cli.report import provenance_table
from bsnn_cli.report.archive import neutral_config
from bsnn_cli.results import statistics
from bsnn_cli.results.approach_table import APPROACHES as WORDS
from bsnn_cli.results.approach_table import COLUMNS
from bsnn_cli.results.formats import Row, dataset_label, entry, number, records, signed
from bsnn_cli.results.store import Results
from bsnn_cli.results.tables import PAPER_DATASETS
from bsnn_cli.settings.choices import ACTIVATION_LABELS, PAPER_ACTIVATIONS

STEPS = (1.0, 5.0, 20.0)
"""Percentage points where the colour of a difference changes."""


def accuracy(results: Results) -> list[dict[str, Any]]:
    """Return a section for each protocol, the published one first; both of the paper's datasets where there is either.

    A section has `title`, `name`, `seeds` (n in words), `warning`, `apart` (what sets its protocol apart), `published`
    (whether the paper has numbers for one of its datasets) and `parts`: a table for each dataset and split.
    """
    if results.finished.empty:
        return []
    cells = statistics.over_seeds(results.finished)
    sections = []
    for block in statistics.blocks(cells):
        if block.cells.empty or set(statistics.COMPARED_KEYS) & set(block.protocol.settings):
            continue
        sizes = sorted(set(block.cells["n"]) - {0})
        names = sorted(set(block.cells["dataset"]), key=statistics.axis_order)
        if set(names) & {*PAPER_DATASETS}:
            names = [*PAPER_DATASETS, *(name for name in names if name not in PAPER_DATASETS)]
        beside = statistics.compare(cells, block.protocol)
        section = {
            "title": block.title,
            "name": block.name,
            "seeds": " to ".join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0",
            "warning": statistics.mixed_numerics(block.cells),
            "apart": bool(block.protocol),
            "published": bool(set(names) & {*PAPER_DATASETS}),
            "parts": [_part(block, beside, name, split) for name in names for split in statistics.SPLITS],
        }
        sections.append(section)
    return sections


def _part(block: statistics.Block, beside: pd.DataFrame, dataset: str, split: str) -> dict[str, Any]:
    """Return the accuracies of a dataset and split, beside the published ones where the paper has some."""
    cells = block.cells[(block.cells["dataset"] == dataset) & (block.cells["split"] == split)]
    beside = beside[(beside["dataset"] == dataset) & (beside["split"] == split)]
    published, forms = not beside.empty, statistics.forms(block.cells)
    columns = [Column("Activation", words=True)]
    for heading, form in forms.items():
        columns.append(Column("ours", heading, style="ours") if published else Column(heading, style="ours"))
        if published and not form[1]:
            columns += [Column("paper", heading, style="paper"), Column("difference", heading, style="difference")]
    keys = ["activation", "gpn", "separation", "batch_norm"]
    ours = {tuple(row[key] for key in keys): row for row in records(cells)}
    theirs = {tuple(row[key] for key in keys): row for row in records(beside.assign(separation=""))}
    norms = (False, True) if (published and not block.protocol) or cells["batch_norm"].any() else (False,)
    names = sorted({*cells["activation"], *(PAPER_ACTIVATIONS if published else ())}, key=statistics.axis_order)
    rows = []
    for name, norm in ((name, norm) for norm in norms for name in names):
        numbers = [(ours.get((name, *form, norm)), theirs.get((name, *form, norm)), form) for form in forms.values()]
        if not any(mine or paper for mine, paper, _ in numbers):
            continue
        row: list[str | Cell] = [ACTIVATION_LABELS.get(name, name) + (" + batch norm" if norm else "")]
        for mine, paper, form in numbers:
            row.append(_ours(mine))
            if published and not form[1]:
                row += _published(paper)
        rows.append(row)
    words = {"test": "test", "train": "training"}[split]
    epochs = block.protocol.settings.get("optim.epochs")
    return {
        "dataset": dataset_label(dataset),
        "split": split,
        "table": Table(columns, rows, f"{dataset_label(dataset)}, {words} accuracy (%)"),
        "missing": f"bsnn train -m dataset={dataset}" + (f" optim.epochs={epochs}" if epochs else ""),
        "empty": cells.empty,
    }


def _ours(row: Row | None) -> str | Cell:
    return DASH if row is None else Cell(entry(row), link=f"#runs-{row['identity']}")


def _published(row: Row | None) -> list[str | Cell]:
    if row is None:
        return [DASH, DASH]
    difference = row["difference"]
    return [
        f"{row['published']:.2f}",
        Cell([signed(difference)], style="" if pd.isna(difference) else level(difference)),
    ]


def level(difference: float) -> str:
    """Return `same`, or `up-1` to `down-3` by the size of a difference in percentage points."""
    size = sum(abs(difference) > step for step in STEPS)
    return "same" if size == 0 else f"{'up' if difference > 0 else 'down'}-{size}"


def approaches(results: Results) -> tuple[Table, str]:
    """Return the measured comparison of approaches beside the paper's words, and the sizes that it is of."""
    header = ["Approach", "Activation", "‖x‖²/n", "gradient ratio", "std of f'", "r²", "1 − cos"]
    keys = ("forward_norm_last", "gradient_norm_ratio", "derivative_std", "pseudo_linearity", "one_minus_cosine_last")
    rows: list[list[str | Cell]] = []
    sizes = []
    for name, words in WORDS.items():
        fresh = [
            summary
            for summary in results.measured
            if (summary["approach"], summary["source"], summary["trained"]) == (name, "gaussian", None)
        ]
        largest = max(((summary["depth"], summary["width"]) for summary in fresh), default=None)
        said = "; ".join(f"{key}: {text}" for key, text in zip(COLUMNS, words, strict=True) if text) or "named only"
        for summary in fresh:
            if (summary["depth"], summary["width"]) == largest:
                rows.append([LABELS[name], summary["label"], *(number(summary[key]) for key in keys), said])
                size = f"{summary['depth']} × {summary['width']}"
                sizes.append(f"{size}, {summary['inputs']} inputs, n = {summary['repeats']}")
    shown = table(header, [], words=(0, 1)).columns
    last = Column("The paper's words", words=True, style="wrap muted")
    return Table([*shown, last], rows), "; ".join(dict.fromkeys(sizes))


CASES = {"none": "assumptions hold", "haar": "W = I, spiky x", "shell": "‖x‖²/n = 2", "gpn": "φ not normalised"}
"""The assumption that is broken in a check of a theorem, in words."""


def theorem_checks(results: Results) -> tuple[Table, str]:
    """Return the probability of a deviation at the least and the largest width, and the circumstances in words."""
    header = ["Theorem", "Activation", *CASES.values()]
    if results.theory is None:
        return table(header, []), ""
    counted = results.theory[results.theory["estimate"].notna()]
    least, largest = counted["width"].min(), counted["width"].max()
    rows = []
    for keys, group in counted[counted["activation"].notna()].groupby(["what", "activation"], sort=False):
        theorem, name = map(str, keys)
        estimates = group.drop_duplicates(["case", "width"]).pivot(index="case", columns="width", values="estimate")
        cells = [
            " → ".join(f"{value:.3f}" for value in estimates.loc[case, [least, largest]])
            if case in estimates.index
            else DASH
            for case in CASES
        ]
        rows.append([theorem[-1], ACTIVATION_LABELS.get(name, name), *cells])
    setting = (
        f"deviation of ε = {counted['epsilon'].iloc[0]:.3f} or more, width n from {least} to {largest}, "
        f"{counted['trials'].iloc[0]} draws each"
    )
    return table(header, rows, words=(0, 1)), setting


def runs(results: Results) -> list[dict[str, Any]]:
    """Return all finished runs by configuration, with the config of one and what became of each seed."""
    if results.finished.empty:
        return []
    ranks = [[statistics.axis_order(run[key]) for key in statistics.CELL] for run in records(results.finished)]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    header = ["seed", "accuracy", "steps", "time", "begun (UTC)", "config"]
    entries = []
    for identity, group in results.finished.iloc[order].groupby("identity", sort=False):
        rows = records(group.sort_values("seed"))
        first = rows[0]
        made = [provenance_table.of_run(row["directory"]) for row in rows]
        seeds = [_seed(results, row, origin["started"]) for row, origin in zip(rows, made, strict=True)]
        entries.append(
            {
                "id": f"runs-{identity}",
                "label": f"{first['label']} {first['separation']}".rstrip(),
                "dataset": dataset_label(first["dataset"]),
                "protocol": str(first["protocol"]) or "the published protocol",
                "config": neutral_config(read_text(Path(first["directory"]) / "config.yaml")),
                "command": made[0]["command"],
                "seeds": table(header, seeds, words=(0, 1, 3, 4, 5)),
                "made": made,
            }
        )
    return entries


def _seed(results: Results, row: Row, started: str | None) -> list[str | Cell]:
    """Return what became of one run."""
    accuracies = "diverged"
    if row["status"] == "done":
        accuracies = f"test {row['test_accuracy']:.2f} %, train {row['train_accuracy']:.2f} %"
        if not pd.isna(row["validation_accuracy"]):
            accuracies += f", validation {row['validation_accuracy']:.2f} %"
    networks = row["networks"]
    together = "" if pd.isna(networks) or networks == 1 else f" for {networks:.0f} networks together"
    directory = Path(row["directory"]).relative_to(results.root).as_posix()
    return [
        str(row["seed"]),
        accuracies,
        f"{row['steps']:.0f}",
        f"{row['elapsed_s']:.0f} s{together}",
        provenance_table.minute(started),
        Cell(["config.yaml"], link=f"../{directory}/config.yaml"),
    ]
