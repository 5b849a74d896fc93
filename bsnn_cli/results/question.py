"""`bsnn table`: what is asked of the stored runs, and the answer in the form that is asked for.

A question about the accuracies of all runs also writes the files of `tables.write_tables`. Any other is only answered,
so that the files always hold all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bsnn_cli.common.table import Table, to_latex, to_markdown, to_text
from bsnn_cli.errors import ConfigError
from bsnn_cli.results import layout, metrics, statistics, tables
from bsnn_cli.results.formats import dataset_label
from bsnn_cli.results.metrics import Quantity
from bsnn_cli.results.store import Results
from bsnn_cli.results.tuned import TRAINS, VALIDATION, Tuned, choose
from bsnn_cli.settings.config import TableConfig

PAIRED = "GPN minus Non-GPN of the same seed, in percentage points; 95 % interval of the mean by Student's t from n = 3"
EVERY_EPOCH = "it needs an accuracy after every epoch, as eval.train_every=1 gives it of the training split"


@dataclass(frozen=True)
class Answer:
    """The text that a command prints.

    Attributes:
        text: the tables in the form that was asked for, and nothing else unless that is `text`.
        remarks: lines about them: what is left out, what was written.
    """

    text: str
    remarks: list[str]

    def __str__(self) -> str:
        return "\n\n".join([self.text, *self.remarks])


def ask(results: Results, folder: Path | None, question: TableConfig) -> Answer:
    """Answer a question about the accuracy, the loss or the speed of runs.

    Args:
        results: the runs that are asked about.
        folder: for the files of the paper's layout or of a pivot table, which hold accuracies; None to write none.
        question: keys `rows`, `columns`, `tune`, `metric`, `split` and `format`; `where` has chosen among the runs
            already.

    Raises:
        ConfigError: an unknown metric or key, no finished run, or none with such a number.
        RunDirectoryError: runs contradict each other.
    """
    runs = statistics.finished(results.runs)
    tuned = choose(runs, question.tune) if question.tune else None
    runs = runs if tuned is None else tuned.runs
    quantities, several = _quantities(question), _several(question)
    if {quantity.split for quantity in quantities.values()} == {"validation"}:
        runs = runs[runs["dataset.validation"] > 0]
    runs = statistics.with_norm(runs) if several else runs
    asked = {name: metrics.values(entry.metric, entry.split, runs, results) for name, entry in quantities.items()}
    values = _with_numbers(asked, runs, question)
    quantities = {name: quantities[name] for name in values}
    placed = _layout(runs, values, quantities, question)
    varying, common = layout.settings(placed, runs)
    beside, notes = _chosen_by_row(placed, tuned)
    if tuned is not None and several:
        beside |= {f"{key} that train": layout.trained_by_row(placed, tuned, key) for key in tuned.keys}
        notes.append(f"that train: validation accuracy of at least {TRAINS:g} times chance")
    parts = [quantities] if several else [{name: quantity} for name, quantity in quantities.items()]
    shown = [
        layout.tabulate(placed, varying, part, "; ".join([_caption(placed, part), *notes]), beside) for part in parts
    ]
    if tuned is not None:
        shown += [layout.choices(placed, varying, tuned, key) for key in tuned.keys if key not in beside]
    constant = "All runs: " + " ".join(f"{key}={value}" for key, value in common.items())
    written = []
    if folder is not None and question.metric in (None, [metrics.ACCURACY.name]) and tuned is None:
        written = tables.write_tables(results.runs, folder, question.rows, question.columns)
    remarks = [f"Not in the tables: {rest}; see `bsnn runs`." if (rest := statistics.unfinished(results.runs)) else ""]
    if tuned is not None and tuned.left_out:
        count = f"{tuned.left_out} run" + ("s" if tuned.left_out > 1 else "")
        remarks.append(f"Left out: {count} without a validation accuracy to choose by; {VALIDATION}.")
    remarks += [f"Written to {folder}: {', '.join(path.name for path in written)}"] if written else []
    if question.format == "csv":
        text = layout.tidy(placed, varying, quantities, tuned).to_csv(index=False).rstrip("\n")
        remarks.insert(0, constant)
    elif question.format == "latex":
        text = "\n".join(
            [tables.LATEX_NEEDS, *(to_latex(part, f"{part.title}. {constant}.") for part in shown)]
        ).rstrip("\n")
    else:
        write = to_markdown if question.format == "markdown" else to_text
        answer = [constant, *("\n\n".join([part.title, write(part), *_warning(part)]) for part in shown)]
        accuracies = [quantity.split for quantity in quantities.values() if quantity.metric == metrics.ACCURACY]
        if accuracies and question.rows is None and question.columns is None and not several:
            answer += _paired(runs, accuracies, varying, write)
        text = "\n\n".join(answer)
    return Answer(text, [remark for remark in remarks if remark])


def _several(question: TableConfig) -> bool:
    """Return whether several metrics are asked for, which then are the columns of one table."""
    return question.metric is not None and len(question.metric) > 1


def _quantities(question: TableConfig) -> dict[str, Quantity]:
    """Return what is asked for by its name: of one metric the split, else the split and the metric.

    Raises:
        ConfigError: there is no such metric.
    """
    asked = [metrics.parse(metric, question.split) for metric in question.metric or [metrics.ACCURACY.name]]
    quantities = [Quantity(metric, split) for metric, splits in asked for split in splits]
    return {f"{entry.split} {entry.metric.name}" if _several(question) else entry.split: entry for entry in quantities}


def _with_numbers(
    numbers: Mapping[str, pd.Series], runs: pd.DataFrame, question: TableConfig
) -> Mapping[str, pd.Series]:
    """Return the quantities of which some run has a number; all of them where every run has diverged.

    Raises:
        ConfigError: there is none, and what to do.
    """
    present = {split: values for split, values in numbers.items() if values.notna().any()}
    if present or (len(runs) and (runs["status"] == "diverged").all()):
        return present or numbers
    asked = f"metric={','.join(question.metric or [metrics.ACCURACY.name])}"
    asked += f" split={question.split}" if question.split in numbers else ""
    how = f"; {VALIDATION}" if "validation" in numbers else f"; {EVERY_EPOCH}" if "epochs_to" in asked else ""
    raise ConfigError(f"{asked}: no run has such a number{how}")


def _layout(
    runs: pd.DataFrame,
    values: Mapping[str, pd.Series],
    quantities: Mapping[str, Quantity],
    question: TableConfig,
) -> layout.Layout:
    tuned, metric = question.tune or [], next(iter(quantities.values())).metric
    if _several(question):
        placed = layout.side_by_side(runs, values, quantities, question.rows or "activation", tuned)
    elif question.rows is None and question.columns is None:
        placed = layout.paper(runs, values, metric)
    else:
        rows, columns = question.rows or "activation", question.columns or "activation"
        placed = layout.along(runs, values, metric, rows, columns, tuned)
    return replace(placed, said=placed.said | set(tuned))


def _chosen_by_row(placed: layout.Layout, tuned: Tuned | None) -> tuple[dict[str, dict[layout.Place, str]], list[str]]:
    """Return the tuned keys that have one value in each row, with these values, and what captions say of all keys."""
    beside, notes = dict[str, dict[layout.Place, str]](), list[str]()
    if tuned is None:
        return beside, notes
    for key in tuned.keys:
        by_row = layout.chosen_by_row(placed, tuned, key)
        if by_row is not None:
            beside[key] = by_row
            notes.append(tuned.note(key))
    apart = [key for key in tuned.keys if key not in beside]
    if apart:
        table = "see its table" if len(apart) == 1 else "see their tables"
        notes.append(f"{' and '.join(apart)} chosen by validation accuracy ({table})")
    return beside, notes


def _caption(placed: layout.Layout, quantities: Mapping[str, Quantity]) -> str:
    """Return one line that says what the numbers of a table are, and explains only what stands in it."""
    cells = placed.cells[placed.cells["split"].isin([*quantities])]
    words = "a column for each metric" if len(quantities) > 1 else next(iter(quantities.values())).heading
    parts = [words[0].upper() + words[1:]]
    counts = {layout.runs_each(numbers, len(quantities) > 1) for _, numbers in cells.groupby("split")}
    if (cells["n"] > 1).any():
        n = counts - {None}
        notes = (["n"] if None in counts else []) + (["95 % interval"] if cells["interval"].notna().any() else [])
        seeds = f"{n.pop()} seeds" if len(n) == 1 else "seeds"
        parts.append(f"mean ± standard deviation over {seeds}" + (f" [{', '.join(notes)}]" if notes else ""))
    elif counts == {1} and cells["n"].any():
        parts.append("one run each")
    if cells["in_parentheses"].any():
        parts.append("in parentheses with batch norm")
    if cells["better"].any():
        fewest = ", if no more of its runs are lost" if (cells["diverged"] + cells["unreached"]).any() else ""
        best = {"lowest" if quantity.metric.lowest else "highest" for quantity in quantities.values()}
        parts.append(f"bold: {best.pop() if len(best) == 1 else 'best'} mean of {placed.compared}{fewest}")
    return "; ".join(parts)


def _warning(part: Table) -> list[str]:
    return [f"Warning: {part.warning}."] if part.warning else []


def _paired(
    runs: pd.DataFrame, splits: Sequence[str], varying: layout.Varying, write: Callable[[Table], str]
) -> list[str]:
    """Return GPN minus non-GPN over the seeds that both have, where there are several."""
    pairs = statistics.paired(runs)
    pairs = pairs[pairs["split"].isin(splits)]
    if not (pairs["n"] > 1).any():
        return []
    settings = {key: [texts[protocol] for protocol in pairs["protocol"]] for key, texts in varying.items()}
    if pairs["dataset"].nunique() > 1:
        settings["Dataset"] = list(map(dataset_label, pairs["dataset"]))
    return [PAIRED, write(tables.paired_table(pairs, settings))]
