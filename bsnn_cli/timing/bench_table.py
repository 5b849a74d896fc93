"""What `bsnn bench` has measured, as Markdown for a README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from bsnn_cli.common import provenance
from bsnn_cli.common.table import DASH, Table, document, table, to_markdown
from bsnn_cli.settings.choices import ACTIVATION_LABELS, FORMS, split_label

LABELS = {
    "bsnn": "bsnn",
    "plain": "plain PyTorch",
    "plain_fused": "plain, fused SGD",
    "plain_dataloader": "plain, DataLoader",
    "plain_compiled": "plain, torch.compile",
    "lightning": "Lightning",
    "torch_matrix_exp": "parametrizations.orthogonal, matrix exponential",
    "torch_cayley": "parametrizations.orthogonal, Cayley",
    "torch_householder": "parametrizations.orthogonal, Householder",
    "products": "its matrix products by the library",
    "arithmetic": "its arithmetic alone",
    "traffic": "its bytes alone",
    "floor": "its matrix products alone",
    "floor_bytes": "its bytes alone",
}
"""Implementations as a reader sees them; the last two are names of earlier versions."""

WEIGHTS = {"unit_rows": "unit rows", "orthogonal": "orthogonal weights", "free": "free weights"}

RATIOS = {
    "ratio_to_plain": "× plain",
    "ratio_to_best": "× best",
    "ratio_to_products": "/ products",
    "ratio_to_limit": "/ limit",
    "ratio_to_floor": "/ floor",
}
"""Columns of ratios as a reader sees them; the last one is of earlier versions."""

VARIED = {"depth": "depth (layers)", "width": "width (units)", "networks": "networks at once"}
"""Comparisons that show how cost grows, by the name of their column, as a reader sees it."""

LEGEND = (
    "Steps are medians in milliseconds, with quartiles. “× plain”, “× best”: how many times as many network-steps a "
    "second as plain PyTorch, and as the fastest of the PyTorch variants; “/ products”: time over that of the matrix "
    "products by PyTorch's library; “/ limit”: time over the limit of the machine, which is the larger one of the "
    "arithmetic and the bytes of a step; all within the same rounds. Memory is beyond program and data; hours are for "
    "the {updates:.1f} million updates of the paper's table, without evaluation."
)


def describe(timed: pd.DataFrame, dataset: str, device: torch.device) -> str:
    """Return Markdown: circumstances, a table for each comparison, how cost grows.

    Args:
        timed: `bench.csv`.
        dataset: name of the data.
        device: that was timed.
    """
    of_gpu = device.type == "cuda"
    about = provenance.collect(device)
    threads = "" if of_gpu else f", {about['threads']} thread{'s' * (about['threads'] > 1)}"
    first = timed.iloc[0]
    updates = first["table_hours"] * 3600 * first["network_steps_per_s"] / 1e6
    what = f"{first['precision']}, {dataset}, batches of {first['batch_size']}"
    parts = [
        f"{about['device']}{threads}, PyTorch {about['torch']}, {what}; commit {provenance.commit(about)}.",
        LEGEND.format(updates=updates),
    ]
    for name, rows in timed.groupby("comparison", sort=False):
        if name in VARIED:
            parts += [f"**Milliseconds of a step against {VARIED[str(name)]}**", to_markdown(growth(str(name), rows))]
        else:
            parts += [f"**{heading(rows)}**", to_markdown(comparison(rows))]
    return document(*parts)


def heading(rows: pd.DataFrame) -> str:
    """Return the networks of a comparison in words."""
    first = rows.iloc[0]
    norm = "batch normalisation" if first["norm"] == "batch" else "no normalisation"
    weights = " and ".join(text for name, text in WEIGHTS.items() if name in set(rows["weights"]))
    return f"{first['depth']} layers of {first['width']} units, {activation(first)}, {norm}, {weights}"


def activation(row: pd.Series) -> str:
    """Return the activation of a row, such as SELU-GPN."""
    base, form = split_label(row["activation"])
    return ACTIVATION_LABELS[base] + FORMS[form]


def comparison(rows: pd.DataFrame) -> Table:
    """Return implementations beside each other."""
    ratios = {key: words for key, words in RATIOS.items() if key in rows and not rows[key].isna().all()}
    return table(
        ("", "networks", "step", "network-steps/s", *ratios.values(), "memory, MB", "hours"),
        [
            (
                label(row),
                str(row["networks"]),
                f"{significant(row['step_ms'])} ({significant(row['step_ms_low'])}–{significant(row['step_ms_high'])})",
                significant(row["network_steps_per_s"]),
                *(significant(row[key]) for key in ratios),
                DASH if pd.isna(row["peak_memory_mb"]) else f"{max(row['peak_memory_mb'], 0):.0f}",
                significant(row["table_hours"]),
            )
            for row in rows.to_dict("records")
        ],
    )


def label(row: Mapping[Any, Any] | pd.Series) -> str:
    """Return an implementation as a reader sees it; those of orthogonal weights that do not say so are named."""
    text = LABELS[str(row["implementation"])]
    exact = row["weights"] == "orthogonal" and not str(row["implementation"]).startswith("torch_")
    return f"{text}, orthogonal" if exact else text


def growth(name: str, rows: pd.DataFrame) -> Table:
    """Return how the time of a step grows with one size, and the fitted exponents."""
    values = sorted(set(rows[name]))
    lines = []
    for implementation, group in rows.groupby("implementation", sort=False):
        times = group.set_index(name)["step_ms"]
        cells = [significant(times.get(value)) for value in values]
        lines.append((LABELS[str(implementation)], *cells, f"{exponent(times):.2f}"))
    return table((VARIED[name], *map(str, values), "exponent"), lines)


def exponent(step_ms: pd.Series) -> float:
    """Return the exponent p of the power law time ~ size^p through times by size, by least squares of logarithms."""
    return float(np.polyfit(np.log(step_ms.index.to_numpy(float)), np.log(step_ms.to_numpy(float)), 1)[0])


def significant(value: float | None) -> str:
    """Return three digits, without an exponent; a dash where there is no number."""
    if value is None or pd.isna(value):
        return DASH
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}" if value else "0"
