"""From summaries to tables: text, Markdown, LaTeX and CSV files. Computes nothing.

The layout is that of the paper: activations × (datasets × Non-GPN and GPN), batch normalisation in parentheses, the
better of each pair bold; one block per protocol, the paper's first. See `entry` for the notation of a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import write_texts
from bsnn_cli.common.text_table import markdown_table
from bsnn_cli.results import pivot, statistics
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import ModelConfig, OptimConfig

PAPER_DATASETS = ("mnist", "cifar10")
CSV_COLUMNS = ["split", "mean", "std", "n", "interval", "diverged", "numerics"]
LEGEND = (
    "Accuracy in percent at the end of training; in parentheses with batch normalisation; the best of Non-GPN, "
    "GPN and, where there is one, GPN-d (depth-aware, with the 1 − c it is tailored to) is bold. Several seeds: mean "
    "± sample standard deviation [n = number of runs averaged, half-width of the 95 % interval of the mean by "
    "Student's t, runs that diverged]; otherwise n = 1. No finished run: –."
)

Record = dict[Any, Any]
"""One row of a summary: mean, std, n, diverged, better and the keys it belongs to."""


@dataclass(frozen=True)
class Style:
    """How a markup writes what is not plain text."""

    bold: str
    plus_minus: str
    percent: str
    dash: str


MARKDOWN = Style("**{}**", "±", "%", "–")
LATEX = Style(r"\textbf{{{}}}", r"$\pm$", r"\%", "--")


@dataclass(frozen=True)
class Block:
    """One table, before any markup.

    Attributes:
        corner: heading of the column of row labels.
        groups: (heading, headings under it) of neighbouring columns; an empty heading spans nothing.
        cells: [row][column] the numbers (without, with) batch normalisation; None where no run has finished.
        parentheses: whether the numbers with batch normalisation are shown.
        warning: what a reader must know before comparing numbers.
    """

    title: str
    corner: str
    groups: list[tuple[str, list[str]]]
    rows: list[str]
    cells: list[list[tuple[Record | None, Record | None]]]
    parentheses: bool
    warning: str | None

    @property
    def empty(self) -> bool:
        """Whether there is no number in it."""
        return all(number is None for row in self.cells for pair in row for number in pair)


@dataclass(frozen=True)
class Tables:
    """What was written.

    Attributes:
        text: the tables for a terminal, and the names of the files.
        warnings: also part of the text and of the Markdown files.
    """

    text: str
    files: list[Path]
    warnings: list[str]


def write_tables(runs: pd.DataFrame, directory: Path, rows: str | None = None, columns: str | None = None) -> Tables:
    """The paper's layout, or a pivot table if a key is given; the other key is then `activation` unless given too.

    Args:
        runs: one row per run directory, as `runs.load_all` reads them.
        directory: where the files go; made if needed.
        rows: key of the rows, as `pivot.along` takes it.
        columns: key of the columns.

    Raises:
        ConfigError: for an unknown key, or if there is no finished run.
        RunDirectoryError: if runs contradict each other.
    """
    if rows is None and columns is None:
        return write_accuracy_tables(runs, directory)
    return write_pivot_tables(
        runs, directory, "activation" if rows is None else rows, "activation" if columns is None else columns
    )


def write_accuracy_tables(runs: pd.DataFrame, directory: Path) -> Tables:
    """Write `{test,train}_accuracy.{csv,md,tex}`, `comparison.{csv,md}` and `paired.{csv,md}`."""
    counted = statistics.finished(runs)
    cells = statistics.over_seeds(counted)
    comparison, paired = statistics.compare(cells), statistics.paired(counted)
    by_protocol = statistics.blocks(cells)
    blocks = {
        split: [_accuracy_block(protocol, block, split) for protocol, block in by_protocol.items()]
        for split in statistics.SPLITS
    }
    files = {
        "comparison.csv": _csv(comparison),
        "comparison.md": _comparison(comparison),
        "paired.csv": _csv(paired[["protocol", "dataset", "activation", "separation", "batch_norm", *CSV_COLUMNS]]),
        "paired.md": _paired(paired),
    }
    shown = files["paired.md"] if (paired["n"] > 1).any() else ""
    return _write(runs, directory, "{}_accuracy", blocks, cells[[*statistics.CELL, *CSV_COLUMNS]], files, shown)


def write_pivot_tables(runs: pd.DataFrame, directory: Path, rows: str, columns: str) -> Tables:
    """Write `pivot_<rows>_by_<columns>_{test,train}.{csv,md,tex}`; keys as `pivot.along` takes them."""
    cells = pivot.along(statistics.finished(runs), rows, columns)
    by_title = {title: cells[cells["block"] == title] for title in cells["block"].unique()}
    blocks = {
        split: [_pivot_block(title, block, split, rows, columns) for title, block in by_title.items()]
        for split in statistics.SPLITS
    }
    keys = ["block", "row", "column", "dataset", "activation", "gpn", "batch_norm"]
    return _write(runs, directory, f"pivot_{rows}_by_{columns}_{{}}", blocks, cells[[*keys, *CSV_COLUMNS]], {})


def _write(
    runs: pd.DataFrame,
    directory: Path,
    stem: str,
    blocks: dict[str, list[Block]],
    cells: pd.DataFrame,
    files: dict[str, str],
    also: str = "",
) -> Tables:
    """Write a document for each split, and `files`; in the terminal both splits are shown, and then `also`."""
    contents, shown = {}, []
    for split, of_split in blocks.items():
        name, heading = stem.format(split), f"{split.capitalize()} accuracy (%)"
        tables = [table for table in of_split if not table.empty]
        shown.append(markdown_document(heading, tables))
        contents[f"{name}.csv"] = _csv(cells[cells["split"] == split])
        contents[f"{name}.md"] = markdown_document(heading, tables, f"{LEGEND} Every digit: {name}.csv.")
        contents[f"{name}.tex"] = latex_document(heading, tables)
    contents |= files
    written = write_texts(directory, contents)
    unfinished = statistics.unfinished(runs)
    notes = [LEGEND, *([f"Not in the tables: {unfinished}; see `bsnn runs`."] if unfinished else [])]
    names = [f"Written to {directory}: {', '.join(contents)}"] if written else []
    warnings = dict.fromkeys(table.warning for of_split in blocks.values() for table in of_split)
    return Tables(
        "\n".join([*shown, *notes, *([f"\n{also}"] if also else []), *names]),
        written,
        [warning for warning in warnings if warning is not None],
    )


def _csv(table: pd.DataFrame) -> str:
    """Every digit; the paper's protocol by name, since an empty field would read as missing."""
    named = table.assign(protocol=table["protocol"].replace("", "paper")) if "protocol" in table else table
    return named.to_csv(index=False)


def _accuracy_block(protocol: str, cells: pd.DataFrame, split: str) -> Block:
    shown = cells[cells["split"] == split]
    datasets = sorted({*cells["dataset"], *(PAPER_DATASETS if protocol == "" else ())}, key=statistics.axis_order)
    activations = sorted(
        {*cells["activation"], *(PAPER_ACTIVATIONS if protocol == "" else ())}, key=statistics.axis_order
    )
    forms = statistics.forms(cells)
    found = _by_key(shown, ["activation", "dataset", "gpn", "separation", "batch_norm"])
    return Block(
        title=_paper_title() if protocol == "" else statistics.title(protocol),
        corner="Activation",
        groups=[(DATASETS[name].label if name in DATASETS else name, [*forms]) for name in datasets],
        rows=[ACTIVATION_LABELS.get(name, name) for name in activations],
        cells=[
            [
                (found.get((activation, dataset, *form, False)), found.get((activation, dataset, *form, True)))
                for dataset in datasets
                for form in forms.values()
            ]
            for activation in activations
        ],
        parentheses=protocol == "" or bool(cells["batch_norm"].any()),
        warning=statistics.mixed_numerics(shown),
    )


def _paper_title() -> str:
    model, optim = ModelConfig(), OptimConfig()
    epochs = ", ".join(f"{DATASETS[name].epochs} epochs on {DATASETS[name].label}" for name in PAPER_DATASETS)
    return (
        f"Paper's protocol: {model.depth} layers, {model.width} units, SGD with learning rate {optim.lr}, "
        f"momentum {optim.momentum}, batches of {optim.batch_size}, {epochs}"
    )


def _pivot_block(title: str, cells: pd.DataFrame, split: str, rows: str, columns: str) -> Block:
    shown = cells[cells["split"] == split]
    row_values = sorted(set(cells["row"]), key=statistics.axis_order)
    column_values = sorted(set(cells["column"]), key=statistics.axis_order)
    found = _by_key(shown, ["row", "column", "in_parentheses"])
    return Block(
        title=f"{title}, otherwise the paper's protocol" if title else "Paper's protocol",
        corner=f"{rows} / {columns}",
        groups=[("", [_value(value) for value in column_values])],
        rows=[_value(value) for value in row_values],
        cells=[
            [(found.get((row, column, False)), found.get((row, column, True))) for column in column_values]
            for row in row_values
        ],
        parentheses=bool(cells["in_parentheses"].any()),
        warning=statistics.mixed_numerics(shown),
    )


def _by_key(cells: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[Any, ...], Record]:
    return {tuple(record[key] for key in keys): record for record in cells.to_dict("records")}


def _value(value: Any) -> str:
    """A value of the configuration as a command line writes it."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return str(value).lower()
    return str(int(value)) if float(value).is_integer() else str(float(value))


def entry(number: Record | None, style: Style) -> str:
    """One number: `96.97`, `95.54 ± 0.32 [n=3, 95 %: ±0.79]`, `[n=2, …, 1 diverged]`, `diverged`, `3 diverged`, `–`."""
    if number is None:
        return style.dash
    lost = f"{number['diverged']} diverged"
    if number["n"] == 0:
        return "diverged" if number["diverged"] == 1 else lost
    text = f"{number['mean']:.2f}"
    if number["n"] > 1:
        text += f" {style.plus_minus} {number['std']:.2f}"
    if number.get("better", False):
        text = style.bold.format(text)
    notes = [f"n={number['n']}"]
    if number["n"] > 1:
        notes.append(f"95 {style.percent}: {style.plus_minus}{number['interval']:.2f}")
    if number["diverged"] > 0:
        notes.append(lost)
    return f"{text} [{', '.join(notes)}]" if number["n"] > 1 or number["diverged"] > 0 else text


def _texts(block: Block, style: Style) -> list[list[str]]:
    """All cells of a block, the batch-normalised number in parentheses behind the plain one."""
    return [
        [
            f"{entry(plain, style)} ({entry(normed, style)})" if block.parentheses else entry(plain, style)
            for plain, normed in row
        ]
        for row in block.cells
    ]


def markdown_document(heading: str, blocks: Sequence[Block], legend: str = "") -> str:
    """All blocks under one heading."""
    parts = [f"# {heading}\n"]
    for block in blocks:
        header = [block.corner, *(f"{group} {name}".strip() for group, names in block.groups for name in names)]
        rows = [[label, *texts] for label, texts in zip(block.rows, _texts(block, MARKDOWN), strict=True)]
        parts += [f"## {block.title}\n", markdown_table(header, rows) + "\n"]
        parts += [f"Warning: {block.warning}.\n"] if block.warning is not None else []
    return "\n".join([*parts, *([f"{legend}\n"] if legend else [])])


def latex_escape(text: str) -> str:
    """Plain text as LaTeX shows it."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "–": "--", "−": "$-$"}
    return "".join(special.get(character, character) for character in text)


def latex_document(heading: str, blocks: Sequence[Block]) -> str:
    """One `table` environment per block, to be included in a document that loads booktabs."""
    return "\n".join(["% Needs \\usepackage{booktabs} in the preamble.", *(_latex_table(heading, b) for b in blocks)])


def _latex_table(heading: str, block: Block) -> str:
    spans, rules, column = [], [], 2
    for group, names in block.groups:
        last = column + len(names) - 1
        spans.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{latex_escape(group)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{last}}}")
        column = last + 1
    grouped = any(group for group, _ in block.groups)
    names = [block.corner, *(name for _, under in block.groups for name in under)]
    body = [
        " & ".join([latex_escape(label), *texts]) + r" \\"
        for label, texts in zip(block.rows, _texts(block, LATEX), strict=True)
    ]
    lines = [
        *([f"% Warning: {block.warning}."] if block.warning is not None else []),
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_escape(f'{heading}. {block.title}. {LEGEND}')}}}",
        rf"  \begin{{tabular}}{{l{'c' * (column - 2)}}}",
        r"    \toprule",
        *([f"    & {' & '.join(spans)} \\\\", f"    {' '.join(rules)}"] if grouped else []),
        f"    {' & '.join(map(latex_escape, names))} \\\\",
        r"    \midrule",
        *(f"    {line}" for line in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _comparison(table: pd.DataFrame) -> str:
    """Ours / published / difference, one table per split, a row per activation with and without batch norm."""
    records = table.to_dict("records")
    found = {tuple(r[key] for key in ("split", "activation", "batch_norm", "dataset", "gpn")): r for r in records}
    columns = [(dataset, gpn) for dataset in PAPER_DATASETS for gpn in (False, True)]
    header = ["Activation", *(f"{DATASETS[dataset].label} {'GPN' if gpn else 'Non-GPN'}" for dataset, gpn in columns)]
    parts = [f"# Ours and the paper's accuracies (%)\n\n{_paper_title()}.\nEach cell: ours / published / difference.\n"]
    for split in statistics.SPLITS:
        rows = [
            [
                ACTIVATION_LABELS[activation] + (" + batch norm" if batch_norm else ""),
                *(_beside(found[split, activation, batch_norm, dataset, gpn]) for dataset, gpn in columns),
            ]
            for activation in PAPER_ACTIVATIONS
            for batch_norm in (False, True)
        ]
        parts += [f"## {split.capitalize()} accuracy\n", markdown_table(header, rows) + "\n"]
    return "\n".join(parts)


def _beside(record: Record) -> str:
    present = record["n"] + record["diverged"] > 0
    measured = {"mean": record["ours"], "std": record["ours_std"], "interval": record["ours_interval"]}
    ours = entry(record | measured if present else None, MARKDOWN)
    return f"{ours} / {record['published']:.2f} / {_signed(record['difference'])}"


def _signed(value: float) -> str:
    """With its sign, and a real minus; a dash for NaN."""
    return MARKDOWN.dash if pd.isna(value) else f"{value:+.2f}".replace("-", "−")


def _paired(table: pd.DataFrame) -> str:
    """GPN minus non-GPN, a row per comparison."""
    header = ["Protocol", "Dataset", "Activation", "Split", "Difference", "95 % interval", "Std", "Pairs", "Diverged"]
    rows = [
        [
            record["protocol"] or "the paper's",
            DATASETS[record["dataset"]].label if record["dataset"] in DATASETS else record["dataset"],
            ACTIVATION_LABELS.get(record["activation"], record["activation"])
            + (f", GPN-d {record['separation']}" if record["separation"] else "")
            + (" + batch norm" if record["batch_norm"] else ""),
            record["split"],
            _signed(record["mean"]),
            MARKDOWN.dash if record["n"] < 2 else f"± {record['interval']:.2f}",
            MARKDOWN.dash if record["n"] < 2 else f"{record['std']:.2f}",
            str(record["n"]),
            str(record["diverged"]),
        ]
        for record in table.to_dict("records")
    ]
    explanation = (
        "Accuracy difference in percentage points over the seeds that both have; the same seed gives both the same "
        "initial matrices and batches.\nInterval: Student's t over the pairs. Diverged: pairs left out because a run "
        "diverged.\n"
    )
    body = markdown_table(header, rows) + "\n" if rows else "No seed has both yet.\n"
    parts = ["# GPN minus Non-GPN, paired by seed\n", explanation, body]
    warning = statistics.mixed_numerics(table)
    return "\n".join([*parts, *([f"Warning: {warning}.\n"] if warning is not None else [])])
