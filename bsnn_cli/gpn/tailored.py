"""Tailor activations to a depth: one parameter inside φ, set so that a network keeps angles as GPN keeps norms.

Under a normalised f, 1 − c of two signals that start at right angles shrinks in every layer. How fast depends on φ' and
not on b, so not on the root either; it is how far φ is from a straight line where signals are, and one parameter moves
φ along that way:

- the gain α of φ(αh), for a φ that is smooth at 0: the smaller, the straighter;
- the share s of (1 − s)φ(h) + sh, for a φ with a corner at 0, which no gain flattens, and for one that a gain would
  leave with a narrow basin of lengths. At a small gain φ is nearly a line with a parabola on it, which a long signal
  sees; a share keeps the function and, with the same root, its basin. Of a leaky ReLU it is another leaky ReLU, so
  there the negative slope is the parameter.

It is solved for 1 − c after all layers at infinite width (`meanfield.separation`), together with a, b and the root of
each candidate. Deep Kernel Shaping (Martens et al. 2021, arXiv 2110.01765) and tailored activation transformations
(Zhang, Botev and Martens 2022, arXiv 2203.08120) shape kernels under Gaussian weights in this spirit; here weights are
orthogonal and both GPN conditions hold as well.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn import meanfield
from bsnn_cli.gpn.activations import ACTIVATIONS, Activation, PullBack, name_of, normalise
from bsnn_cli.gpn.functions import Phi, autograd_pair, evaluating, in_double
from bsnn_cli.gpn.kinks import kinks
from bsnn_cli.settings.choices import TAILORED_BY, UNTAILORED
from bsnn_cli.settings.named_activations import LRELU_SLOPE
from bsnn_cli.settings.options import complaint

STRAIGHTEST, STEEPEST = -10, 5
"""Powers of two that bound the gain; the first bounds 1 − s as well."""

ACCURACY = 1e-13
"""Accuracy of the exponent of two; 1 − c follows to 1e-8 or better."""

TOLERANCE = 1e-8
"""Largest error of 1 − c. A search that ends further off has met a jump, and no parameter gives the wanted value."""

WIDE = 3.0
"""Basin from which lengths are safe. Of 400 simulated networks of 200 layers of 500 units, inputs of ‖x‖²/n = 2 ran
away in 28 to 37 % where the basin is 2.0, in 3 % at 2.6, in one at most at 3.2, in none at 7.3; of 100 units, in 9 %
at 2.6 and in 0.5 to 4.5 % at 3.2."""

LARGEST_OFFSET = 1e5
"""Largest |b|: beyond it, float64 has too few digits for integrals of f to 1e-11."""

WORDS = {"gain": "gain", "share": "share of the identity"}
"""Names of the parameters in messages."""

NEAR = 1e-7
"""Distance from 0 at which slopes tell a corner from a curve."""


@dataclass(frozen=True)
class Tailoring:
    """Turns φ into (1 − share)·φ(gain·h) + share·h."""

    gain: float = 1.0
    share: float = 0.0

    def __call__(self, phi: Phi, h: Tensor) -> Tensor:
        """Return the tailored φ of h, a new tensor of the shape of h."""
        value = phi(h if self.gain == 1 else self.gain * h)
        return value if self.share == 0 else torch.lerp(value, h.to(value.dtype), self.share)

    def changes(self) -> dict[str, float]:
        """Return the values that differ from those without tailoring."""
        gain = {"gain": self.gain} if self.gain != 1 else {}
        return gain | ({"share": self.share} if self.share != 0 else {})


def solve(activation: Activation | Phi, separation: float, depth: int, parameter: str | None = "auto") -> Tailoring:
    """Find the value of a parameter that gives a wanted 1 − c after all layers, the nearest to φ as it is.

    Args:
        activation: φ; a function is called with float64 tensors.
        separation: 1 − c in (0, 1) after all layers, for inputs at right angles, exact to 1e-8.
        depth: layers, a whole number from 1.
        parameter: "gain", "share", or "auto": the share where φ has a corner at 0; elsewhere the gain, unless no gain
            gives this or the basin of lengths (`meanfield.basin`) is narrower than 3 with it and wider with the share.
            Of named activations `choices.TAILORED_BY` has the one that is tried first. None: the share where φ has a
            corner at 0, else the gain.

    Raises:
        ActivationError: no value gives this, with what can be reached; or as `activations.normalise`.

    Warns:
        UserWarning: the basin is narrower than 3.
    """
    numbers = isinstance(depth, Integral) and not isinstance(depth, bool) and isinstance(separation, Real)
    if not (numbers and depth >= 1 and 0 < separation < 1):
        raise ActivationError(
            f"separation={separation}, depth={depth}: 1 − c must be above 0 and below 1, after at least one layer, and"
            " layers are a whole number"
        )
    if parameter not in (*WORDS, "auto", None):
        raise ActivationError(complaint("parameter", parameter, "one of auto, gain, share", ("auto", *WORDS)))
    if isinstance(activation, Activation):
        return _of_named(activation, separation, depth, parameter)
    return _solve(activation, in_double(activation), separation, depth, parameter)


@functools.lru_cache(maxsize=64)
def _of_named(activation: Activation, separation: float, depth: int, parameter: str | None) -> Tailoring:
    if activation.name in UNTAILORED:
        raise ActivationError(f"activation {activation.name}: {UNTAILORED[activation.name]}")
    return _solve(activation, activation.phi, separation, depth, parameter)


def _solve(activation: Activation | Phi, phi: Phi, separation: float, depth: int, parameter: str | None) -> Tailoring:
    solution, name = normalise(activation), name_of(activation)  # what has no such form is told so, by its name
    if abs(solution.b) > LARGEST_OFFSET:
        raise ActivationError(
            f"activation {name}: is about {solution.mean:g}, beside which float64 has too few digits for its shape;"
            " leave that constant out, b does its work"
        )
    narrow, reached = [], []
    with torch.device("cpu"):  # wherever the caller has new tensors made
        for changed in _candidates(activation, phi, parameter):
            search = Search(phi, changed, depth)
            power = search.run(separation)
            if power is None:
                reached.append(f"{WORDS[changed]} reaches {search.reach()}")
                continue
            basin = meanfield.basin(search.transfer(power))
            if basin >= WIDE:
                return search.member(power)
            narrow.append((basin, changed, search.member(power)))
    if not narrow:
        raise ActivationError(
            f"activation {name}: 1 − c = {separation:g} after {depth} layers is out of reach; its "
            + ", its ".join(reached)
            + ("; parameter=gain reaches others" if parameter == "share" and not has_corner(phi) else "")
        )
    basin, changed, tailoring = max(narrow, key=lambda candidate: candidate[0])
    warnings.warn(
        f"activation {name}: tailored by its {WORDS[changed]}, ‖x‖²/n comes back to 1 from no more than"
        f" {basin:.3g}; what is longer runs away, which is likely in deep networks below {WIDE:g}",
        stacklevel=2,
    )
    return tailoring


def _candidates(activation: Activation | Phi, phi: Phi, parameter: str | None) -> tuple[str, ...]:
    """Return the parameters to try, in this order."""
    if parameter in WORDS:
        return (parameter,)
    if has_corner(phi):
        return ("share",)
    if parameter is None:
        return ("gain",)
    first = None  # of a function, whatever it is called
    if isinstance(activation, Activation) and ACTIVATIONS.get(activation.name) is activation:
        first = TAILORED_BY[activation.name]
    return ("gain",) if first == "gain" else ("share", "gain") if first == "share" else ("gain", "share")


class Search:
    """A search for the value of one parameter of φ, over powers of two: of the gain, or of 1 − share.

    Args:
        phi: float64, keeps its input.
        parameter: "gain" or "share".
        depth: layers.
    """

    def __init__(self, phi: Phi, parameter: str, depth: int) -> None:
        self.phi, self.parameter, self.depth = phi, parameter, depth
        self.last = STEEPEST if parameter == "gain" else 0
        self.left = functools.cache(self._left)
        self.kinks = functools.cache(functools.partial(kinks, phi))

    def member(self, power: float) -> Tailoring:
        """Return the tailoring that belongs to a power."""
        return Tailoring(gain=2.0**power) if self.parameter == "gain" else Tailoring(share=1 - 2.0**power)

    def transfer(self, power: float) -> meanfield.Transfer:
        """Prepare the normalised φ that belongs to a power; errors as in `meanfield.transfer`."""
        member = self.member(power)
        candidate = functools.partial(member, self.phi)
        # The same places for all members, so that 1 − c has no step where another search finds another digit.
        places = self.kinks(max(1.0, 2.0 ** math.ceil(power)))
        return meanfield.normalised(candidate, candidate, tuple(place / member.gain for place in places))

    def _left(self, power: float) -> float:
        """Return 1 − c after all layers; NaN beyond the steepest member that has moments."""
        try:
            return meanfield.separation(self.transfer(power), self.depth)
        except ActivationError:
            return math.nan

    def run(self, separation: float) -> float | None:
        """Find the power, from φ as it is by halving or doubling; None if no power gives this 1 − c."""
        from scipy.optimize import brentq  # half a second, which runs of other activations need not wait for

        def excess(power: float) -> float:
            left = self.left(power)
            return -separation if math.isnan(left) else left - separation  # too steep: nothing is left

        toward = -1 if excess(0) < 0 else 1
        for power in range(0, STRAIGHTEST if toward < 0 else self.last, toward):
            if excess(power) * excess(power + toward) <= 0:
                zero = float(brentq(excess, power, power + toward, xtol=ACCURACY, rtol=ACCURACY))
                return zero if abs(excess(zero)) < TOLERANCE else None
        return None

    def reach(self) -> str:
        """Say in words which 1 − c can be reached."""
        values = [left for power in range(STRAIGHTEST, self.last + 1) if not math.isnan(left := self.left(power))]
        return f"from {min(values):.4g} to {max(values):.4g}" if values else "nothing: φ is too steep throughout"


def has_corner(phi: Phi) -> bool:
    """Return True if the slope of φ jumps, or is 0, at 0, so that no gain makes φ straight; φ takes float64."""
    with evaluating("φ"):
        _, slopes = autograd_pair(phi, torch.tensor([-NEAR, NEAR], dtype=torch.float64, device="cpu"))
        _, around = autograd_pair(phi, torch.linspace(-1, 1, 33, dtype=torch.float64, device="cpu"))
    left, right = slopes
    flat = slopes.abs().max() <= 1e-5 * around.abs().max()
    return bool(flat | ((left - right).abs() > 1e-3 * torch.max(left.abs(), right.abs())))


@dataclass(frozen=True, kw_only=True)
class TailoredActivation(Activation):
    """A named or custom φ, tailored. Pickles and copies by what it was made from.

    Attributes:
        base: φ before.
        tailoring: what was solved for.
        parameter: "gain", "share" or "slope", and its value.
        origin: arguments of `tailored`, after the base.
    """

    base: Activation
    tailoring: Tailoring
    parameter: str
    value: float
    origin: tuple[float, int, str | None]

    @property
    def parameters(self) -> dict[str, float]:
        """Return the parameter that was solved for, and what it was solved for."""
        separation, depth, _ = self.origin
        return {self.parameter: self.value, "1 − c": separation, "layers": depth}

    def __reduce__(self) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
        return tailored, (self.base, *self.origin)


def tailored(base: Activation, separation: float, depth: int, parameter: str | None = "auto") -> TailoredActivation:
    """Return the activation with its parameter solved for; arguments, errors and warnings as in `solve`."""
    return _tailored(base, separation, depth, parameter)


@functools.lru_cache(maxsize=64)
def _tailored(base: Activation, separation: float, depth: int, parameter: str | None) -> TailoredActivation:
    tailoring = solve(base, separation, depth, parameter)
    moved, value, functions = _derived(base, tailoring)
    return TailoredActivation(
        f"{base.name}_d",
        base.label,
        *functions,
        kernel=None if base.kernel is None else base.kernel.tailored(tailoring.gain, tailoring.share),
        base=base,
        tailoring=tailoring,
        parameter=moved,
        value=value,
        origin=(separation, depth, parameter),
    )


def _derived(base: Activation, tailoring: Tailoring) -> tuple[str, float, tuple[Phi, PullBack, PullBack | None]]:
    """Return the parameter, its value, φ and both pull-backs, with as few passes over the signals as possible."""
    gain, share = tailoring.gain, tailoring.share
    if share == 0:
        by_value = base.pull_back_by_value
        return (
            "gain",
            gain,
            (
                functools.partial(tailoring, base.phi),
                lambda g, h: base.pull_back(g, gain * h).mul_(gain),
                None if by_value is None else lambda g, value: by_value(g, value).mul_(gain),
            ),
        )
    if base.name == "lrelu":
        slope = share + (1 - share) * LRELU_SLOPE
        return (
            "slope",
            slope,
            (
                functools.partial(nn.functional.leaky_relu, negative_slope=slope),
                lambda g, h: torch.ops.aten.leaky_relu_backward(g, h, slope, False),
                None,
            ),
        )
    return (
        "share",
        share,
        (
            functools.partial(tailoring, base.phi),
            lambda g, h: torch.lerp(base.pull_back(g, h), g, share),
            None,
        ),
    )
