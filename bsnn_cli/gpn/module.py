"""GPN as a module for anybody's network."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.activations import Activation, get, name_of, normalise
from bsnn_cli.gpn.functions import Phi, in_double
from bsnn_cli.gpn.tailored import Tailoring, solve
from bsnn_cli.settings.choices import DEFAULT_SEPARATION


class GPN(nn.Module):
    """The Gaussian-Poincaré normalised form aφ(h) + b of an activation, for any network.

    `GPN("tanh")`, `GPN(nn.SiLU())`, `GPN(lambda h: torch.tanh(h) + 0.1 * h)` and, tailored to the depth of a network,
    `GPN("tanh", depth=200)` all work; only what can be pickled itself can be pickled inside. a and b are plain numbers:
    they are not trained, are not in the `state_dict`, and stay exact whatever the dtype of the module. They are solved
    once, here: for a φ with parameters, such as `nn.PReLU`, from their values at this moment, so the conditions hold
    at the start of training and drift with the parameters.

    Args:
        activation: a name, an `nn.Module` or another function, as in `normalise`.
        root: which solution b, as in `normalise`.
        depth: layers of the network that the activation is tailored to; None: it is taken as it is.
        separation: 1 − c that inputs at right angles are to keep over these layers, in (0, 1); None: 0.3.
        parameter: what of φ is moved for that: "gain", "share" or "auto", as in `tailored.solve`.

    Attributes:
        a, b: the constants.
        root: the solution taken, "upper" or "lower".
        tailoring: the gain or share of φ that `depth` and `separation` ask for.

    Raises:
        ActivationError: as `normalise`; with a depth also as `tailored.solve`.
    """

    def __init__(
        self,
        activation: str | Activation | Phi,
        root: str = "auto",
        depth: int | None = None,
        separation: float | None = None,
        parameter: str = "auto",
    ) -> None:
        super().__init__()
        known = get(activation) if isinstance(activation, str) else activation
        if depth is None and (separation is not None or parameter != "auto"):
            raise ActivationError(
                f"separation={separation}, parameter={parameter}: count on layers; say how many with depth="
            )
        if depth is None:
            self.tailoring, solution = Tailoring(), normalise(known, root)
        else:
            self.tailoring = solve(known, DEFAULT_SEPARATION if separation is None else separation, depth, parameter)
            phi = known.phi if isinstance(known, Activation) else in_double(known)
            solution = normalise(functools.partial(self.tailoring, phi), root)
        self.name = name_of(known)
        self.activation = known  # not its φ: an `Activation` is pickled by its name
        # A small gain leaves little of φ beside a constant, and the digits of half precision do not reach that far.
        self.promotes = depth is not None and not [*self.parameters(), *self.buffers()]
        self.a, self.b, self.root = solution.a, solution.b, solution.root

    def forward(self, h: Tensor) -> Tensor:
        """Map h elementwise; shape and dtype stay. a and b are applied in at least float32, and so is φ with a depth.

        Raises:
            TypeError: h is not of a floating dtype.
        """
        if not h.is_floating_point():
            raise TypeError(f"GPN({self.name}): takes tensors of a floating dtype, not {h.dtype}; call .float() on it")
        exact = h.to(torch.promote_types(h.dtype, torch.float32)) if self.promotes else h
        value = self.tailoring(self._phi, exact)
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        return (self.a * value + self.b).to(h.dtype)

    def _phi(self, h: Tensor) -> Tensor:
        if isinstance(self.activation, Activation):
            return self.activation.phi(h)
        return self.activation(h.clone())  # nn.ReLU(inplace=True) changes what it is given

    def extra_repr(self) -> str:
        """Return the name, the constants and the root, for `print`."""
        tailoring = "".join(f"{key}={value:.10g}, " for key, value in self.tailoring.changes().items())
        return f"{self.name}, {tailoring}a={self.a:.10g}, b={self.b:.10g}, root={self.root}"
