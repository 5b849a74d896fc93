"""Numbers over seeds laid out in one table: what varies between runs in columns, what they have in common said once.

Three layouts: the paper's, activations × (datasets × forms of GPN), a pivot along any two keys, and several quantities
side by side along one key. Settings that set runs apart beyond that stand in columns before the labels of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bsnn_cli.common.table import DASH, Cell, Column, Table
from bsnn_cli.results import pivot, statistics
from bsnn_cli.results.formats import Row, dataset_label, entry, records, value_text
from bsnn_cli.results.metrics import Metric, Quantity
from bsnn_cli.results.tuned import Tuned
from bsnn_cli.settings.choices import ACTIVATION_LABELS
from bsnn_cli.settings.identity import Protocol

COMMON = (
    "dataset",
    "model.depth",
    "model.width",
    "optim.lr",
    "optim.momentum",
    "optim.batch_size",
    "optim.epochs",
)
"""Settings that are said even where they are the paper's."""


Varying = Mapping[str, Mapping[Protocol, str]]
"""The values of each setting that varies, by what sets a number apart."""

Place = tuple[Protocol, Any]
"""A row of a table: what sets its numbers apart, and the value of its label."""


@dataclass(frozen=True)
class Layout:
    """The place of each number in a table.

    Attributes:
        cells: as `statistics.over_seeds` returns them, with `better`, `rest` (a `Protocol`: what sets it apart that
            neither row nor column says), `row`, `column`, `in_parentheses`, and `borrowed` (stands under a protocol
            that is not its own).
        corner: heading of the labels of the rows.
        rows: labels by value, in order.
        columns: headings by value, in order.
        keys: columns of `cells` that identify a number in a CSV file, besides the settings.
        said: keys that rows and columns say; of a row that follows no approach, its settings are in `rest` though.
        compared: among what the better number is sought, in words.
    """

    cells: pd.DataFrame
    corner: str
    rows: Mapping[Any, str]
    columns: Mapping[Any, Column]
    keys: Mapping[str, str]
    said: set[str]
    compared: str


def paper(runs: pd.DataFrame, values: Mapping[str, pd.Series], metric: Metric) -> Layout:
    """Return the paper's layout: activations × (datasets × non-GPN, GPN and depth-aware GPN).

    Args:
        runs: as `statistics.finished` returns them.
        values: for each split a number of each run, as `metrics.values` returns them.
        metric: what the numbers are.
    """
    cells = statistics.over_seeds(runs, values=values)
    parts = []
    for protocol in cells["protocol"].unique():
        numbers = statistics.under(protocol, cells).reset_index(drop=True)
        numbers = statistics.with_better(numbers, statistics.PAIR, metric.score(numbers["mean"]))
        parts.append(numbers.assign(rest=[protocol] * len(numbers), borrowed=numbers["protocol"] != protocol))
    placed = pd.concat(parts, ignore_index=True)
    placed["row"], placed["in_parentheses"] = placed["activation"], placed["batch_norm"]
    placed["column"] = list(zip(placed["dataset"], placed["gpn"], placed["separation"], strict=True))
    datasets = sorted(set(placed["dataset"]), key=statistics.axis_order)
    there = set(placed["column"])
    columns = {
        (dataset, *form): Column(heading, group=dataset_label(dataset) if len(datasets) > 1 else "")
        for dataset in datasets
        for heading, form in statistics.forms(placed).items()
        if (dataset, *form) in there
    }
    names = sorted(set(placed["activation"]), key=statistics.axis_order)
    rows = {name: ACTIVATION_LABELS.get(name, name) for name in names}
    said = {"activation.name", "activation.gpn", statistics.SEPARATION, *(["dataset"] if len(datasets) > 1 else [])}
    keys = {key: key for key in ("dataset", "activation", "gpn", "separation", "batch_norm")}
    compared = "Non-GPN, GPN and GPN-d" if (placed["separation"] != "").any() else "Non-GPN and GPN"
    return Layout(placed, "Activation", rows, columns, keys, said, compared)


def along(
    runs: pd.DataFrame,
    values: Mapping[str, pd.Series],
    metric: Metric,
    rows: str,
    columns: str,
    tuned: Sequence[str] = (),
) -> Layout:
    """Return the layout along two keys, as `pivot.along` takes them; the other arguments are those of `paper`.

    Raises:
        ConfigError: an unknown key, or the same key twice.
    """
    cells = pivot.along(runs, rows, columns, values, metric.score, tuned).assign(borrowed=False)
    labels = {axis: sorted(set(cells[axis]), key=statistics.axis_order) for axis in ("row", "column")}
    headings = {value: Column(value_text(value)) for value in labels["column"]}
    names = {value: value_text(value) for value in labels["row"]}
    keys = {rows: "row", columns: "column", **({"batch_norm": "batch_norm"} if cells["in_parentheses"].any() else {})}
    axes = {pivot.axis_key("rows", rows), pivot.axis_key("columns", columns)}
    said = {key for axis in axes for key in (axis, *pivot.AXES.get(axis, []))}
    compared = "the approaches" if "approach" in axes else "Non-GPN and GPN"
    return Layout(cells, f"{rows} / {columns}", names, headings, keys, said, compared)


def side_by_side(
    runs: pd.DataFrame,
    values: Mapping[str, pd.Series],
    quantities: Mapping[str, Quantity],
    rows: str,
    tuned: Sequence[str] = (),
) -> Layout:
    """Return the layout of several quantities along one key; `column` and `split` of a cell name its quantity.

    Args:
        runs: as `statistics.with_norm` returns them.
        values: a number of each run for each quantity, by its name.
        quantities: by their names.
        rows: the key, as `pivot.along` takes it.
        tuned: keys that set nothing apart.

    Raises:
        ConfigError: an unknown key.
    """

    def score(cells: pd.DataFrame) -> pd.Series:
        scores = cells["mean"].copy()
        for name, means in cells.groupby("split")["mean"]:
            scores[means.index] = quantities[str(name)].metric.score(means)
        return scores

    cells = pivot.listed(runs, rows, values, score, tuned)
    cells = cells.assign(borrowed=False, in_parentheses=False, column=cells["split"])
    labels = sorted(set(cells["row"]), key=statistics.axis_order)
    axis = pivot.axis_key("rows", rows)
    return Layout(
        cells,
        rows,
        {value: value_text(value) for value in labels},
        {name: Column(quantity.heading) for name, quantity in quantities.items()},
        {rows: "row"},
        {axis, *pivot.AXES.get(axis, [])},
        "the approaches" if axis == "approach" else "Non-GPN and GPN",
    )


def settings(layout: Layout, runs: pd.DataFrame) -> tuple[Varying, dict[str, str]]:
    """Return the settings that vary and those that all runs have in common.

    Args:
        layout: of numbers of these runs.
        runs: as `statistics.finished` returns them.

    Returns:
        For each key that varies, its value for each `rest`; for each other one, the value. Where a dataset decides, as
        over epochs, there may be several, such as `50,100`.
    """
    rests = sorted(set(layout.cells["rest"]), key=lambda rest: (len(rest.settings), statistics.axis_order(rest)))
    stated = dict.fromkeys(key for rest in rests for key in rest.settings)
    varying: dict[str, dict[Protocol, str]] = {}
    common: dict[str, str] = {}
    for key in dict.fromkeys([*(key for key in COMMON if key not in layout.said), *stated]):
        values = {rest: rest.settings.get(key) for rest in rests}
        if len({str(value) for value in values.values()}) == 1:
            text = _values(runs, key) if key not in stated else value_text(values[rests[0]])
            idle = key == "optim.momentum" and _values(runs, "optim.kind") == "adamw"
            if text != "null" and not idle:  # null: as the depth of a user's own networks
                common[key] = text
            continue
        lacking = [key not in protocol.settings for protocol in runs["protocol"]]
        usual = DASH if key in layout.said else _values(runs[lacking], key)
        varying[key] = {rest: usual if value is None else value_text(value) for rest, value in values.items()}
    return varying, common


def _values(runs: pd.DataFrame, key: str) -> str:
    """Return the values of a key that runs have, as a command line writes them."""
    present = runs.get(key, pd.Series(dtype=object)).astype(object)
    values = set(present.where(present.notna(), "null"))
    return ",".join(value_text(value) for value in sorted(values, key=statistics.axis_order))


def tabulate(
    layout: Layout,
    varying: Varying,
    quantities: Mapping[str, Quantity],
    title: str,
    beside: Mapping[str, Mapping[Place, str]] | None = None,
) -> Table:
    """Return the table of some quantities, with the batch-normalised number in parentheses behind the plain one.

    Args:
        layout: of all numbers.
        varying: as `settings` returns it; a column for each key.
        quantities: that are shown, by the `split` of their cells.
        title: of the table.
        beside: columns behind the labels, by their headings.
    """
    shown = layout.cells[layout.cells["split"].isin([*quantities])]
    counted = {name: runs_each(cells, len(quantities) > 1) is None for name, cells in shown.groupby("split")}

    def write(row: Row | None) -> tuple[str, ...]:
        return entry(row, quantities[row["split"]].metric.notation, counted[row["split"]]) if row else entry(None)

    made = _grid(layout, varying, shown, write, beside or {})
    return replace(made, title=title, warning=statistics.mixed_numerics(shown))


def choices(layout: Layout, varying: Varying, tuned: Tuned, key: str) -> Table:
    """Return the table of the chosen values of a key, each in the place of its number."""
    texts = tuned.texts(key)
    made = _grid(layout, varying, layout.cells, lambda row: (DASH if row is None else texts[row["identity"]],), {})
    return replace(made, title=tuned.note(key))


def trained_by_row(layout: Layout, tuned: Tuned, key: str) -> dict[Place, str]:
    """Return in each row how many of the values of a key train the network, such as `5 of 7`."""
    choices = tuned.of(key)
    texts = {
        identity: f"{row['trained']} of {row['tried']}"
        for identity, row in zip(choices.index, records(choices), strict=True)
    }
    return {(row["rest"], row["row"]): texts[row["identity"]] for row in records(layout.cells)}


def chosen_by_row(layout: Layout, tuned: Tuned, key: str) -> dict[Place, str] | None:
    """Return the chosen value of a key in each row of the table; None where the numbers of a row differ in it."""
    texts, values = tuned.texts(key), dict[Place, str]()
    for row in records(layout.cells):
        if values.setdefault((row["rest"], row["row"]), texts[row["identity"]]) != texts[row["identity"]]:
            return None
    return values


def _grid(
    layout: Layout,
    varying: Varying,
    shown: pd.DataFrame,
    write: Callable[[Row | None], tuple[str, ...]],
    beside: Mapping[str, Mapping[Place, str]],
) -> Table:
    """Return the table of some cells of a layout, each written as a function says."""
    numbers = {(row["rest"], row["row"], row["column"], bool(row["in_parentheses"])): row for row in records(shown)}
    parentheses = bool(shown["in_parentheses"].any())
    columns = {value: column for value, column in layout.columns.items() if value in set(shown["column"])}

    def cell(rest: Protocol, row: Any, column: Any) -> Cell:
        plain, normed = (write(numbers.get((rest, row, column, norm))) for norm in (False, True))
        return Cell([*plain, " (", *normed, ")"] if parentheses else plain)

    places = sorted(
        {(row["rest"], row["row"]) for row in records(shown)}, key=lambda place: order(layout, varying, *place)
    )
    return Table(
        [
            *(Column(key, words=_are_words(texts.values())) for key, texts in varying.items()),
            Column(layout.corner, words=True),
            *(Column(key, words=_are_words(_unmarked(texts.values()))) for key, texts in beside.items()),
            *columns.values(),
        ],
        [
            [
                *(texts[rest] for texts in varying.values()),
                layout.rows[row],
                *(texts[rest, row] for texts in beside.values()),
                *(cell(rest, row, key) for key in columns),
            ]
            for rest, row in places
        ],
    )


def runs_each(cells: pd.DataFrame, side_by_side: bool = False) -> int | None:
    """Return how many runs each number of a table is an average of; None if that varies or some runs are in no mean.

    Args:
        cells: the numbers.
        side_by_side: count the runs that are in no mean as well. Of several quantities, the same runs may all be in the
            means of one and not in those of another, and words such as `1 never` say so.
    """
    lost = cells["diverged"] + cells["unreached"]
    if side_by_side:
        counts = set(cells["n"] + lost)
        return counts.pop() if len(counts) == 1 else None
    if (cells["n"] + lost == 1).all():  # a run that is in no mean is then a word in the table
        return 1
    counts = set(cells["n"])
    return counts.pop() if len(counts) == 1 and not lost.any() else None


def order(layout: Layout, varying: Varying, rest: Protocol, row: Any) -> tuple[Any, ...]:
    """Return a sort key of a row of the table: by the settings that vary, from left to right, then by its label."""
    values = [statistics.axis_order(_number(texts[rest])) for texts in varying.values()]
    return (values, [*layout.rows].index(row))


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _unmarked(texts: Iterable[str]) -> list[str]:
    """Return chosen values without what stands behind them."""
    return [text.partition(" ")[0] for text in texts if text != DASH]


def _are_words(texts: Iterable[str]) -> bool:
    return any(isinstance(_number(text), str) for text in texts)


def tidy(
    layout: Layout, varying: Varying, quantities: Mapping[str, Quantity], tuned: Tuned | None = None
) -> pd.DataFrame:
    """Return every digit: a row for each number, with a column for each setting that varies.

    Of each tuned key there are the chosen value, `KEY_tried`, `KEY_trained` and `KEY_edge`, and of all of them the mean
    `validation_accuracy` that has chosen, as `Tuned` describes them.
    """
    cells = layout.cells[~layout.cells["borrowed"]]
    cells = cells[cells["split"].isin([*quantities])].reset_index(drop=True)
    names = [*quantities]
    ranks = [(names.index(row["split"]), order(layout, varying, row["rest"], row["row"])) for row in records(cells)]
    columns: dict[str, pd.Series] = {key: cells["rest"].map(texts) for key, texts in varying.items()}
    columns |= {name: cells[column] for name, column in layout.keys.items()}
    if tuned is not None:
        columns |= _chosen(cells["identity"], tuned)
    columns |= {"metric": cells["split"].map(lambda name: quantities[name].metric.name)}
    columns |= {"split": cells["split"].map(lambda name: quantities[name].split)}
    columns |= {name: cells[name] for name in ("mean", "std", "n", "interval", "diverged", "unreached")}
    columns |= {"numerics": cells["numerics"].map(lambda versions: " ".join(map(str, versions)))}
    return pd.DataFrame(columns).loc[sorted(cells.index, key=ranks.__getitem__)]


def _chosen(identities: pd.Series, tuned: Tuned) -> dict[str, pd.Series]:
    """Return the columns of a CSV file that say what has been chosen."""
    columns = dict[str, pd.Series]()
    for key in tuned.keys:
        choices = tuned.of(key)
        names = {key: "value", f"{key}_tried": "tried", f"{key}_trained": "trained", f"{key}_edge": "edge"}
        columns |= {heading: identities.map(choices[name]) for heading, name in names.items()}
    return columns | {"validation_accuracy": identities.map(choices["validation_accuracy"])}
