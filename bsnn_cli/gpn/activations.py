"""Named activations φ with hand-derived derivatives, and their Gaussian-Poincaré normalisation (GPN).

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
from torch import Tensor, nn

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.functions import Phi, autograd_pair, evaluating, in_double, require_elementwise
from bsnn_cli.gpn.gaussian import REACH, IntegrationError, Rule, moment_rule
from bsnn_cli.gpn.kernel_form import Family, KernelForm
from bsnn_cli.settings.choices import ACTIVATION_LABELS
from bsnn_cli.settings.knobs import complaint

ROOTS = ("auto", "upper", "lower")
"""Which solution b; auto: upper unless it drives norms away (χ > 1), then lower. That is the published choice."""

PUBLISHED = {
    "tanh": (1.4674, 0.3885),
    "relu": (1.4142, 0.0),
    "lrelu": (1.4141, 0.0),
    "elu": (1.2234, 0.0742),
    "selu": (0.9660, 0.2585),
    "gelu": (1.4915, -0.9097),
}
"""The paper's a and b, which belong to the root `auto`."""

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""λ and α of Klambauer et al. 2017, to the last digit of float64."""
GELU_SHARPNESS = 1.702
LRELU_SLOPE = 0.01

SEEN = 10.0
"""|h| beyond which N(0, 1) has a probability of 1e-23."""

ROUNDING = 1e-14
"""Means of f and b itself are as good as 0 below this."""

PullBack = Callable[[Tensor, Tensor], Tensor]
"""Maps (g, h) to a new tensor g·φ'(h)."""

PhiAndDerivative = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps h to (φ(h), φ'(h)), both new tensors of its shape and dtype."""


def _identity(h: Tensor) -> Tensor:
    return h.clone()


def _sigmoid_gelu(h: Tensor) -> Tensor:
    return h * torch.sigmoid(GELU_SHARPNESS * h)


def _softplus(h: Tensor) -> Tensor:
    # torch's default threshold, 20, swaps in h where log(1 + exp(h)) still differs from it by 2e-9.
    return nn.functional.softplus(h, threshold=40)


def _gelu(h: Tensor) -> Tensor:
    return h * torch.erfc(h * -math.sqrt(0.5)) / 2


def _gelu_pull_back(g: Tensor, h: Tensor) -> Tensor:
    """Of h·Φ(h), whose derivative is Φ + h·p(h). erfc keeps the digits of Φ at h << 0, which torch's gelu cancels."""
    cumulative = torch.erfc(h * -math.sqrt(0.5)) / 2
    density = torch.exp(h * h / -2) / math.sqrt(2 * math.pi)
    return g * torch.addcmul(cumulative, h, density)


@dataclass(frozen=True)
class Activation:
    """A named activation. Pickles and copies by its name.

    Attributes:
        name: as in configs, such as "tanh".
        label: as in tables, such as "Tanh".
        phi: φ, a new tensor of any floating dtype, differentiable by autograd.
        pull_back: (g, h) → g·φ'(h), the gradient of h from that of φ(h), for float32 and float64; not differentiable
            itself. Leaves both alone, φ' is finite for all finite h, and autograd's at a kink. No control flow on data.
        pull_back_by_value: the same from (g, φ(h)), where φ' follows from the value of φ and costs far less that way.
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
        """What φ depends on besides h, where that has been chosen, such as a gain; for people to see."""
        return {}

    def derivative(self, h: Tensor) -> Tensor:
        """φ'(h), a new tensor of the shape and dtype of h."""
        return self.pull_back(torch.ones_like(h), h)

    def __reduce__(self) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
        return get, (self.name,)


_aten = torch.ops.aten  # the kernels that autograd calls: one pass over the signals, no temporaries


def _elu_pull_backs(alpha: float, scale: float) -> tuple[PullBack, PullBack]:
    return (
        lambda g, h: _aten.elu_backward(g, alpha, scale, 1, False, h),
        lambda g, value: _aten.elu_backward(g, alpha, scale, 1, True, value),
    )


def _entry(
    name: str,
    phi: Phi,
    pull_back: PullBack,
    pull_back_by_value: PullBack | None = None,
    *,
    kernel: KernelForm | None = None,
) -> Activation:
    return Activation(name, ACTIVATION_LABELS[name], phi, pull_back, pull_back_by_value, kernel)


_ENTRIES = (
    _entry(
        "tanh",
        torch.tanh,
        lambda g, h: _aten.tanh_backward(g, torch.tanh(h)),
        _aten.tanh_backward,
        kernel=KernelForm(Family.TANH),
    ),
    _entry("relu", torch.relu, lambda g, h: _aten.threshold_backward(g, h, 0), kernel=KernelForm(Family.RECTIFIER)),
    _entry(
        "lrelu",
        nn.functional.leaky_relu,
        lambda g, h: _aten.leaky_relu_backward(g, h, LRELU_SLOPE, False),
        kernel=KernelForm(Family.RECTIFIER, LRELU_SLOPE),
    ),
    _entry("elu", nn.functional.elu, *_elu_pull_backs(1, 1), kernel=KernelForm(Family.ELU, 1.0, 1.0)),
    _entry(
        "selu",
        nn.functional.selu,
        *_elu_pull_backs(SELU_ALPHA, SELU_SCALE),
        kernel=KernelForm(Family.ELU, SELU_ALPHA, SELU_SCALE),
    ),
    _entry(
        "gelu",
        _sigmoid_gelu,
        lambda g, h: _aten.silu_backward(g, GELU_SHARPNESS * h),
        kernel=KernelForm(Family.SWISH, GELU_SHARPNESS),
    ),
    _entry("gelu_exact", _gelu, _gelu_pull_back),
    _entry("silu", nn.functional.silu, _aten.silu_backward, kernel=KernelForm(Family.SWISH, 1.0)),
    _entry("mish", nn.functional.mish, _aten.mish_backward),
    _entry("softplus", _softplus, lambda g, h: _aten.softplus_backward(g, h, 1, 40)),
    _entry("sigmoid", torch.sigmoid, lambda g, h: _aten.sigmoid_backward(g, torch.sigmoid(h)), _aten.sigmoid_backward),
    _entry("identity", _identity, lambda g, _: g.clone(), kernel=KernelForm(Family.RECTIFIER, 1.0)),
)
ACTIVATIONS = {activation.name: activation for activation in _ENTRIES}
"""All named activations; `lrelu` has slope 0.01 and `elu` α = 1, torch's defaults.

`gelu` is h·σ(1.702h): only this form gives the constants that the paper prints for GELU. With the exact h·Φ(h), which
is `gelu_exact`, the printed pair gives E[f'²] = 1.014.
"""


def get(name: str) -> Activation:
    """The activation of a name.

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
    """The constants (a, b) that make aφ + b Gaussian-Poincaré normalised; arguments and errors as in `normalise`.

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
    """Both solutions, upper first."""
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
    """What messages call it."""
    if isinstance(activation, Activation):
        return activation.name
    return getattr(activation, "__name__", type(activation).__name__)
