"""The table of `bsnn theory`: probabilities of the theorems, and signals over depth, predicted and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from torch import Tensor

from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import Activation, get
from bsnn_cli.gpn.meanfield import Weights, basin, variance_step
from bsnn_cli.settings.choices import AUTO_ROOT
from bsnn_cli.settings.config import TheoryConfig
from bsnn_cli.theory.activation import computing, of_config
from bsnn_cli.theory.fates import COLLAPSED, Fate, fate_of_angle, fate_of_gradient, fate_of_length
from bsnn_cli.theory.prediction import DEVIATIONS, prediction
from bsnn_cli.theory.simulation import simulate
from bsnn_cli.theory.spectrum import spectrum
from bsnn_cli.theory.theorems import Form, Row, probabilities

STARTS = (0.5, 1.0, 2.0)
"""‖x‖²/n of the inputs whose length is followed over depth."""

ROUNDING = 1e-9
"""Relative; bands of what is exact, such as the length under a linear activation, have no width."""

RESOLVED = 100
"""Angles that are predicted to be within this multiple of `COLLAPSED` are too near to 0 to be measured."""

TELLING = 1e6
"""A band whose upper end exceeds this multiple of its lower one says nothing: lengths may leave the basin."""

COLUMNS = (
    "what",
    "case",
    "activation",
    "gpn",
    "root",
    "chi",
    "basin",
    "width",
    "epsilon",
    "estimate",
    "low",
    "high",
    "trials",
    "layer",
    "start",
    "predicted",
    "band_low",
    "band_high",
    "measured",
    "measured_low",
    "measured_high",
    "weights",
    "sigma_w",
    "sigma_b",
)
"""Columns of `theory.csv`, in order; `study` explains them."""


def study(config: TheoryConfig) -> pd.DataFrame:
    """Return all rows of `theory.csv`; values that do not apply to a row are missing.

    Columns:
        what: `tsc`, `theorem_1`, `theorem_2`: probability of a deviation, against width. Against layer: `length`:
            ‖x‖²/n of a signal; `angle`: 1 − cosine of two signals; `gradient`: ‖∂E/∂h‖² of the preactivations of the
            layer, relative to ‖∂E/∂x‖² at what leaves the last one, a gradient of random direction; `jacobian_mean`,
            `jacobian_variance`, `jacobian_largest`: of the Jacobian from the input up to the layer, the mean of the
            squared singular values, their variance over mean² and the largest singular value, only predicted.
        case: which assumption is broken: `none`; `haar` (W = I, x = √n times a unit vector of the basis);
            `shell` (‖x‖²/n = 2); `gpn` (φ itself). A broken assumption need not break each conclusion: a linear φ
            keeps lengths under any orthogonal W, ReLU' does not depend on ‖x‖, SELU as it is nearly is normalised.
        activation, gpn, root, chi: of f; chi is the slope of log F(q) over log q at 1, which is χ if f is normalised.
        basin: of a normalised f over depth, the ‖x‖²/n up to which a long input comes back to 1; inf: from everywhere.
        width: n.
        epsilon: ε; estimate, low, high: of the probability, with its 95 % Wilson interval; trials: independent draws.
        layer: counted from 1; start: value at the input.
        predicted: at infinite width; measured: geometric mean over `trials` networks of width n; measured_low,
            measured_high: least and largest of them; band_low, band_high: where `measured` must lie (`fates.Fate`).
        weights, sigma_w, sigma_b: law of the weights over depth (`meanfield.Weights`).
    """
    chosen = [get(name) for name in AUTO_ROOT] if config.activation is None else [custom.activation(config.activation)]
    root = "auto" if config.activation is None else config.activation.root
    with computing():
        rows = [*probabilities(chosen, root, config), *depth_view(chosen, config)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64"})


def depth_view(activations: Sequence[Activation], config: TheoryConfig) -> Iterator[Row]:
    """Yield rows of signals over depth, predicted and measured: φ itself, upper root, lower root."""
    weights, first = law(config), STARTS.index(1.0)
    depth, width = config.depth, config.width
    for form in [Form(phi, root) for phi in activations for root in (None, "upper", "lower")]:
        f = form.transfer()
        measured = simulate(f, width, depth, config.networks, config.seed, STARTS, first, weights)
        labels = form.labels() | {"case": "none" if form.root else "gpn", "width": config.width}
        labels |= {"chi": float(variance_step(f, 1.0).jacobian[0, 0]), "trials": config.networks}
        labels |= {"basin": basin(f)} if form.root else {}
        labels |= {"weights": weights.kind, "sigma_w": weights.sigma_w, "sigma_b": weights.sigma_b}
        followed = [
            ("length", start, fate_of_length(f, depth, width, start, weights), lengths)
            for start, lengths in zip(STARTS, measured.lengths, strict=True)
        ]
        followed.append(("angle", 1.0, fate_of_angle(f, depth, width, weights=weights), measured.separations))
        followed.append(("gradient", 1.0, fate_of_gradient(f, depth, width, weights=weights), measured.gradients))
        for what, start, fate, values in followed:
            yield from _over_layers(labels | {"what": what, "start": start}, fate, values, config.networks)
        jacobian = spectrum(f, depth, weights=weights)
        for what in ("mean", "variance", "largest"):
            for layer, predicted in enumerate(getattr(jacobian, what)):
                yield labels | {"what": f"jacobian_{what}", "layer": layer + 1, "start": 1.0, "predicted": predicted}


def _over_layers(labels: Row, fate: Fate, measured: Tensor, networks: int) -> Iterator[Row]:
    """Yield a row for each layer, from the prediction and what was measured, (layer, network)."""
    band_low, band_high = fate.band(networks, DEVIATIONS)
    for layer, values in enumerate(measured):
        yield labels | {
            "layer": layer + 1,
            "predicted": fate.predicted[layer],
            "band_low": band_low[layer],
            "band_high": band_high[layer],
            "measured": float(values.log().mean().exp()),
            "measured_low": float(values.min()),
            "measured_high": float(values.max()),
        }


def law(config: TheoryConfig) -> Weights:
    """Return the law of the weights of a study."""
    return Weights(config.weights, config.sigma_w, config.sigma_b)


def summary(config: TheoryConfig) -> list[str]:
    """Return what is predicted and measured for the activation of a study, if there is one, in the form asked for."""
    if config.activation is None:
        return []
    f = of_config(config.activation)
    return [str(prediction(f, config.depth, config.width, law(config), 1.0, config.networks, config.seed))]


def describe(results: pd.DataFrame) -> str:
    """Describe the results: probabilities at the least and the largest width, and the end of the depth view."""
    counted = results[results.estimate.notna()]
    ends = [counted[counted.width == n].set_index(["what", "case", "activation"]) for n in widths_of(counted)]
    first = counted.iloc[0]

    def change(what: str, case: str, name: str) -> str:
        least, largest = (end.estimate[what, case, name] for end in ends)
        return f"{least:.3f} → {largest:.3f}"

    names = counted[counted.what == "theorem_1"].activation.unique()
    cases = {"none": "holds", "haar": "W = I, spiky x", "shell": "x off the shell", "gpn": "φ not normalised"}
    theorems = pd.DataFrame(
        [
            {"activation": name, "theorem": number}
            | {words: change(f"theorem_{number}", case, name) for case, words in cases.items()}
            for number in (1, 2)
            for name in names
        ]
    )
    followed = results[results.measured.notna()]
    last = followed[followed.layer == followed.layer.max()]
    depths = pd.DataFrame(
        [_fate_in_words(group) for _, group in followed.groupby(["activation", "root"], dropna=False, sort=False)]
    )
    (n, m), end = widths_of(counted), last.iloc[0]
    return "\n".join(
        [
            f"Probability that a squared length per unit is off by {first.epsilon:.3f} or more, from n = {n} to {m}",
            f"({first.trials:.0f} draws each), where the theorems hold, and with one assumption broken:",
            theorems.to_string(index=False),
            "",
            f"Over {end.layer:.0f} layers of {end.width:.0f} units: ‖x‖²/n at the end of an input that starts at",
            f"{max(STARTS):g}, 1 − cosine there of two that start orthogonal, and the squared norm at the bottom of a",
            "gradient that is 1 at the top. Predicted at infinite width / geometric mean measured over",
            f"{end.trials:.0f} networks. The band is where that must lie, at every layer:",
            depths.to_string(index=False),
        ]
    )


def widths_of(rows: pd.DataFrame) -> tuple[int, int]:
    """Return the least and the largest width."""
    return int(rows.width.min()), int(rows.width.max())


def _fate_in_words(rows: pd.DataFrame) -> Row:
    """Return one line of the depth view, from its rows at all layers."""
    length = rows[(rows.what == "length") & (rows.start == max(STARTS))].iloc[-1]
    angle, gradient = rows[rows.what == "angle"].iloc[-1], rows[rows.what == "gradient"].iloc[0]
    inside = rows.measured.between(rows.band_low * (1 - ROUNDING), rows.band_high * (1 + ROUNDING))
    resolved = (rows.predicted > RESOLVED * COLLAPSED) | (rows.what != "angle")
    if (rows.band_high > TELLING * rows.band_low).any():
        judgement = "unstable at 1" if length.chi > 1 else "too wide to tell"
    else:
        judgement = "yes" if inside[resolved].all() else "no"
    return {
        "activation": length.activation,
        "root": length.root if length.gpn else "not normalised",
        "χ": f"{length.chi:.3f}",
        "basin": f"{length.basin:.3g}" if length.gpn else "–",
        "‖x‖²/n": f"{length.predicted:.3g} / {length.measured:.3g}",
        "1 − c": f"{angle.predicted:.3g} / {angle.measured:.3g}",
        "gradient": f"{gradient.predicted:.3g} / {gradient.measured:.3g}",
        "inside the band": judgement,
    }
