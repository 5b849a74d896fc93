"""The two results of our own as tables: exact orthogonality against unit rows, upper against lower root b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import write_texts
from bsnn_cli.common.text_table import markdown_table
from bsnn_cli.errors import ConfigError
from bsnn_cli.results.tables import MARKDOWN, entry
from bsnn_cli.settings.choices import ACTIVATION_LABELS, DATASETS

Row = Mapping[Any, Any]

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
mean ± sample standard deviation over the seeds [n, 95 % interval of the mean]. Error: largest |WᵀW − I| at the end of
any epoch, of orthogonal weights also before each retraction. Step: of one network, both in turns, as `bsnn bench` has
timed it. After training, on standard Gaussian inputs: ‖x‖²/n behind the last hidden layer, largest over smallest
‖∂E/∂Wˡ‖, mean 1 − cosine of two inputs; means over the networks measured."""

ROOTS_LEGEND = """\
Both solutions b of E[f²] = E[f'²] = 1; * is the one of the paper's rule (activation.root=auto). χ: slope of the
variance map at its fixed point 1; above 1 it drives lengths away. Predicted: where ‖x‖²/n behind the last hidden layer
must lie, by the theory of fluctuations around 1. Measured: least and largest over the repeats [n], standard Gaussian
inputs, start of training."""


def write_constraint(table: pd.DataFrame, directory: Path) -> str:
    """Write `constraint.csv` and `constraint.md`; returns the text for the terminal.

    Args:
        table: of `findings.constraint`.
        directory: for the files.

    Raises:
        ConfigError: no runs to compare.
    """
    if table.empty:
        raise ConfigError(f"nothing to compare yet; run `{CONSTRAINT_COMMAND}`")
    header = ["network", "weights", "test", "train", "error", "step", "‖x‖²/n", "gradients", "1 − cos"]
    text = markdown_table(header, [[network(row), row["weights"], *constraint_cells(row)] for row in records(table)])
    return _write(directory, "constraint", "Exact orthogonality against unit rows", text, CONSTRAINT_LEGEND, table)


def constraint_cells(row: Row) -> list[str]:
    """Numbers of a row of `findings.constraint`, behind network and weights."""
    return [
        accuracy(row, "test"),
        accuracy(row, "train"),
        number(row["orthogonality_error"]),
        number(row["step_ms"]) + ("" if math.isnan(row["step_ms"]) else " ms"),
        number(row["forward_norm_last"]),
        number(row["gradient_norm_ratio"]),
        number(row["one_minus_cosine_last"]),
    ]


def write_roots(accuracies: pd.DataFrame, signals: pd.DataFrame, directory: Path) -> str:
    """Write `roots.csv`, `root_signals.csv` and `roots.md`; returns the text for the terminal.

    Args:
        accuracies: of `findings.roots`.
        signals: of `findings.root_signals`.
        directory: for the files.

    Raises:
        ConfigError: neither runs nor measurements to compare.
    """
    if accuracies.empty and signals.empty:
        raise ConfigError(f"nothing to compare yet; run `{ROOT_SIGNALS_COMMAND}` and `{ROOTS_COMMAND}`")
    parts = []
    if not signals.empty:
        header = ["activation", "b", "χ", "‖x‖²/n predicted", "‖x‖²/n measured", "gradients", "1 − cos"]
        parts.append(markdown_table(header, [root_cells(row) for row in records(signals)]))
    if not accuracies.empty:
        rows = [[network(row), row["root"], accuracy(row, "test"), accuracy(row, "train")] for row in
                records(accuracies)]  # fmt: skip
        parts.append(markdown_table(["network", "b", "test", "train"], rows))
    also = {"root_signals.csv": signals.drop(columns="directory", errors="ignore").to_csv(index=False)}
    text, legend = "\n\n".join(parts), roots_legend(accuracies)
    return _write(directory, "roots", "Upper against lower root b", text, legend, accuracies, also)


def roots_legend(accuracies: pd.DataFrame) -> str:
    """What stands below the table: of accuracies only where there are some."""
    trained = "\nAccuracy in percent: mean ± sample standard deviation over the seeds [n, 95 % interval of the mean]."
    return ROOTS_LEGEND + ("" if accuracies.empty else trained)


def root_cells(row: Row) -> list[str]:
    """A row of `findings.root_signals`."""
    return [
        ACTIVATION_LABELS[row["activation"]],
        row["root"] + ("*" if row["published"] else ""),
        number(row["chi"]),
        span(row, "predicted"),
        f"{span(row, 'forward_norm_last')} [n={row['n']}]",
        span(row, "gradient_norm_ratio"),
        span(row, "one_minus_cosine_last"),
    ]


def network(row: Row) -> str:
    """Activation, dataset and what sets the protocol apart."""
    return f"{label(row)}, {setting(row)}"


def label(row: Row) -> str:
    """Such as `SELU-GPN`."""
    name = str(ACTIVATION_LABELS.get(row["activation"], row["activation"]))
    return (
        name
        + ("-GPN" if row["gpn"] else "")
        + (f"-d {row['separation']}" if row["separation"] else "")
        + (" + batch norm" if row["batch_norm"] else "")
    )


def setting(row: Row) -> str:
    """Dataset and what sets the protocol apart."""
    dataset = DATASETS[row["dataset"]].label if row["dataset"] in DATASETS else str(row["dataset"])
    return f"{dataset}, {row['setting']}" if row["setting"] else dataset


def accuracy(row: Row, split: str) -> str:
    """As the accuracy tables write it."""
    values = {"mean": row[split], "std": row[f"{split}_std"], "interval": row[f"{split}_interval"]}
    values |= {"n": row["n"], "diverged": row["diverged"]}
    text = entry(values, MARKDOWN)
    return text if row["n"] > 1 or row["diverged"] else f"{text} [n={row['n']}]"


def number(value: float) -> str:
    """Three digits, such as `0.0231`, `1130` or `5.7e16`; a dash where there is none."""
    if math.isnan(value):
        return MARKDOWN.dash
    if math.isinf(value):
        return "∞"
    rounded = float(f"{value:.3g}")
    text = f"{rounded:g}" if rounded == 0 or 1e-4 <= abs(rounded) < 1e5 else f"{rounded:.3g}"
    return text.replace("e+", "e").replace("e0", "e").replace("e-0", "e-").replace("-", "−")


def span(row: Row, name: str) -> str:
    """`low – high` of a quantity."""
    low, high = number(row[f"{name}_low"]), number(row[f"{name}_high"])
    return low if low == high else f"{low} … {high}"


def records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of a table."""
    return list(table.to_dict("records"))


def _write(
    directory: Path,
    name: str,
    title: str,
    text: str,
    legend: str,
    table: pd.DataFrame,
    also: Mapping[str, str] | None = None,
) -> str:
    contents = {f"{name}.csv": table.to_csv(index=False), f"{name}.md": f"# {title}\n\n{text}\n\n{legend}\n"}
    written = write_texts(directory, {**(also or {}), **contents})
    return "\n\n".join([text, legend, *(f"  {path}" for path in written[-1:])])
