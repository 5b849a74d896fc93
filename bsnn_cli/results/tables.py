"""From statistics to tables of accuracies: text, Markdown, LaTeX and CSV files. Computes nothing.

The layout is that of the paper: activations × (datasets × Non-GPN and GPN), batch normalisation in parentheses, the
better of each pair bold; one table per protocol, the paper's first. See `formats.entry` for the notation of a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import write_texts
from bsnn_cli.common.table import DASH, Cell, Column, Table, document, table, to_latex
from bsnn_cli.results import pivot, statistics
from bsnn_cli.results.formats import Row, dataset_label, entry, records, signed, value_text
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import ModelConfig, OptimConfig

PAPER_DATASETS = ("mnist", "cifar10")
CSV_COLUMNS = ["split", "mean", "std", "n", "interval", "diverged", "numerics"]
LATEX_NEEDS = "% Needs \\usepackage{booktabs} in the preamble."
LEGEND = (
    "Accuracy in percent at the end of training; in parentheses with batch normalisation. Bold: the highest mean of "
    "Non-GPN, GPN and, where there is one, GPN-d (depth-aware, with the 1 − c it is tailored to), unless more of its "
    "runs diverged; not a test of significance. Several seeds: mean ± sample standard deviation [n = number of runs "
    "averaged, half-width of the 95 % interval of the mean by Student's t from n = 3 on, runs that diverged]; "
    "otherwise n = 1. No finished run: –."
)
PAIRED = (
    "Accuracy difference in percentage points over the seeds that both have; the same seed gives both the same "
    "initial matrices and batches.\nInterval: Student's t over the pairs, from three on. Diverged: pairs left out "
    "because a run diverged."
)


def write_tables(
    runs: pd.DataFrame, directory: Path, rows: str | None = None, columns: str | None = None
) -> list[Path]:
    """Write the paper's layout, or a pivot table if a key is given; the other key is then `activation` unless given.

    The paper's layout is `{test,train}_accuracy.{csv,md,tex}`, `comparison.{csv,md}` and `paired.{csv,md}`; a pivot
    table is `pivot_<rows>_by_<columns>_{test,train}.{csv,md,tex}`. Returns the files; none, with a warning, where the
    folder cannot be written.

    Args:
        runs: one row per run directory, as `loading.load_all` reads them.
        directory: where the files go; made if needed.
        rows: key of the rows, as `pivot.along` takes it.
        columns: key of the columns.

    Raises:
        ConfigError: for an unknown key, or if there is no finished run.
        RunDirectoryError: if runs contradict each other.
    """
    counted = statistics.finished(runs)
    if rows is None and columns is None:
        return write_texts(directory, paper_layout(counted))
    rows, columns = "activation" if rows is None else rows, "activation" if columns is None else columns
    cells = pivot.along(counted, rows, columns)
    tables = {split: pivot_tables(cells, split, rows, columns) for split in statistics.SPLITS}
    keys = ["block", "row", "column", "dataset", "activation", "gpn", "batch_norm"]
    return write_texts(directory, _contents(f"pivot_{rows}_by_{columns}_{{}}", tables, _csv(cells, keys)))


def paper_layout(runs: pd.DataFrame) -> dict[str, str]:
    """Return the content of each file of the paper's layout, by its name.

    Args:
        runs: as `statistics.finished` returns them.

    Raises:
        RunDirectoryError: if runs contradict each other.
    """
    cells, pairs = statistics.over_seeds(runs), statistics.paired(runs)
    tables = {split: accuracy_tables(cells, split) for split in statistics.SPLITS}
    accuracies = _contents("{}_accuracy", tables, _csv(cells, statistics.CELL))
    return accuracies | _comparison(statistics.compare(cells)) | _paired(pairs)


def accuracy_tables(cells: pd.DataFrame, split: str) -> list[Table]:
    """Return a table for each protocol that has runs: activations × (datasets × forms of GPN)."""
    keys = ["activation", "dataset", "gpn", "separation", "batch_norm"]
    tables = []
    for block in statistics.blocks(cells):
        if block.cells.empty:
            continue
        paper = block.name == "paper"
        names = {key: sorted({*block.cells[key], *(known if paper else ())}, key=statistics.axis_order)
                 for key, known in (("dataset", PAPER_DATASETS), ("activation", PAPER_ACTIVATIONS))}  # fmt: skip
        columns = {
            Column(heading, group=dataset_label(dataset)): (dataset, *form)
            for dataset in names["dataset"]
            for heading, form in statistics.forms(block.cells).items()
        }
        rows = {ACTIVATION_LABELS.get(name, name): name for name in names["activation"]}
        title = paper_title() if paper else block.title
        tables.append(_grid(block.cells, split, keys, "Activation", rows, columns, title, paper))
    return tables


def paper_title() -> str:
    """Return the paper's protocol in words."""
    model, optim = ModelConfig(), OptimConfig()
    epochs = ", ".join(f"{DATASETS[name].epochs} epochs on {DATASETS[name].label}" for name in PAPER_DATASETS)
    return (
        f"Paper's protocol: {model.depth} layers, {model.width} units, SGD with learning rate {optim.lr}, "
        f"momentum {optim.momentum}, batches of {optim.batch_size}, {epochs}"
    )


def pivot_tables(cells: pd.DataFrame, split: str, rows: str, columns: str) -> list[Table]:
    """Return a table for each set of settings that the runs have in common, of cells as `pivot.along` returns them."""
    tables = []
    for title in cells["block"].unique():
        block = cells[cells["block"] == title]
        values = {key: {value_text(value): value for value in sorted(set(block[key]), key=statistics.axis_order)}
                  for key in ("row", "column")}  # fmt: skip
        headings = {Column(text): (value,) for text, value in values["column"].items()}
        title = f"{title}, otherwise the paper's protocol" if title else "Paper's protocol"
        keys = ["row", "column", "in_parentheses"]
        tables.append(_grid(block, split, keys, f"{rows} / {columns}", values["row"], headings, title))
    return tables


def _grid(
    cells: pd.DataFrame,
    split: str,
    keys: list[str],
    corner: str,
    rows: Mapping[str, Any],
    columns: Mapping[Column, tuple[Any, ...]],
    title: str,
    parentheses: bool = False,
) -> Table:
    """Return the accuracies of a split with the batch-normalised number in parentheses behind the plain one.

    Args:
        cells: statistics with `better`.
        split: `test` or `train`.
        keys: columns of `cells` that say where a number stands: of its row, of its column, whether in parentheses.
        corner: heading of the labels.
        rows: values of the first key by label.
        columns: values of the next keys by heading.
        title: of the table.
        parentheses: whether they are shown where no number stands in them.
    """
    shown = cells[cells["split"] == split]
    numbers = {tuple(record[key] for key in keys): record for record in records(shown)}
    parentheses = parentheses or bool(cells[keys[-1]].any())

    def cell(row: Any, column: tuple[Any, ...]) -> Cell:
        plain, normed = (entry(numbers.get((row, *column, norm))) for norm in (False, True))
        return Cell([*plain, " (", *normed, ")"] if parentheses else plain)

    return Table(
        [Column(corner, words=True), *columns],
        [[text, *(cell(row, column) for column in columns.values())] for text, row in rows.items()],
        title,
        statistics.mixed_numerics(shown),
    )


def _contents(stem: str, tables: Mapping[str, Sequence[Table]], cells: pd.DataFrame) -> dict[str, str]:
    """Return the content of the files of each split, by their names."""
    contents = {}
    for split, parts in tables.items():
        name, heading = stem.format(split), f"{split.capitalize()} accuracy (%)"
        contents[f"{name}.csv"] = cells[cells["split"] == split].to_csv(index=False)
        contents[f"{name}.md"] = document(f"# {heading}", *parts, f"{LEGEND} Every digit: {name}.csv.")
        latex = [to_latex(part, f"{heading}. {part.title}. {LEGEND}") for part in parts]
        contents[f"{name}.tex"] = "\n".join([LATEX_NEEDS, *latex])
    return contents


def _csv(cells: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return every digit for a CSV file; the paper's protocol by name, as an empty field would read as missing."""
    texts = {"numerics": cells["numerics"].map(lambda versions: " ".join(map(str, versions)))}
    if "protocol" in keys:
        texts["protocol"] = cells["protocol"].map(lambda protocol: str(protocol) or "paper")
    return cells.assign(**texts)[[*keys, *CSV_COLUMNS]]


def _comparison(beside: pd.DataFrame) -> dict[str, str]:
    """Return the files with ours / published / difference, a row per activation with and without batch norm."""
    keys = ["split", "activation", "batch_norm", "dataset", "gpn"]
    numbers = {tuple(row[key] for key in keys): row for row in records(beside)}

    def cell(row: Row) -> Cell:
        measured = {"mean": row["ours"], "std": row["ours_std"], "interval": row["ours_interval"]}
        ours = entry({**row, **measured} if row["n"] + row["diverged"] else None)
        return Cell([*ours, f" / {row['published']:.2f} / {signed(row['difference'])}"])

    columns = {
        Column("GPN" if gpn else "Non-GPN", group=dataset_label(dataset)): (dataset, gpn)
        for dataset in PAPER_DATASETS
        for gpn in (False, True)
    }
    tables = [
        Table(
            [Column("Activation", words=True), *columns],
            [
                [
                    ACTIVATION_LABELS[name] + (" + batch norm" if norm else ""),
                    *(cell(numbers[(split, name, norm, *column)]) for column in columns.values()),
                ]
                for name in PAPER_ACTIVATIONS
                for norm in (False, True)
            ],
            f"{split.capitalize()} accuracy",
        )
        for split in statistics.SPLITS
    ]
    intro = f"{paper_title()}.\nEach cell: ours / published / difference."
    return {
        "comparison.csv": beside.to_csv(index=False),
        "comparison.md": document("# Ours and the paper's accuracies (%)", intro, *tables),
    }


def _paired(pairs: pd.DataFrame) -> dict[str, str]:
    """Return the files with GPN minus non-GPN, a row per comparison."""
    shown = paired_table(pairs) if len(pairs) else "No seed has both yet."
    keys = ["protocol", "dataset", "activation", "separation", "batch_norm"]
    return {
        "paired.csv": _csv(pairs, keys).to_csv(index=False),
        "paired.md": document("# GPN minus Non-GPN, paired by seed", PAIRED, shown),
    }


def paired_table(pairs: pd.DataFrame, settings: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Return GPN minus non-GPN, a row per comparison.

    Args:
        pairs: as `statistics.paired` returns them.
        settings: columns that say what sets the rows apart; None for the protocol in words and the dataset.
    """
    if settings is None:
        protocols = [str(protocol) or "the paper's" for protocol in pairs["protocol"]]
        settings = {"Protocol": protocols, "Dataset": [dataset_label(name) for name in pairs["dataset"]]}
    header = ["Activation", "Split", "Difference", "95 % interval", "Std", "Pairs", "Diverged"]
    rows = [
        [
            *values,
            ACTIVATION_LABELS.get(row["activation"], row["activation"])
            + (f", GPN-d {row['separation']}" if row["separation"] else "")
            + (" + batch norm" if row["batch_norm"] else ""),
            row["split"],
            signed(row["mean"]),
            DASH if math.isnan(row["interval"]) else f"± {row['interval']:.2f}",
            DASH if row["n"] < 2 else f"{row['std']:.2f}",
            str(row["n"]),
            str(row["diverged"]),
        ]
        for row, *values in zip(records(pairs), *settings.values(), strict=True)
    ]
    return replace(table([*settings, *header], rows), warning=statistics.mixed_numerics(pairs))
