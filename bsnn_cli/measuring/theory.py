"""The paper's theorems by Monte Carlo, their assumptions by counter-example, and signals over depth.

A vector x of n units is *thin-shell concentrated* (TSC) if P(|‖x‖²/n − 1| ≥ ε) → 0 as n → ∞ (Lu, Gould and Ajanthan
2020, arXiv 2006.12169). For TSC x, Haar-uniform W and a normalised activation f, Theorem 1 says that f(Wx) is TSC,
Theorem 2 that the backward signal Dy with D_ii = f'((Wx)_i) has ‖Dy‖²/n − ‖y‖²/n → 0 in probability, for y with bounded
entries.

No W is drawn: for Haar-uniform W, Wx is uniform on the sphere of radius ‖x‖, and W(x₁, x₂) has the law of (u₁, u₂)R,
where (u₁, u₂) are uniform orthonormal vectors and R is the triangular factor of (x₁, x₂). That holds exactly, and in
every layer anew, as each layer has a W of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from bsnn_cli.common.random_streams import stream
from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import Activation, get, normalise
from bsnn_cli.gpn.meanfield import COLLAPSED, Transfer, basin, fate_of_angle, fate_of_length, transfer, variance_step
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.choices import AUTO_ROOT
from bsnn_cli.settings.config import TheoryConfig

OFF_SHELL = 2.0
"""‖x‖²/n of inputs off the shell."""

STARTS = (0.5, 1.0, 2.0)
"""‖x‖²/n of the inputs whose length is followed over depth."""

DEVIATIONS = 4.0
"""Half the width of the band around a prediction, in standard errors."""

ROUNDING = 1e-9
"""Relative; bands of what is exact, such as the length under a linear activation, have no width."""

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
)
"""Columns of `theory.csv`, in order; `study` explains them."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """An activation as it is (root is None) or normalised with one of its roots, "upper" or "lower"."""

    phi: Activation
    root: str | None

    def labels(self) -> Row:
        """Return the values of its columns."""
        return {"activation": self.phi.name, "gpn": self.root is not None, "root": self.root}

    def constants(self) -> tuple[float, float]:
        """Return (a, b) of f = aφ + b."""
        if self.root is None:
            return 1.0, 0.0
        solution = normalise(self.phi, self.root)
        return solution.a, solution.b

    def transfer(self) -> Transfer:
        """Return its mean-field maps."""
        return transfer(self.phi, gpn=self.root is not None, root=self.root or "auto")


def study(config: TheoryConfig) -> pd.DataFrame:
    """Return all rows of `theory.csv`; values that do not apply to a row are missing.

    Columns:
        what: `tsc`, `theorem_1`, `theorem_2`: probability of a deviation, against width; `length`, `angle`: ‖x‖²/n of
            a signal, 1 − cosine of two signals, against layer.
        case: which assumption is broken: `none`; `haar` (W = I, x = √n times a unit vector of the basis);
            `shell` (‖x‖²/n = 2); `gpn` (φ itself). A broken assumption need not break each conclusion: a linear φ
            keeps lengths under any orthogonal W, ReLU' does not depend on ‖x‖, SELU as it is nearly is normalised.
        activation, gpn, root, chi: of f; chi is the slope of log F(q) over log q at 1, which is χ if f is normalised.
        basin: of a normalised f over depth, the ‖x‖²/n up to which a long input comes back to 1; inf: from everywhere.
        width: n.
        epsilon: ε; estimate, low, high: of the probability, with its 95 % Wilson interval; trials: independent draws.
        layer: counted from 1; start: value at the input.
        predicted: at infinite width; measured: geometric mean over `trials` networks of width n; measured_low,
            measured_high: least and largest of them; band_low, band_high: where `measured` must lie (`meanfield.Fate`).
    """
    chosen = [get(name) for name in AUTO_ROOT] if config.activation is None else [custom.activation(config.activation)]
    root = "auto" if config.activation is None else config.activation.root
    with intra_op_threads(1):  # tensors are small: several threads would mostly wait for each other
        rows = [*probabilities(chosen, root, config), *depth_view(chosen, config)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64"})


def widths(config: TheoryConfig) -> list[int]:
    """Return the widths, doubling from the smallest to the largest."""
    doublings = int(math.log2(config.largest_width / config.smallest_width))
    return [config.smallest_width << k for k in range(doublings + 1)]


def deviation(config: TheoryConfig) -> float:
    """Return ε: 2/√n₀ with n₀ the geometric mean of the widths, unless chosen.

    A squared length per unit fluctuates by 1 to 2 over √n: so at the smallest width the probability is near ½, at the
    largest it is small but seen.
    """
    if config.epsilon is not None:
        return config.epsilon
    return 2 / math.sqrt(math.sqrt(widths(config)[0] * widths(config)[-1]))


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability from the number of hits (Wilson 1927); sound for 0 hits as well."""
    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def on_sphere(norms: Tensor, generator: torch.Generator, n: int) -> Tensor:
    """Draw Wx for one x of each norm (trials, 1), with an independent Haar-uniform W for each: (trials, n)."""
    g = torch.randn(len(norms), n, generator=generator, dtype=torch.float64)
    return norms * g / norm(g)


def probabilities(activations: Sequence[Activation], root: str, config: TheoryConfig) -> Iterator[Row]:
    """Yield rows of TSC and of both theorems, with their counter-examples, over all widths."""
    epsilon, trials = deviation(config), config.trials
    forms = [Form(phi, normalise(phi, root).root) for phi in activations]

    def row(what: str, case: str, form: Form | None, n: int, difference: Tensor) -> Row:
        hits = int((difference.abs() >= epsilon).sum())
        low, high = wilson(hits, trials)
        counted = {"width": n, "epsilon": epsilon, "estimate": hits / trials, "low": low, "high": high}
        return {"what": what, "case": case} | (form.labels() if form else {}) | counted | {"trials": trials}

    for n in widths(config):
        generator = stream(config.seed, "theory", n)
        x = torch.randn(trials, n, generator=generator, dtype=torch.float64)
        norms = norm(x)
        y = (torch.rand(trials, n, generator=generator, dtype=torch.float64) - 0.5) * math.sqrt(12)
        yield row("tsc", "none", None, n, per_unit(x) - 1)
        yield row("tsc", "shell", None, n, torch.full((trials,), OFF_SHELL - 1))
        spiky = torch.zeros_like(x)
        spiky[:, 0] = math.sqrt(n) * x[:, 0].sign()
        off_shell = on_sphere(torch.full_like(norms, math.sqrt(OFF_SHELL * n)), generator, n)
        for case, h in (("none", on_sphere(norms, generator, n)), ("haar", spiky), ("shell", off_shell)):
            for form in forms:
                value, backward = form.phi.phi(h), form.phi.pull_back(y, h)
                for label, f in ((case, form), *([("gpn", Form(form.phi, None))] if case == "none" else [])):
                    a, b = f.constants()
                    yield row("theorem_1", label, f, n, per_unit(a * value + b) - 1)
                    yield row("theorem_2", label, f, n, per_unit(a * backward) - per_unit(y))


def per_unit(x: Tensor) -> Tensor:
    """Return ‖x‖²/n: (trials, n) → (trials,)."""
    return x.square().mean(1)


def depth_view(activations: Sequence[Activation], config: TheoryConfig) -> Iterator[Row]:
    """Yield rows of length and angle over depth, predicted and measured: φ itself, upper root, lower root."""
    forms = [Form(phi, root) for phi in activations for root in (None, "upper", "lower")]
    transfers = [form.transfer() for form in forms]
    lengths, angles = measure(transfers, config.width, config.depth, config.networks, config.seed)
    for form, f, length, angle in zip(forms, transfers, lengths, angles, strict=True):
        labels = form.labels() | {"case": "none" if form.root else "gpn", "width": config.width}
        labels |= {"chi": float(variance_step(f, 1.0).jacobian[0, 0]), "trials": config.networks}
        labels |= {"basin": basin(f)} if form.root else {}
        fates = [("length", start, fate_of_length(f, config.depth, config.width, start)) for start in STARTS]
        fates.append(("angle", 1.0, fate_of_angle(f, config.depth, config.width)))
        for (what, start, fate), measured in zip(fates, [*length, angle], strict=True):
            band_low, band_high = fate.band(config.networks, DEVIATIONS)
            for layer in range(config.depth):
                values = measured[layer]
                yield labels | {
                    "what": what,
                    "layer": layer + 1,
                    "start": start,
                    "predicted": fate.predicted[layer],
                    "band_low": band_low[layer],
                    "band_high": band_high[layer],
                    "measured": float(values.log().mean().exp()),
                    "measured_low": float(values.min()),
                    "measured_high": float(values.max()),
                }


def measure(transfers: Sequence[Transfer], width: int, depth: int, networks: int, seed: int) -> tuple[Tensor, Tensor]:
    """Send signals through random orthogonal networks, the same weights for every activation, layer by layer.

    Returns:
        ‖x‖²/n of one input of each of `STARTS`, (activation, start, layer, network), and 1 − c of two inputs that are
        orthogonal and of ‖x‖²/n = 1, (activation, layer, network); an angle that float64 does not resolve is 0.
    """
    first = STARTS.index(1.0)
    scales = [math.sqrt(start) for start in STARTS]
    u, v = orthonormal(networks, width, stream(seed, "theory inputs"))
    root = math.sqrt(width)
    signals = [[root * scale * u for scale in scales] + [root * v] for _ in transfers]
    lengths = torch.empty(len(transfers), len(STARTS), depth, networks, dtype=torch.float64)
    angles = torch.empty(len(transfers), depth, networks, dtype=torch.float64)
    for layer in range(depth):
        u, v = orthonormal(networks, width, stream(seed, "theory weights", layer))
        for index, f in enumerate(transfers):
            *inputs, partner = signals[index]
            partner = f.f(rotate_partner(inputs[first], partner, u, v))
            inputs = [f.f(norm(x) * u) for x in inputs]
            signals[index] = [*inputs, partner]
            lengths[index, :, layer] = torch.stack([per_unit(x) for x in inputs])
            difference = inputs[first] / norm(inputs[first]) - partner / norm(partner)
            separation = (difference * difference).sum(1) / 2
            angles[index, layer] = separation.where(separation > COLLAPSED, 0)
    return lengths, angles


def norm(x: Tensor) -> Tensor:
    """Return ‖x‖ of each row: (networks, n) → (networks, 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length


def orthonormal(networks: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the first two columns of a Haar-uniform matrix for each network, (networks, n) each."""
    g, h = torch.randn(2, networks, n, generator=generator, dtype=torch.float64)
    u = g / norm(g)
    h = h - (h * u).sum(1, keepdim=True) * u
    return u, h / norm(h)


def rotate_partner(x: Tensor, partner: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return W·partner (networks, n); W is orthogonal, takes x to ‖x‖u, and the plane of both to that of u, v."""
    along = x / norm(x)
    projection = (partner * along).sum(1, keepdim=True)
    return projection * u + norm(partner - projection * along) * v


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
    followed = results[results.layer.notna()]
    last = followed[followed.layer == followed.layer.max()]
    depths = pd.DataFrame(
        [_fate_in_words(group) for _, group in last.groupby(["activation", "root"], dropna=False, sort=False)]
    )
    (n, m), end = widths_of(counted), last.iloc[0]
    return "\n".join(
        [
            f"Probability that a squared length per unit is off by {first.epsilon:.3f} or more, from n = {n} to {m}",
            f"({first.trials:.0f} draws each), where the theorems hold, and with one assumption broken:",
            theorems.to_string(index=False),
            "",
            f"After {end.layer:.0f} layers of {end.width:.0f} units: ‖x‖²/n of an input that starts at {max(STARTS):g}",
            "and 1 − cosine of two that start orthogonal. Predicted at infinite width / geometric mean measured over",
            f"{end.trials:.0f} networks. The band is where that must lie, at every layer:",
            depths.to_string(index=False),
        ]
    )


def widths_of(rows: pd.DataFrame) -> tuple[int, int]:
    """Return the least and the largest width."""
    return int(rows.width.min()), int(rows.width.max())


def _fate_in_words(rows: pd.DataFrame) -> Row:
    """Return one line of the depth view, from its rows at the last layer."""
    length = rows[(rows.what == "length") & (rows.start == max(STARTS))].iloc[0]
    angle = rows[rows.what == "angle"].iloc[0]
    inside = rows.measured.between(rows.band_low * (1 - ROUNDING), rows.band_high * (1 + ROUNDING)).all()
    if (rows.band_high > TELLING * rows.band_low).any():
        judgement = "unstable at 1" if length.chi > 1 else "too wide to tell"
    else:
        judgement = "yes" if inside else "no"
    return {
        "activation": length.activation,
        "root": length.root if length.gpn else "not normalised",
        "χ": f"{length.chi:.3f}",
        "basin": f"{length.basin:.3g}" if length.gpn else "–",
        "‖x‖²/n": f"{length.predicted:.3g} / {length.measured:.3g}",
        "1 − c": f"{angle.predicted:.3g} / {angle.measured:.3g}",
        "inside the band": judgement,
    }
