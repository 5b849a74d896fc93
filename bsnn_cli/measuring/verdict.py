"""Verdicts on measured signals, in a few words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsnn_cli.settings.choices import parameter_in_use, tailored_as_usual
from bsnn_cli.settings.widths import in_words

KEPT, LOST = 3.0, 10.0
"""A length per unit, or a ratio of gradients, counts as kept within the first factor of 1; beyond the second it
vanishes or explodes."""

ALIKE = 0.005
"""Below this mean 1 − c inputs are hard to tell apart: the plain and normalised ReLU's fate after 200 layers."""


def title(summary: dict[str, Any]) -> str:
    """Return a title for the measured network, such as `relu_gpn with the lower root, 200 layers of 500`."""
    if summary.get("network") is not None:
        return f"{summary['label']}, {summary['calls']} layer call{'s' if summary['calls'] != 1 else ''}"
    name, activation = summary["activation"], summary["config"]["activation"]
    if summary["approach"] is not None:
        name = f"{summary['approach']} ({name})"
    if activation["gpn"] and activation["root"] != "auto":
        name += f" with the {activation['root']} root"
    if activation.get("separation") is not None:
        name += f" for 1 − c = {activation['separation']:g}"
        if not tailored_as_usual(activation["name"], activation.get("parameter")):
            name += f" by its {parameter_in_use(activation['name'], activation.get('parameter'))}"
    width = in_words(summary["widths"]) if "widths" in summary else summary["width"]
    return f"{'trained ' if summary['trained'] else ''}{name}, {summary['depth']} layers of {width}"


def judge(summary: Mapping[str, Any]) -> list[str]:
    """Judge absolute lengths and the gradient norm ratio.

    Args:
        summary: the numbers of `records.Summary`, None where one is not finite, and `depth`, the number of layers with
            weights, as in `summary.json`.

    Returns:
        two to four sentences: on the signal, on the gradients, on linearity and on angles where they are lost.
    """
    sentences = [_signal(summary), _gradients(summary)]
    alike = summary["one_minus_cosine_last"]
    if alike is not None and alike < ALIKE:
        sentences.append(f"inputs become alike: mean 1 − c = {alike:.2g}")
    if summary["saturated"] is not None and summary["saturated"] > 0.9:
        sentences.append(f"{100 * summary['saturated']:.0f} % of the units are saturated")
    return sentences


def _signal(summary: Mapping[str, Any]) -> str:
    norm = summary["forward_norm_last"]
    if norm is None:
        return "signal explodes: beyond the range of the numbers"
    if norm == 0:
        return "signal vanishes: exactly 0 at the end"
    if norm > LOST:
        return f"signal explodes: ‖x‖²/n = {norm:.2g} (above {LOST:g})"
    linear = _is_linear(summary)
    if norm < 1 / LOST:
        text = f"signal vanishes: ‖x‖²/n = {norm:.2g} (below 1/{LOST:g})"
        return text + (f", the network is linear {linear}" if linear else "")
    if norm < 1 / KEPT:
        text = f"signal shrinks: ‖x‖²/n = {norm:.2f} (below 1/{KEPT:g})"
    elif norm > KEPT:
        text = f"signal grows: ‖x‖²/n = {norm:.2f} (above {KEPT:g})"
    else:
        text = f"signal keeps its length: ‖x‖²/n = {norm:.2f} (within a factor of {KEPT:g})"
    return text + (f", but the network is linear {linear}" if linear else "")


def _is_linear(summary: Mapping[str, Any]) -> str:
    """Return the pseudo-linearity as text if f' hardly varies at the last layer, otherwise an empty text."""
    spread, mean, share = (summary[name] for name in ("derivative_std", "derivative_mean", "pseudo_linearity"))
    if None in (spread, mean, share) or spread > 0.05 * abs(mean):
        return ""
    return f"(pseudo-linearity {share:.3f})"


def _gradients(summary: Mapping[str, Any]) -> str:
    ratio, largest = summary["gradient_norm_ratio"], summary["gradient_norm_max"]
    if summary["depth"] == 0:
        return "no gradients of weights, as there are none"
    if largest is None:
        return "gradients explode: beyond the range of the numbers"
    if largest == 0:
        return "gradients vanish: every one is exactly 0, their ratio is not defined"
    if ratio is None:
        return f"gradients vanish: {summary['zero_gradients']:.0f} of {summary['depth']} layers have exactly 0"
    first, last = summary["gradient_norm_first"], summary["gradient_norm_last"]
    if ratio > LOST:
        return f"gradients {'explode' if first > last else 'vanish'}: {ratio:.3g}× (above {LOST:g})"
    if largest < SMALL:
        return f"gradients vanish: ‖∂E/∂W‖ at most {largest:.2g} (below {SMALL:g})"
    if ratio > KEPT:
        return f"gradients differ: {ratio:.2f}× (above {KEPT:g})"
    return f"gradients keep their size: {ratio:.2f}× (within a factor of {KEPT:g})"


SMALL = 1e-6
"""Gradients whose largest norm is below this teach nothing, however equal they are."""
