"""The named activations: everything the program knows about one stands in its entry. Imports no torch.

To add an activation, add an entry; `docs/extending.md` shows how. From the entries come the choices `activation=NAME`,
`NAME_gpn` and `NAME_gpn_d`, the labels of tables, the colours of figures and the functions that networks compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""λ and α of Klambauer et al. 2017, to the last digit of float64."""
GELU_SHARPNESS = 1.702
LRELU_SLOPE = 0.01


class Functions(NamedTuple):
    """An activation and its gradient.

    Attributes:
        phi: maps h to φ(h), a new tensor of any floating dtype, differentiable by autograd.
        pull_back: maps (g, h) to g·φ'(h), the gradient of h from that of φ(h), for float32 and float64; it need not be
            differentiable itself. It changes neither g nor h, is finite for all finite h, agrees with autograd at a
            kink, and has no control flow that depends on the data.
        pull_back_by_value: maps (g, φ(h)) to the same, where φ' follows from the value of φ and costs far less so.
    """

    phi: Callable[[Tensor], Tensor]
    pull_back: Callable[[Tensor, Tensor], Tensor]
    pull_back_by_value: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class NamedActivation:
    """The facts about one activation φ.

    Attributes:
        label: the name in tables and figures.
        functions: returns φ and its gradient when it is called with the module torch, which is not imported here.
        root: the root of b that `activation.root=auto` takes: "upper", or "lower" where the upper one drives norms
            away. `bsnn gpn` tells.
        tailored_by: the parameter that `activation.parameter=auto` changes in the depth-aware form: "gain" where
            lengths are safe with it at 200 layers, else "share"; None if there is no such form.
        untailored: the reason why there is no depth-aware form; empty if there is one.
        corner: True if φ' jumps at 0, or is 0 there, so that no gain makes φ straight.
        kernel: the family of functions of h, p and q that the fast kernels have code for, then p and q: "tanh" is
            tanh(h); "rectifier" is h, or ph below 0; "elu" is qh, or qp(exp(h) − 1) below 0; "swish" is hσ(ph);
            "softplus", "sigmoid" and "mish" have no constants and are for CPUs only. None if φ is in no family: then
            PyTorch's operations compute it.
        colour: the colour of its lines in all figures.
        published: the paper's constants a and b, which belong to the root `auto`; None if the paper has none.
    """

    label: str
    functions: Callable[[Any], Functions]
    root: str
    tailored_by: str | None = None
    untailored: str = ""
    corner: bool = False
    kernel: tuple[str, float, float] | None = None
    colour: str
    published: tuple[float, float] | None = None


def _elu_functions(torch: Any, phi: Callable[[Tensor], Tensor], alpha: float, scale: float) -> Functions:
    backward = torch.ops.aten.elu_backward
    return Functions(
        phi=phi,
        pull_back=lambda g, h: backward(g, alpha, scale, 1, False, h),
        pull_back_by_value=lambda g, value: backward(g, alpha, scale, 1, True, value),
    )


def _exact_gelu_functions(torch: Any) -> Functions:
    """Return h·Φ(h) and its gradient; erfc keeps the digits of Φ at h << 0, which cancel in torch's own gelu."""

    def cumulative(h: Tensor) -> Any:
        return torch.erfc(h * -math.sqrt(0.5)) / 2

    def pull_back(g: Tensor, h: Tensor) -> Any:
        density = torch.exp(h * h / -2) / math.sqrt(2 * math.pi)
        return g * torch.addcmul(cumulative(h), h, density)

    return Functions(phi=lambda h: h * cumulative(h), pull_back=pull_back)


# The operations `torch.ops.aten.…_backward` are those that autograd calls: one pass over the signals, no temporaries.
NAMED_ACTIVATIONS = {
    "tanh": NamedActivation(
        label="Tanh",
        functions=lambda torch: Functions(
            phi=torch.tanh,
            pull_back=lambda g, h: torch.ops.aten.tanh_backward(g, torch.tanh(h)),
            pull_back_by_value=torch.ops.aten.tanh_backward,
        ),
        root="upper",
        tailored_by="gain",
        kernel=("tanh", 0.0, 0.0),
        colour="#0072B2",
        published=(1.4674, 0.3885),
    ),
    "relu": NamedActivation(
        label="ReLU",
        functions=lambda torch: Functions(
            phi=torch.relu,
            pull_back=lambda g, h: torch.ops.aten.threshold_backward(g, h, 0),
        ),
        root="upper",
        untailored="ReLU has no parameter, a gain changes nothing in it; its leaky form has one: "
        "activation=lrelu_gpn_d",
        corner=True,
        kernel=("rectifier", 0.0, 0.0),
        colour="#000000",
        published=(1.4142, 0.0),
    ),
    "lrelu": NamedActivation(  # with torch's default slope
        label="LReLU",
        functions=lambda torch: Functions(
            phi=torch.nn.functional.leaky_relu,
            pull_back=lambda g, h: torch.ops.aten.leaky_relu_backward(g, h, LRELU_SLOPE, False),
        ),
        root="upper",
        tailored_by="share",
        corner=True,
        kernel=("rectifier", LRELU_SLOPE, 0.0),
        colour="#E69F00",
        published=(1.4141, 0.0),
    ),
    "elu": NamedActivation(  # with torch's default α = 1
        label="ELU",
        functions=lambda torch: _elu_functions(torch, torch.nn.functional.elu, 1, 1),
        root="upper",
        tailored_by="gain",
        kernel=("elu", 1.0, 1.0),
        colour="#009E73",
        published=(1.2234, 0.0742),
    ),
    "selu": NamedActivation(
        label="SELU",
        functions=lambda torch: _elu_functions(torch, torch.nn.functional.selu, SELU_ALPHA, SELU_SCALE),
        root="upper",
        tailored_by="share",
        corner=True,
        kernel=("elu", SELU_ALPHA, SELU_SCALE),
        colour="#D55E00",
        published=(0.9660, 0.2585),
    ),
    # h·σ(1.702h): only this form gives the constants that the paper prints for GELU. With the exact h·Φ(h) of the next
    # entry, the printed pair gives E[f'²] = 1.014.
    "gelu": NamedActivation(
        label="GELU",
        functions=lambda torch: Functions(
            phi=lambda h: h * torch.sigmoid(GELU_SHARPNESS * h),
            pull_back=lambda g, h: torch.ops.aten.silu_backward(g, GELU_SHARPNESS * h),
        ),
        root="lower",
        tailored_by="share",
        kernel=("swish", GELU_SHARPNESS, 0.0),
        colour="#CC79A7",
        published=(1.4915, -0.9097),
    ),
    "gelu_exact": NamedActivation(
        label="GELU (exact)",
        functions=_exact_gelu_functions,
        root="lower",
        tailored_by="share",
        colour="#882255",
    ),
    "silu": NamedActivation(
        label="SiLU",
        functions=lambda torch: Functions(phi=torch.nn.functional.silu, pull_back=torch.ops.aten.silu_backward),
        root="lower",
        tailored_by="share",
        kernel=("swish", 1.0, 0.0),
        colour="#56B4E9",
    ),
    "mish": NamedActivation(
        label="Mish",
        functions=lambda torch: Functions(phi=torch.nn.functional.mish, pull_back=torch.ops.aten.mish_backward),
        root="lower",
        tailored_by="share",
        kernel=("mish", 0.0, 0.0),
        colour="#44AA99",
    ),
    "softplus": NamedActivation(
        label="Softplus",
        functions=lambda torch: Functions(
            # torch's default threshold, 20, swaps in h where log(1 + exp(h)) still differs from it by 2e-9.
            phi=lambda h: torch.nn.functional.softplus(h, threshold=40),
            pull_back=lambda g, h: torch.ops.aten.softplus_backward(g, h, 1, 40),
        ),
        root="lower",
        tailored_by="share",
        kernel=("softplus", 0.0, 0.0),
        colour="#999933",
    ),
    "sigmoid": NamedActivation(
        label="Sigmoid",
        functions=lambda torch: Functions(
            phi=torch.sigmoid,
            pull_back=lambda g, h: torch.ops.aten.sigmoid_backward(g, torch.sigmoid(h)),
            pull_back_by_value=torch.ops.aten.sigmoid_backward,
        ),
        root="upper",
        tailored_by="gain",
        kernel=("sigmoid", 0.0, 0.0),
        colour="#332288",
    ),
    "identity": NamedActivation(
        label="Identity",
        functions=lambda torch: Functions(  # noqa: ARG005 - it needs no torch
            phi=lambda h: h.clone(),
            pull_back=lambda g, _: g.clone(),
        ),
        root="upper",
        untailored="the identity is linear and keeps every angle, so there is nothing to tailor",
        kernel=("rectifier", 1.0, 0.0),
        colour="#888888",
    ),
}
"""The facts by name, in the order of tables. The paper's six come first."""
