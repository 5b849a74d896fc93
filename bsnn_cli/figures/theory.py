"""Figures of the theorems over width, and of lengths and angles over depth, from `theory.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bsnn_cli.figures.figure import DOUBLE, Axis, Figure, Missing, Panel, Series, label
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import AUTO_ROOT
from bsnn_cli.settings.config import FiguresConfig

DEPTH_AWARE = "_d"
"""Ends the name of a tailored activation in `theory.csv`."""

CASES = {
    "none": "assumptions hold",
    "haar": "$W = I$, spiky $x$",
    "shell": "$\\|x\\|^2/n = 2$",
    "gpn": "$\\varphi$ not normalised",
}
"""Columns of the figure of the theorems."""

LENGTHS = (1e-4, 1e4)
"""Shown."""

ANGLES = (1e-4, 2.0)
GRADIENTS = (1e-4, 1e4)

UNSEEN = 0.012
"""Two probabilities that differ by less are closer than a line is wide."""

OVER_DEPTH_LEGEND = (
    Series("GPN"),
    Series("GPN, other root", dash=":"),
    Series("non-GPN", dash="--"),
    Series("measured", dash="", marker="o"),
)


def in_order(rows: pd.DataFrame) -> list[str]:
    """Return the activations that occur, as tables order them; a user's own come last."""
    known = [name + form for name in AUTO_ROOT for form in ("", DEPTH_AWARE)]
    names = list(rows["activation"].dropna().unique())  # rows of the input alone have none
    return [name for name in known if name in names] + [name for name in names if name not in known]


def base(name: str) -> str:
    """Return the name without the mark of a depth-aware form."""
    return name.removesuffix(DEPTH_AWARE)


def heading(name: str) -> str:
    """Return what legends call a row's activation."""
    return label(base(name)) + (", depth-aware" if name.endswith(DEPTH_AWARE) else "")


def usual_root(rows: pd.DataFrame, name: str) -> str:
    """Return the solution b that `root=auto` takes."""
    if base(name) in AUTO_ROOT:
        return AUTO_ROOT[base(name)]
    upper = rows[(rows["activation"] == name) & (rows["root"] == "upper")]["chi"]
    return "upper" if (upper <= 1 + 1e-9).all() else "lower"


def theorems(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Probability of a deviation against width, for both theorems and each assumption broken."""
    if stored.theory is None:
        yield Missing("theorems", "theory.csv is", "bsnn theory")
        return
    rows = stored.theory[stored.theory["estimate"].notna()]
    widths = sorted(int(width) for width in rows["width"].unique())
    x = Axis("width $n$ (units)", log=True, ticks=tuple(widths[:: 2 if len(widths) > 4 else 1]))
    names = in_order(rows)
    panels = []
    for number in (1, 2):
        y = Axis(f"Theorem {number}\n$P(\\geq\\varepsilon)$", limits=(-0.03, 1.03))
        for case, words in CASES.items():
            shown = rows[(rows["what"] == f"theorem_{number}") & (rows["case"] == case)]
            series = []
            for name in names:
                points = shown[shown["activation"] == name]
                spread: dict[str, Any] = {"low": points["low"], "high": points["high"], "spread": "bars"}
                series.append(
                    Series(heading(name), points["width"], points["estimate"], base(name), marker="o", **spread)
                )
            if (number, case) == (1, "none"):
                inputs = rows[(rows["what"] == "tsc") & (rows["case"] == "none")]
                series.append(Series("input (TSC)", inputs["width"], inputs["estimate"], dash=":"))
            panels.append(Panel(x, y, series, words if number == 1 else "", facet=words))
    epsilon, trials = rows["epsilon"].iloc[0], rows["trials"].iloc[0]
    yield Figure(
        "theorems",
        panels,
        "Probability that a squared length per unit is off by ε or more after one layer, against the width: of the "
        "signal (Theorem 1; dotted: of the Gaussian input itself) and of the gradient (Theorem 2). Where all "
        "assumptions hold, it falls to 0; then one assumption is broken at a time, which not every activation "
        "minds: the identity is normalised as it is, SELU nearly. A spiky x has one entry that is not 0. "
        f"{hidden(rows)}ε = {epsilon:.3f}, n = {trials:.0f} draws a point, bars: 95 % Wilson intervals.",
        f"deviation of ε = {epsilon:.3f} or more; {trials:.0f} draws a point, bars: 95 % intervals",
        [Series(heading(name), activation=base(name)) for name in names] + [Series("input (TSC)", dash=":")],
        len(CASES),
        (DOUBLE, 3.6),
        point=2,
    )


def hidden(rows: pd.DataFrame) -> str:
    """Name the activations whose lines lie under those of another one in every panel of the theorems."""
    drawn = rows[rows["what"].str.startswith("theorem")]
    table = drawn.pivot_table(index=["what", "case", "width"], columns="activation", values="estimate")
    names = in_order(drawn)
    words = []
    for place, name in enumerate(names):
        above = [other for other in names[place + 1 :] if (table[name] - table[other]).abs().max() < UNSEEN]
        words += [f"{heading(name)} under {heading(above[-1])}"] if above else []
    return f"Everywhere under another line: {', '.join(words)}. " if words else ""


def lengths(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Length of a signal over depth, predicted by the variance map and measured."""
    yield over_depth(
        stored.theory,
        "length",
        Axis("$\\|x^{l+1}\\|^2/n$", log=True, limits=LENGTHS),
        "Squared length per unit of a signal that starts at 0.5, 1 or 2, against the layer. GPN makes 1 a fixed point; "
        "whether lengths return to it is decided by the slope χ of the variance map: the upper root b of GELU, SiLU, "
        "Mish and Softplus has χ > 1 and drives them away (from 1 itself, chance decides where to), their lower root "
        "does not.",
    )


def angles(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Angle between two signals over depth, predicted by the correlation map and measured."""
    yield over_depth(
        stored.theory,
        "angle",
        Axis("$1 - \\cos$", log=True, limits=ANGLES),
        "What is left to tell two inputs apart: 1 − cosine of two signals that start orthogonal, against the layer. "
        "GPN keeps lengths, yet angles close: like 1/l for a smooth φ, like 1/l² for one with a kink as strong as "
        "ReLU's.",
    )


def gradients(stored: Results, config: FiguresConfig) -> Iterator[Figure | Missing]:  # noqa: ARG001 - of any size
    """Norm of a gradient on its way down, predicted and measured."""
    yield over_depth(
        stored.theory,
        "gradient",
        Axis("$\\|\\partial E/\\partial h^l\\|^2$", log=True, limits=GRADIENTS),
        "Squared norm of a gradient at the preactivations of a layer, relative to the gradient that enters at the top, "
        "of random direction; it goes from right to left. GPN keeps its mean, while its logarithm does a random walk: "
        "the longer the way, the more of them are below the mean. Without GPN it vanishes or explodes.",
    )


def over_depth(table: pd.DataFrame | None, quantity: str, y: Axis, caption: str) -> Figure | Missing:
    """Return predictions (lines) and measurements (points) against the layer, a panel for each activation."""
    if table is None or not (table["what"] == quantity).any():
        what = "theory.csv is" if table is None else f"theory.csv has no {quantity}s; they are"
        return Missing(f"{quantity}s", what, "bsnn theory")
    rows = table[table["what"] == quantity]
    names = in_order(rows)
    depth = int(rows["layer"].max())
    # Points at the ends stay whole.
    x = Axis(
        "layer $l$", log=True, limits=(0.85, 1.2 * depth), ticks=tuple(t for t in (1, 10, 100, 1000) if t <= depth)
    )
    panels = []
    for name in names:
        series: list[Series] = []
        for (root, _), path in rows[rows["activation"] == name].groupby(["root", "start"], dropna=False):
            plain = not isinstance(root, str)
            dash = "--" if plain else "-" if root == usual_root(rows, name) else ":"
            form = "" if plain else "-GPN, " + ("depth-aware, " if base(name) != name else "") + f"{root} root"
            series += follow(path.sort_values("layer"), base(name), f"{label(base(name))}{form}", dash)
        panels.append(Panel(x, y, series, heading(name)))
    n, networks, weights = rows["width"].iloc[0], rows["trials"].iloc[0], law(rows)
    columns = min(4, len(names))
    return Figure(
        f"{quantity}s",
        panels,
        f"{caption} Lines: predicted at infinite width; dots: geometric mean over {networks:.0f} random "
        f"networks of n = {n:.0f} units with {weights}; shaded: where the dots must lie by the theory of fluctuations "
        "at this width, left out for the root of b that is not in use (dotted, open dots), as are values below a "
        f"panel. L = {depth} layers.",
        f"n = {n:.0f} units, geometric mean over {networks:.0f} networks; lines: infinite width",
        OVER_DEPTH_LEGEND,
        columns,
        (DOUBLE, 0.6 + 1.35 * -(-len(names) // columns)),
        point=2.4,
    )


def law(rows: pd.DataFrame) -> str:
    """Return the weights of the networks of some rows of `theory.csv` in words; older files have orthogonal ones."""
    if "weights" not in rows or pd.isna(rows["weights"].iloc[0]):
        return "orthogonal weights"
    first = rows.iloc[0]
    return law_in_words(first["weights"], first["sigma_w"], first["sigma_b"])


def law_in_words(kind: str, sigma_w: float, sigma_b: float) -> str:
    """Return the law of weights and biases for a caption."""
    scales = [f"σ_w = {sigma_w:.4g}"] if sigma_w != 1 or kind == "gaussian" else []
    scales += [f"σ_b = {sigma_b:.4g}"] if sigma_b != 0 else []
    return f"{'Gaussian' if kind == 'gaussian' else kind} weights" + (f" ({', '.join(scales)})" if scales else "")


def follow(path: pd.DataFrame, activation: str, name: str, dash: str) -> list[Series]:
    """Return prediction with its band, and measured points, of one form of an activation from one start.

    The band of the root that is not in use (dotted) is left out: where χ > 1, it soon is all there is.
    """
    band: dict[str, Any] = {} if dash == ":" else {"low": path["band_low"], "high": path["band_high"]}
    last = path["layer"].max()
    points = path[[layer & (layer - 1) == 0 or layer == last for layer in path["layer"].astype(int)]]  # 1, 2, 4, …
    measured: dict[str, Any] = {"x": points["layer"], "y": points["measured"], "hollow": dash == ":"}
    return [
        Series(f"{name}, predicted", path["layer"], path["predicted"], activation, dash, **band),
        Series(f"{name}, measured", activation=activation, dash="", marker="o", **measured),
    ]
