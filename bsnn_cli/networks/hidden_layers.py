"""The hidden layers of a fleet as stacked tensors: what an engine computes with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsnn_cli.networks.batch_norm import NORM_EPS, Normalised
from bsnn_cli.networks.members import Member, grouped
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.orthogonal import Drift
from bsnn_cli.networks.parameters import NORM_STATISTICS, NORM_WEIGHTS, decayed
from bsnn_cli.networks.signals import Signals
from bsnn_cli.settings.config import ModelConfig


class HiddenLayers:
    """L hidden layers of K networks. With V the free matrix of a layer, W_i = v_i/‖v_i‖ are its unit rows.

    Args:
        model: the shape and constraint that all members share.
        members: in contiguous groups of equal activations.
        tensors: all tensors of the fleet by name, see `parameters.shapes`; they are changed in place.
        optimiser: of all members.

    Attributes:
        V, M: (K, L, n, n) matrices and their momentum.
        momentum: the factor of M in an engine's update: μ, or 1 where `decay` has made that factor already.
        alive: (K,) False for a member that has diverged.
        a: (K, 1, 1) factor of each activation.
        step_size: (K,) −lr of this step.
        weight_decay: (K,) λ of each member, or None if no member has any.
        decaying: the same if it acts on V, else None.
        norm: (L, K, n) lengths of the rows of V, as of the last measurement; 1 unless rows are scaled.
        inverse_norm, scale: (L, K, 1, n), 1/‖v‖ and a/‖v‖: factors of the signals forwards and backwards.
        groups: members with equal activations.
        drift: the bookkeeping of orthogonal matrices, or None.
    """

    def __init__(
        self, model: ModelConfig, members: Sequence[Member], tensors: dict[str, Tensor], optimiser: Optimiser
    ) -> None:
        self.model, self.members, self.tensors, self.optimiser = model, tuple(members), tensors, optimiser
        self.V, self.M, self.alive = tensors["hidden.weight"], tensors["momentum.hidden.weight"], tensors["alive"]
        self.device, self.dtype = self.V.device, self.V.dtype
        self.unit_rows = model.weights == "unit_rows"
        self.a = self.V.new_tensor([member.a for member in members]).view(-1, 1, 1)
        self.step_size = self.V.new_tensor([-member.lr for member in members])
        self._start_size = self.step_size.new_tensor([-member.lr for member in members], dtype=torch.float64)
        self._schedule = optimiser.schedule.table(self.device) if optimiser.schedule.varies else None
        self.weight_decay: Tensor | None = None
        if any(member.weight_decay for member in members):
            self.weight_decay = self.V.new_tensor([member.weight_decay for member in members])
        self.decaying = self.weight_decay if "hidden.weight" in decayed(model) else None
        self.momentum = optimiser.momentum if self.decaying is None else 1.0
        self._momentum = self.V.new_tensor(optimiser.momentum)
        self.norm = self.V.new_ones(model.depth, len(members), model.width)
        self.inverse_norm = self.norm.new_empty(model.depth, len(members), 1, model.width)
        self.scale = torch.empty_like(self.inverse_norm)
        self.groups = grouped(members, self.norm)
        self.drift = Drift(tensors, optimiser.momentum) if model.weights == "orthogonal" else None

    def follow_schedule(self, steps: Tensor) -> None:
        """Set `step_size` to that of the next step. On a GPU this is part of the step that is captured.

        Args:
            steps: (K,) made by each member; those of a member that has diverged do not matter.
        """
        if self._schedule is not None:
            factors = self._schedule[steps.clamp(max=len(self._schedule) - 1)]
            self.step_size.copy_(self._start_size * factors)

    def lr(self, k: int) -> float:
        """Return the learning rate of a member in this step; the host waits for the device."""
        return -float(self.step_size[k])

    def decay(self, k: int) -> None:
        """M ← μM + λV of a living member, ahead of an engine's update: the gradient of ½λ‖V‖² is λV."""
        assert self.decaying is not None
        alive = self.alive[k]
        self.M[k].mul_(torch.where(alive, self._momentum, 1))
        self.M[k].addcmul_(self.V[k], torch.where(alive, self.decaying[k], 0))

    def measure_rows(self) -> None:
        """Measure the lengths of the rows of V, and derive the factors of the signals from them."""
        if self.unit_rows:
            for layer, norm in enumerate(self.norm):
                torch.linalg.vector_norm(self.V[:, layer], dim=-1, out=norm)
        self.rescale()

    def rescale(self) -> None:
        """Derive the factors of the signals from `norm`."""
        torch.reciprocal(self.norm.unsqueeze(2), out=self.inverse_norm)
        torch.mul(self.inverse_norm, self.a, out=self.scale)

    def tangent(self, signals: Signals) -> Tensor:
        """Return s/‖v‖² of each row, (L, K, n, 1): what the gradient of V subtracts per unit of V."""
        return (signals.s.unsqueeze(2) * self.scale * self.inverse_norm).mT

    def running_normalisation(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return γ, β, mean and 1/√(variance + eps) of batch normalisation in evaluation mode, (K, L, n) each."""
        if self.model.norm != "batch":
            return None
        gain, shift, mean, variance = (self.tensors[name] for name in (*NORM_WEIGHTS, *NORM_STATISTICS))
        return gain, shift, mean, torch.rsqrt(variance + NORM_EPS)

    def normalisation(self, signals: Signals, layer: int) -> Normalised | None:
        """Return the batch normalisation of a layer. The memory of d holds γĥ + β until the backward pass fills d."""
        if signals.norm is None:
            return None
        gain, shift = (self.tensors[name][:, layer] for name in NORM_WEIGHTS)
        return Normalised(gain, shift, signals.norm.layers[layer], signals.layers[layer].d)
