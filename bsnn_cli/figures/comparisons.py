"""Figures of our own results: exact orthogonality against unit rows, upper against lower root b."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bsnn_cli.figures.style import (
    DOUBLE,
    GREY,
    Missing,
    Picture,
    canvas,
    colour,
    elsewhere,
    key,
    legend_above,
    log_axis,
    note,
)
from bsnn_cli.results import comparison_tables
from bsnn_cli.results.formats import Row, label, records, setting
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS
from bsnn_cli.settings.config import FiguresConfig


@dataclass(frozen=True)
class Panel:
    """One number of every row as a dot.

    Attributes:
        value: column, or the columns (low, high) of a range.
        spread: column of its standard deviation, or None.
        heading: above the panel.
        log: whether the axis is logarithmic.
        mark: where a dotted line stands; None for none.
        words: column of what is said above a dot, or in its place; None for none.
    """

    value: str | tuple[str, str]
    spread: str | None
    heading: str
    log: bool = False
    mark: float | None = None
    words: str | None = None


ACCURACY = Panel("test", "test_std", "test accuracy (%)", words="lost")


def constraint(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """Accuracy, error and signals of exactly orthogonal weights and of unit rows."""
    table = Results(config.output_root).constraint
    if table.empty:
        yield Missing(
            "constraint", "trainings with both weights are", comparison_tables.CONSTRAINT_COMMAND + elsewhere(config)
        )
        return
    rows = records(with_lost(table))
    panels = [
        ACCURACY,
        Panel("orthogonality_error", None, "largest $|W^TW - I|$", log=True),
        Panel("one_minus_cosine_last", None, "$1 - \\cos$ after training", log=True),
    ]
    words = [f"{label(row)}, {'WᵀW = I' if row['weights'] == 'orthogonal' else 'unit rows'}" for row in rows]
    filled = [row["weights"] == "orthogonal" for row in rows]
    keys = ("WᵀW = I", "unit rows")
    settings = "; ".join(dict.fromkeys(setting(row) for row in rows))
    caption = (
        "Exact orthogonality (filled) against rows of unit length (open): test accuracy, mean ± sample standard "
        "deviation over the seeds; largest entry of |WᵀW − I| at the end of any epoch, for orthogonal weights also "
        "before every retraction; mean 1 − cosine of two inputs behind the last hidden layer after training. "
        f"{settings}; n = {counts(rows)}."
    )
    yield dots("constraint", rows, words, filled, panels, keys, f"{settings}; n = {counts(rows)}", caption)


def roots(config: FiguresConfig) -> Iterator[Picture | Missing]:
    """χ, measured length and accuracy with each of the two roots b."""
    stored = Results(config.output_root)
    signals, accuracies = stored.root_signals, stored.roots
    if not accuracies.empty:  # the signals are those of φ as it is
        accuracies = accuracies[accuracies["separation"] == ""]
    if signals.empty:
        yield Missing(
            "roots", "signals with both roots are", comparison_tables.ROOT_SIGNALS_COMMAND + elsewhere(config)
        )
        return
    if accuracies.empty:
        yield Missing("roots", "trainings with both roots are", comparison_tables.ROOTS_COMMAND + elsewhere(config))
    else:
        first = with_lost(accuracies[common_setting(accuracies)])
        columns = ["activation", "root", "test", "test_std", "lost"]
        signals = signals.merge(first[columns], on=["activation", "root"], how="left").fillna({"lost": ""})
    rows = records(signals)
    panels = [
        Panel("chi", None, "slope χ", mark=1.0),
        Panel(("forward_norm_last_low", "forward_norm_last_high"), None, "$\\|x^{L+1}\\|^2/n$", log=True, mark=1.0),
        Panel(("one_minus_cosine_last_low", "one_minus_cosine_last_high"), None, "$1 - \\cos$ of inputs", log=True),
        *([ACCURACY] if "test" in signals else []),
    ]
    words = [f"{ACTIVATION_LABELS[row['activation']]}-GPN, {row['root']}" for row in rows]
    size = f"L = {rows[0]['depth']}, n = {rows[0]['width']}, {rows[0]['inputs']} inputs, repeats: {rows[0]['n']}"
    trained = ""
    if "test" in signals:
        trained = (
            "; test accuracy, mean ± sample standard deviation. "
            f"Accuracy: {setting(records(first)[0])}; n = {counts(records(first))}"
        )
    caption = (
        "Upper and lower root b of normalisation; filled: the one of the paper's rule (activation.root=auto). Slope χ "
        "of the variance map, above 1 (dotted) it drives lengths away; squared length per unit behind the last layer, "
        f"and 1 − cosine of two inputs, least to largest of the repeats, at the start of training ({size}){trained}."
    )
    filled = [bool(row["published"]) for row in rows]
    yield dots("roots", rows, words, filled, panels, ("root of the paper's rule", "the other root"), size, caption)


def common_setting(accuracies: pd.DataFrame) -> Any:
    """The rows of the setting that most of the activations share."""
    keys = accuracies["setting"].astype(str) + accuracies["dataset"] + accuracies["batch_norm"].astype(str)
    return keys == keys.mode().iloc[0]


def counts(rows: Sequence[Row]) -> str:
    """`3 seeds`, or `1 to 3 seeds`, and what becomes of those that diverged."""
    found = sorted({row["n"] + row["diverged"] for row in rows})
    text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    lost = " (those that diverged are in no mean)" if any(row["diverged"] for row in rows) else ""
    return f"{text} seed{'' if text == '1' else 's'}{lost}"


def with_lost(table: pd.DataFrame) -> pd.DataFrame:
    """With the column `lost`: `diverged`, or `1 of 3 diverged`; empty where every seed arrived."""
    words = [f"{row['diverged']} of {row['n'] + row['diverged']} diverged" for row in records(table)]
    lost = pd.Series(words, index=table.index).where(table["n"] > 0, "diverged")
    return table.assign(lost=lost.where(table["diverged"] > 0, ""))


def dots(
    name: str,
    rows: Sequence[Row],
    words: Sequence[str],
    filled: Sequence[bool],
    panels: Sequence[Panel],
    keys: tuple[str, str],
    small: str,
    caption: str,
) -> Picture:
    """A row of words and dots for each record, a column of axes for each panel."""
    figure, axes = canvas(DOUBLE, 1.2 + 0.22 * len(rows), 1, len(panels), sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        draw(ax, panel, rows, filled)
    axes[0].set_yticks(range(len(rows)), list(words))
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5}
    legend_above(figure, [key(keys[0], **dot), key(keys[1], markerfacecolor="white", **dot)], 2)
    note(figure, small)
    return Picture(name, figure, caption)


def draw(ax: Axes, panel: Panel, rows: Sequence[Row], filled: Sequence[bool]) -> None:
    """One panel."""
    low_key, high_key = (panel.value, panel.value) if isinstance(panel.value, str) else panel.value
    shown = [float(row[name]) for row in rows for name in (low_key, high_key)]
    shown = [value for value in shown if math.isfinite(value) and (value > 0 or not panel.log)]
    if panel.log and shown:
        bounds = [*shown, *([panel.mark] if panel.mark is not None else [])]
        least, most = math.floor(math.log10(min(bounds))), math.ceil(math.log10(max(bounds)))
        log_axis(ax, "x", 10.0 ** (least - 0.2), 10.0 ** (max(most, least + 1) + 0.2), ticks=4)
    if panel.mark is not None:
        ax.axvline(panel.mark, color=GREY, linewidth=0.8, linestyle=":")
    above = []
    for place, row in enumerate(rows):
        low, high = float(row[low_key]), float(row[high_key])
        own, words = colour(row["activation"]), row[panel.words] if panel.words else ""
        if not math.isfinite(low) or not math.isfinite(high):
            words = words or ("∞" if math.isinf(low) or math.isinf(high) else "not stored")
            ax.text(0.5, place, words, ha="center", va="center", fontsize=7, color=GREY,
                    bbox={"color": "white", "pad": 1}, transform=ax.get_yaxis_transform())  # fmt: skip
            continue
        ax.plot([low, high], [place, place], color=own, linewidth=1.2)
        middle = math.sqrt(low * high) if panel.log and low > 0 else (low + high) / 2
        spread = None if panel.spread is None or math.isnan(row[panel.spread]) else row[panel.spread]
        face = own if filled[place] else "white"
        ax.errorbar(middle, place, xerr=spread, fmt="o", markersize=4.5, elinewidth=0.9, color=own,
                    markerfacecolor=face)  # fmt: skip
        if words:
            above.append((middle, place, words))
    ax.set_title(panel.heading, pad=7)
    ax.margins(x=0.15)
    ax.autoscale_view()  # not later: the words look where they are
    for middle, place, words in above:
        share = (ax.transScale + ax.transLimits).transform((middle, place))[0]  # of the panel; words stay inside
        ax.annotate(words, (middle, place), (0, 3), textcoords="offset points", va="bottom", fontsize=7, color=GREY,
                    ha="left" if share < 0.3 else "right" if share > 0.7 else "center")  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", visible=False)
