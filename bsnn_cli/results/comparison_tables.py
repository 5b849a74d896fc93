"""Tables of the two comparisons of our own: exact orthogonality with unit rows, upper with lower root b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bsnn_cli.common.files import write_texts
from bsnn_cli.common.table import Cell, Table, document, table, to_markdown
from bsnn_cli.errors import ConfigError
from bsnn_cli.results.formats import Row, entry, label, number, records, setting, span
from bsnn_cli.settings.choices import ACTIVATION_LABELS

CONSTRAINT_COMMAND = (
    "bsnn train -m dataset=mnist activation=selu_gpn,tanh_gpn model.weights=unit_rows,orthogonal optim.epochs=1 "
    "seed=0,1,2"
)
ROOTS_COMMAND = (
    "bsnn train -m dataset=mnist activation=relu_gpn,lrelu_gpn,gelu_gpn,silu_gpn activation.root=upper,lower "
    "optim.epochs=1 seed=0,1,2"
)
ROOT_SIGNALS_COMMAND = (
    "bsnn propagate -m activation=relu_gpn,lrelu_gpn,gelu_gpn,silu_gpn activation.root=upper,lower propagate.repeats=3"
)

CONSTRAINT_LEGEND = """\
Unit rows: each row of W has length 1, as the paper trains. Orthogonal: WᵀW = I is kept exactly. Accuracy in percent:
mean ± sample standard deviation over the seeds [n, 95 % interval of the mean from n = 3 on]. Error: largest |WᵀW − I|
at the end of any epoch, of orthogonal weights also before each retraction. Step: of one network, both in turns, as
`bsnn bench` has timed it. After training, on standard Gaussian inputs: ‖x‖²/n behind the last hidden layer, largest
over smallest ‖∂E/∂Wˡ‖, mean 1 − cosine of two inputs; means over the networks measured."""

ROOTS_LEGEND = """\
Both solutions b of E[f²] = E[f'²] = 1; * is the one of the paper's rule (activation.root=auto). χ: slope of the
variance map at its fixed point 1; above 1 it drives lengths away. Predicted: where ‖x‖²/n behind the last hidden layer
must lie, by the theory of fluctuations around 1. Measured: least and largest over the repeats [n], standard Gaussian
inputs, start of training."""


def write_constraint(compared: pd.DataFrame, directory: Path | None) -> str:
    """Write `constraint.csv` and `constraint.md`; returns the text for the terminal.

    Args:
        compared: as `comparisons.constraint` returns it.
        directory: for the files; None to write none.

    Raises:
        ConfigError: no runs to compare.
    """
    if compared.empty:
        raise ConfigError(f"nothing to compare yet; run `{CONSTRAINT_COMMAND}`")
    parts = [to_markdown(constraint_table(compared)), CONSTRAINT_LEGEND]
    return _write(directory, "constraint", "Exact orthogonality against unit rows", parts, compared)


def constraint_table(compared: pd.DataFrame) -> Table:
    """Return a row for each network and kind of weights."""
    header = ["network", "weights", "test", "train", "error", "step", "‖x‖²/n", "gradients", "1 − cos"]
    rows = [
        [
            *_trained(row, "weights"),
            number(row["orthogonality_error"]),
            number(row["step_ms"]) + ("" if math.isnan(row["step_ms"]) else " ms"),
            *(number(row[key]) for key in ("forward_norm_last", "gradient_norm_ratio", "one_minus_cosine_last")),
        ]
        for row in records(compared)
    ]
    return table(header, rows)


def write_roots(compared: pd.DataFrame, signals: pd.DataFrame, directory: Path | None) -> str:
    """Write `roots.csv`, `root_signals.csv` and `roots.md`; returns the text for the terminal.

    Args:
        compared: as `comparisons.roots` returns it.
        signals: as `comparisons.root_signals` returns it.
        directory: for the files; None to write none.

    Raises:
        ConfigError: neither runs nor measurements to compare.
    """
    if compared.empty and signals.empty:
        raise ConfigError(f"nothing to compare yet; run `{ROOT_SIGNALS_COMMAND}` and `{ROOTS_COMMAND}`")
    parts = [] if signals.empty else [to_markdown(root_signals_table(signals))]
    parts += [] if compared.empty else [to_markdown(roots_table(compared))]
    also = {"root_signals.csv": signals.drop(columns="directory", errors="ignore").to_csv(index=False)}
    title = "Upper against lower root b"
    return _write(directory, "roots", title, [*parts, roots_legend(not compared.empty)], compared, also)


def roots_legend(trained: bool) -> str:
    """Return what stands below the tables, of accuracies only where there are some."""
    accuracy = (
        "Accuracy in percent: mean ± sample standard deviation over the seeds [n, 95 % interval of the mean from n = 3 "
        "on]."
    )
    return f"{ROOTS_LEGEND}\n{accuracy}" if trained else ROOTS_LEGEND


def root_signals_table(signals: pd.DataFrame) -> Table:
    """Return what is predicted and measured, a row for each activation and root."""
    header = ["activation", "b", "χ", "‖x‖²/n predicted", "‖x‖²/n measured", "gradients", "1 − cos"]
    rows = [
        [
            ACTIVATION_LABELS[row["activation"]],
            row["root"] + ("*" if row["published"] else ""),
            number(row["chi"]),
            span(row, "predicted"),
            f"{span(row, 'forward_norm_last')} [n={row['n']}]",
            span(row, "gradient_norm_ratio"),
            span(row, "one_minus_cosine_last"),
        ]
        for row in records(signals)
    ]
    return table(header, rows)


def roots_table(compared: pd.DataFrame) -> Table:
    """Return the accuracies, a row for each network and root."""
    return table(["network", "b", "test", "train"], [_trained(row, "root") for row in records(compared)])


def _trained(row: Row, varied: str) -> list[str | Cell]:
    """Return network, varied value and accuracies, the first of which leads to the runs on the report's page."""
    test, train = (_accuracy(row, split) for split in ("test", "train"))
    return [f"{label(row)}, {setting(row)}", row[varied], Cell([test], f"#runs-{row['identity']}", "ours"), train]


def _accuracy(row: Row, split: str) -> str:
    text = "".join(entry({**row, "mean": row[split], "std": row[f"{split}_std"], "interval": row[f"{split}_interval"]}))
    return text if row["n"] > 1 or row["diverged"] else f"{text} [n={row['n']}]"


def _write(
    directory: Path | None,
    name: str,
    title: str,
    parts: list[str],
    compared: pd.DataFrame,
    also: Mapping[str, str] | None = None,
) -> str:
    csv = compared.drop(columns="identity", errors="ignore").to_csv(index=False)
    contents = {**(also or {}), f"{name}.csv": csv, f"{name}.md": document(f"# {title}", *parts)}
    written = [] if directory is None else write_texts(directory, contents)
    return "\n\n".join([*parts, *(f"  {path}" for path in written[-1:])])
