"""Activations φ with hand-derived derivatives, and their Gaussian-Poincaré normalisation (GPN).

For h ~ N(0, 1) the paper (Lu, Gould and Ajanthan 2020, arXiv 2006.12169) asks for f = aφ + b with
E[f(h)²] = E[f'(h)²] = 1. Then signals keep their length through orthogonal layers, forwards and backwards. The two
equations give a = 1/√E[φ'²], and b as one of the two roots −aE[φ] ± √(1 − a²Var[φ]).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.functions import Phi, autograd_pair, evaluating, in_double, require_elementwise
from bsnn_cli.gpn.gaussian import REACH, IntegrationError, Rule, moment_rule
from bsnn_cli.gpn.kernel_form import Family, KernelForm
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS, NamedActivation
from bsnn_cli.settings.options import complaint

ROOTS = ("auto", "upper", "lower")
"""Which solution b; auto: upper unless it drives norms away (χ > 1), then lower. That is the published choice."""

SEEN = 10.0
"""|h| beyond which N(0, 1) has a probability of 1e-23."""

ROUNDING = 1e-14
"""Means of f and b itself are as good as 0 below this."""

PullBack = Callable[[Tensor, Tensor], Tensor]
"""Maps (g, h) to a new tensor g·φ'(h)."""

PhiAndDerivative = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps h to (φ(h), φ'(h)), both new tensors of its shape and dtype."""


@dataclass(frozen=True)
class Activation:
    """A named activation. Pickles and copies by its name.

    Attributes:
        name: as in configs, such as "tanh".
        label: as in tables, such as "Tanh".
        phi, pull_back, pull_back_by_value: φ and its gradient, as in `named_activations.Functions`.
        kernel: what the fast kernels have code for; None if they do not cover φ.
    """

    name: str
    label: str
    phi: Phi
    pull_back: PullBack
    pull_back_by_value: PullBack | None = None
    kernel: KernelForm | None = None

    @property
    def parameters(self) -> dict[str, float]:
        """Return what φ depends on besides h, where that has been chosen, such as a gain; for people to see."""
        return {}

    def derivative(self, h: Tensor) -> Tensor:
        """Return φ'(h), a new tensor of the shape and dtype of h."""
        return self.pull_back(torch.ones_like(h), h)

    def __reduce__(self) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
        return get, (self.name,)


def _of_entry(name: str, entry: NamedActivation) -> Activation:
    kernel = None
    if entry.kernel is not None:
        family, p, q = entry.kernel
        kernel = KernelForm(Family[family.upper()], p, q)
    return Activation(name, entry.label, *entry.functions(torch), kernel=kernel)


ACTIVATIONS = {name: _of_entry(name, entry) for name, entry in NAMED_ACTIVATIONS.items()}
"""All named activations, made from `settings.named_activations`."""


def get(name: str) -> Activation:
    """Return the activation of a name.

    Raises:
        ActivationError: unknown name; lists the choices and suggests the nearest.
    """
    if name not in ACTIVATIONS:
        raise ActivationError(complaint("activation", name, "one of " + ", ".join(ACTIVATIONS), ACTIVATIONS))
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class Normalisation:
    """f = aφ + b with E[f²] = E[f'²] = 1 under h ~ N(0, 1), and the moments it comes from.

    Attributes:
        a, b: the paper's constants; a > 0.
        root: "upper" or "lower", the sign of E[f] = ±√(1 − a²Var[φ]).
        chi: slope χ = F'(1) = E[h f f'] of the variance map F(q) = E[f(√q h)²]. Over many layers a squared length per
            unit near 1 is pulled back to 1 if χ < 1, driven away if χ > 1, and left to a random walk if χ = 1.
        mean, second_moment, derivative_second_moment: E[φ], E[φ²], E[φ'²] of φ itself.
        normalised_second_moment, normalised_derivative_second_moment: E[f²] and E[f'²] as computed: 1.
    """

    a: float
    b: float
    root: str
    chi: float
    mean: float
    second_moment: float
    derivative_second_moment: float
    normalised_second_moment: float
    normalised_derivative_second_moment: float


def normalise(activation: str | Activation | Phi, root: str = "auto") -> Normalisation:
    """Solve for the Gaussian-Poincaré normalised form of a function, in float64.

    Args:
        activation: a name, what `get` gives for it, or an elementwise function of tensors that autograd
            differentiates, such as an `nn.Module`: continuous, piecewise differentiable, kinks anywhere. It is called
            with float64 tensors of shape (N,); of a module, a float64 copy on the CPU is.
        root: which solution b: "upper", "lower", or "auto": upper unless its χ > 1, then lower. The upper form of −φ is
            the lower form of φ with its sign changed, so −φ can be given another function than φ: −ReLU is.

    Raises:
        ActivationError: unknown name or root, or a function without such a form, with the reason and the place.
    """
    if root not in ROOTS:
        raise ActivationError(complaint("root", root, "one of " + ", ".join(ROOTS), ROOTS))
    known = get(activation) if isinstance(activation, str) else activation
    upper, lower = _both_roots_of(known) if isinstance(known, Activation) else _both_roots_of_function(known)
    if root == "auto":
        # Homogeneous functions such as ReLU have χ = 1 exactly, which rounding must not turn into an instability.
        return upper if upper.chi <= 1 + 1e-9 else lower
    return upper if root == "upper" else lower


def gpn_coefficients(activation: str | Activation | Phi, root: str = "auto") -> tuple[float, float]:
    """Return the constants (a, b) that make aφ + b Gaussian-Poincaré normalised; arguments, errors as in `normalise`.

    >>> a, b = gpn_coefficients("tanh")
    >>> round(a, 4), round(b, 4)
    (1.4674, 0.3885)
    """
    solution = normalise(activation, root)
    return solution.a, solution.b


@functools.cache
def _both_roots_of(activation: Activation) -> tuple[Normalisation, Normalisation]:
    return _both_roots(activation.name, activation.phi, lambda h: (activation.phi(h), activation.derivative(h)))


def _both_roots_of_function(phi: Phi) -> tuple[Normalisation, Normalisation]:
    name = name_of(phi)
    with evaluating(name):
        double = in_double(phi)
        require_elementwise(name, double)
        return _both_roots(name, double, functools.partial(autograd_pair, double))


def _both_roots(name: str, phi: Phi, pair: PhiAndDerivative) -> tuple[Normalisation, Normalisation]:
    """Solve for both roots, the upper one first."""
    value, derivative = pair(torch.linspace(-REACH, REACH, 15201, dtype=torch.float64, device="cpu"))
    if derivative.abs().max() <= 1e-13 * value.abs().max() < math.inf:
        raise ActivationError(
            f"activation {name}: its derivative is 0 everywhere, so no factor a brings E[φ'²] to 1: a constant, a step"
            " function such as sign(h), or a detached result; give a φ whose derivative autograd sees"
        )
    try:
        rule = moment_rule(phi, pair)
    except IntegrationError as error:
        raise ActivationError(
            f"activation {name}: {error}, so it has no Gaussian-Poincaré normalised form;"
            " needed is a continuous φ with finite E[φ²] and E[φ'²], such as tanh(5h) in place of sign(h)"
        ) from error
    value, derivative = pair(rule.nodes)
    out_of_sight = derivative * (rule.nodes.abs() > SEEN)
    if rule.inner(out_of_sight, out_of_sight) > 0.5 * rule.inner(derivative, derivative):
        raise ActivationError(
            f"activation {name}: is flat but for |h| > {SEEN:g}, where no unit of a network ever is, so its normalised"
            " form would be a constant there; shift or scale h so that φ bends near 0"
        )
    return _solution(rule, value, derivative, "upper"), _solution(rule, value, derivative, "lower")


def _solution(rule: Rule, value: Tensor, derivative: Tensor, root: str) -> Normalisation:
    """Solve E[f²] = E[f'²] = 1 from the values of φ and φ' at the nodes."""
    h = rule.nodes
    mean, slope = rule.inner(value, 1), rule.inner(derivative, 1)
    derivative_second_moment = rule.inner(derivative, derivative)
    a = 1 / math.sqrt(derivative_second_moment)
    # 1 − a²Var[φ] = a²(E[φ'²] − Var[φ]) cancels where φ is nearly linear. Taking the best line out of φ takes slope²
    # off both terms, and leaves the first at least twice the second.
    rest, derivative_rest = value - mean - slope * h, derivative - slope
    discriminant = a * a * (rule.inner(derivative_rest, derivative_rest) - rule.inner(rest, rest))
    b = -a * mean + math.copysign(math.sqrt(max(discriminant, 0)), 1 if root == "upper" else -1)
    b = b if abs(b) > ROUNDING else 0.0  # ReLU stays homogeneous, the identity stays itself
    f, slope_of_f = a * value + b, a * derivative
    return Normalisation(
        a=a,
        b=b,
        root=root,
        chi=rule.inner(h * f, slope_of_f),
        mean=mean if abs(a * mean) > ROUNDING else 0.0,
        second_moment=rule.inner(value, value),
        derivative_second_moment=derivative_second_moment,
        normalised_second_moment=rule.inner(f, f),
        normalised_derivative_second_moment=rule.inner(slope_of_f, slope_of_f),
    )


def name_of(activation: Activation | Phi) -> str:
    """Return the name of an activation or function for messages."""
    if isinstance(activation, Activation):
        return activation.name
    return getattr(activation, "__name__", type(activation).__name__)
