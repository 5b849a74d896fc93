"""The paper's summary of approaches, with what has been measured of each beside its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common.files import write_texts
from bsnn_cli.common.table import DASH, document, table, to_markdown

DEPTH, WIDTH = 200, 500
"""Size of the networks that are compared: the paper's headline size."""


COLUMNS = ("weights", "activations", "preactivations", "forward signal", "backward signal", "functionality")
APPROACHES = {
    "bsnn": ("orthogonal", "GPN", "", "V + E² ≈ 1", "V + E² ≈ 1", "nonlinear"),
    "dynamical_isometry": ("orthogonal", "most", "linear region", "", "", "pseudo-linear"),
    "self_normalizing": ("variance scaling", "SELU", "", "E ≈ 0, V ≈ 1", "unconstrained", ""),
    "batch_norm": ("unconstrained", "", "E ≈ 0, V ≈ 1", "", "unconstrained", ""),
} | dict.fromkeys(
    ("glorot", "lsuv", "layer_norm", "group_norm", "weight_norm", "spectral_norm", "residual"), ("",) * len(COLUMNS)
)
"""All approaches: first the rows of the paper's table (Lu, Gould and Ajanthan 2020, arXiv 2006.12169), in its words and
empty where it says nothing, then those that it only names."""

COMMAND = "bsnn propagate -m 'approach=glob(*)'"
"""The command that measures all of them."""

LEGEND = f"""\
Words are the paper's, – where it has none. In brackets: measured at L = {DEPTH}, n = {WIDTH}, with standard Gaussian
inputs and top gradient. Preactivations: mean E and variance V of h^L over inputs and units. Forward: ‖x‖²/n after the
last hidden layer. Backward: ‖d^1‖²/n at the first, and the ratio max/min of ‖∂E/∂W^l‖. Functionality: mean ± standard
deviation of f'(h^L), squared correlation r² of h^L_i with f(h^L_i), mean 1 − c between the outputs of two inputs."""


def write_approaches(summaries: Sequence[Mapping[str, Any]], directory: Path | None) -> str:
    """Write `approaches.md` and `approaches.csv`; returns the text for the terminal.

    Args:
        summaries: of all measurements, as `propagation_store.load_all` gives them.
        directory: for the two files; None to write none.
    """
    chosen = {name: _measured(name, summaries) for name in APPROACHES}
    rows = [row for name, measured in chosen.items() for row in _rows(name, measured)]
    shown = to_markdown(table(["approach", "n", *COLUMNS], rows))
    missing = [name for name, measured in chosen.items() if not measured]
    note = f"\n\nnot measured yet: {', '.join(missing)}; all at once: {COMMAND}" if missing else ""
    numbers = [
        {"approach": name, "activation": summary["activation"], **_numbers(summary)}
        for name, measured in chosen.items()
        for summary in measured
    ]
    text = document("# Approaches", shown, LEGEND, f"`{COMMAND}`")
    contents = {"approaches.csv": pd.DataFrame(numbers).to_csv(index=False), "approaches.md": text}
    written = [] if directory is None else write_texts(directory, contents)
    return "\n\n".join([shown, LEGEND + note, *(f"  {path}" for path in written[-1:])])


def _measured(name: str, summaries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the fresh network of the headline size with the most repeats, for each activation."""
    wanted = {"approach": name, "depth": DEPTH, "width": WIDTH, "source": "gaussian", "trained": None}
    best: dict[str, Mapping[str, Any]] = {}
    for summary in summaries:
        activation = summary["activation"]
        if all(summary[key] == value for key, value in wanted.items()):
            best[activation] = max(best.get(activation, summary), summary, key=lambda row: row["repeats"])
    return [best[activation] for activation in sorted(best)]


def _rows(name: str, measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    said = [text or DASH for text in APPROACHES[name]]
    rows = [] if measured else [[name, "0", *said]]
    for summary in measured:
        number = {key: DASH if value is None else f"{value:.3g}" for key, value in _numbers(summary).items()}
        values = [
            summary["config"]["model"]["init"],
            summary["label"],
            f"E {number['preactivation_mean']}, V {number['preactivation_variance']}",
            number["forward_norm_last"],
            f"{number['backward_norm_first']}, {number['gradient_norm_ratio']}×",
            ", ".join(
                [
                    f"f' {number['derivative_mean']} ± {number['derivative_std']}",
                    f"r² {number['pseudo_linearity']}",
                    f"1−c {number['one_minus_cosine_last']}",
                ]
            ),
        ]
        cells = [f"{words} [{value}]" for words, value in zip(said, values, strict=True)]
        rows.append([name, str(summary["repeats"]), *cells])
    return rows


def _numbers(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if value is None or isinstance(value, (int, float))}
