"""The fast path: K networks of one shape trained in lockstep on stacked tensors, with a hand-derived backward pass.

A member of a fleet gives the same numbers as the same network alone. Weights are stacked as (K, L, n, n), signals as
(K, B, n), so that every product is a batched one; activations act on contiguous slices of K. With V the free matrix of
a layer, W_i = v_i/‖v_i‖ its unit rows, x the signal below it and d = ∂E/∂h, W is never built:

    h      = (x Vᵀ) / ‖v‖                                       a divide of each column of the product
    ∂E/∂x  = (d/‖v‖) V
    ∂E/∂V  = (d/‖v‖)ᵀ x − diag(s/‖v‖²) V,   s_j = Σ_batch d_j h_j

The second term keeps the update tangent to the unit sphere of each row; it costs a column sum. Where the weights are
orthogonal, the gradient is projected to the tangent space of the orthogonal group, with signals that are there anyway:

    ½(∂E/∂W − W (∂E/∂W)ᵀ W) = ½(dᵀx − hᵀ(dW))

The whole backward chain runs before any weight changes, so that a step whose gradient is not finite can be left out as
a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.gpn.activations import Activation
from bsnn_cli.networks import parameters
from bsnn_cli.networks.batch_norm import NORM_EPS, NORM_MOMENTUM, BatchNorm, denormalise_each, normalise_each
from bsnn_cli.networks.orthogonal import Drift, longest_column, orthogonality_error
from bsnn_cli.networks.parameters import NORM_STATISTICS
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers
from bsnn_cli.settings.config import ModelConfig

PARALLEL_WIDTH = 200
"""From this width on, updating a matrix takes a core long enough to be worth handing to it."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What may differ between the networks of a fleet.

    Attributes:
        activation: φ and φ'.
        a, b: the network applies a·φ(h) + b; 1 and 0 without GPN.
        seed: of initial weights and batch order.
        lr: learning rate.
    """

    activation: Activation
    a: float
    b: float
    seed: int
    lr: float


class Fleet:
    """K networks in lockstep.

    Args:
        model: the shape and constraint that all members share.
        members: in contiguous groups of equal activations.
        inputs: size of one input.
        classes: number of outputs.
        momentum: μ of the gradient sum.
        states: what `member_state` returned for each member; None starts from the members' seeds.
        device, dtype: where and in which precision to compute.

    Attributes:
        tensors: everything a run stores, by the names of `parameters.shapes`, stacked on a leading dimension K, and
            the momentum of each trained tensor as `momentum.<name>`.
        steps: (K,) updates applied to each member.
        alive: (K,) False from the step on whose loss or gradient was not finite; that step was not applied.
    """

    def __init__(
        self,
        model: ModelConfig,
        members: Sequence[Member],
        *,
        inputs: int,
        classes: int,
        momentum: float,
        states: Sequence[dict[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.members, self.momentum = model, tuple(members), momentum
        K = len(members)
        self.device, self.dtype = torch.device(device), dtype
        shapes = parameters.shapes(model, inputs, classes)
        self.trained = tuple(name for name in shapes if name not in NORM_STATISTICS)
        if states is None:
            self.tensors = self._start(shapes)
        else:
            self.tensors = {name: _stack([state[name] for state in states]).to(self.device) for name in states[0]}
        self.steps = self.tensors["steps"]
        self.alive = self.tensors["alive"]
        self._groups = self._grouped()
        self._a = torch.tensor([one.a for one in members], device=self.device, dtype=dtype).view(-1, 1, 1)
        self._step_size = torch.tensor([-one.lr for one in members], device=self.device, dtype=dtype)
        self._V, self._M = (self.tensors[name].unbind(1) for name in ("hidden.weight", "momentum.hidden.weight"))
        self._norm = torch.ones(model.depth, K, model.width, device=self.device, dtype=dtype)
        self._drift = Drift(self.tensors, momentum) if model.weights == "orthogonal" else None
        if model.weights == "unit_rows":
            for V, norm in zip(self._V, self._norm, strict=True):
                torch.linalg.vector_norm(V, dim=-1, out=norm)
        self._inverse_norm = self._norm.new_empty(model.depth, K, 1, model.width)
        self._scale = torch.empty_like(self._inverse_norm)
        self._rescale()
        self._signals: dict[int, Signals] = {}
        parallel = self.device.type == "cpu" and model.width >= PARALLEL_WIDTH
        self._workers = Workers(torch.get_num_threads() if parallel else 1)

    def _start(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        K = len(self.members)
        tensors = {name: torch.empty(K, *shape, device=self.device, dtype=self.dtype) for name, shape in shapes.items()}
        for k, member in enumerate(self.members):
            parameters.initialise({name: tensor[k] for name, tensor in tensors.items()}, self.model, member.seed)
        momenta = {f"momentum.{name}": torch.zeros_like(tensors[name]) for name in self.trained}
        steps = torch.zeros(K, dtype=torch.int64, device=self.device)
        state = tensors | momenta | {"steps": steps, "alive": torch.ones_like(steps, dtype=torch.bool)}
        if self.model.weights == "orthogonal":
            state |= Drift.start(tensors["hidden.weight"], K, self.model.depth)
        return state

    def _grouped(self) -> list[tuple[Activation, float, Tensor, slice]]:
        """Runs of members with the same a·φ + b: φ, a, b and where they are."""
        groups, first = [], 0
        for (activation, a, b), alike in itertools.groupby(self.members, lambda one: (one.activation, one.a, one.b)):
            last = first + len(list(alike))
            groups.append((activation, a, torch.tensor(b, device=self.device, dtype=self.dtype), slice(first, last)))
            first = last
        return groups

    def member_state(self, k: int) -> dict[str, Tensor]:
        """All tensors of member k, on the CPU; views where the fleet is there."""
        return {name: tensor[k].cpu() for name, tensor in self.tensors.items()}

    def parameter_count(self) -> int:
        """Trained values of one member."""
        return sum(self.tensors[name][0].numel() for name in self.trained)

    def orthogonality_error(self) -> Tensor:
        """Largest |WᵀW − I| over all entries and layers of each member; (K,).

        Orthogonal weights: the largest since this was last asked, with every error from before a retraction.
        """
        if self._drift is not None:
            return self._drift.largest_error(self.tensors["hidden.weight"])
        error = torch.zeros(len(self.members), device=self.device, dtype=self.dtype)
        for V, inverse_norm in zip(self._V, self._inverse_norm, strict=True):
            error = torch.maximum(error, orthogonality_error(V * inverse_norm.mT))
        return error

    def logits(self, inputs: Tensor) -> Tensor:
        """Evaluation mode: (B, inputs), the same for all members, → (K, B, classes)."""
        t = self.tensors
        x = _affine(inputs.expand(len(self.members), *inputs.shape), t["input.weight"], t["input.bias"])
        value = torch.empty_like(x)
        for layer in range(self.model.depth):
            h = torch.bmm(x, self._V[layer].mT).mul_(self._inverse_norm[layer])
            if self.model.norm == "batch":
                scale = t["norm.weight"][:, layer] * torch.rsqrt(t["norm.running_var"][:, layer] + NORM_EPS)
                h.sub_(t["norm.running_mean"][:, layer].unsqueeze(1)).mul_(scale.unsqueeze(1))
                h.add_(t["norm.bias"][:, layer].unsqueeze(1))
            self._activate(h, value)
            x, value = value, x
        return _affine(x, t["output.weight"], t["output.bias"])

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One update of every member by stochastic gradient descent with momentum.

        The weights of a member whose loss or gradient is not finite stay as they are, now and in all later steps.
        A gradient counts as finite if the square of its norm is: rows of V longer than that could not be measured.

        Args:
            inputs: (K, B, inputs); each member has a batch of its own.
            labels: (K, B) class indices.

        Returns:
            (K,) mean cross-entropy of each batch before the update, in nats.
        """
        w = self._signals_of(inputs.shape[1])
        parts = w.split(1 if w.norm is not None else self._workers.count)
        B, size = inputs.shape[1], parts[0].error.shape[1]
        work = list(zip(parts, torch.split(inputs, size, 1), torch.split(labels, size, 1), strict=True))
        self._workers.each(lambda part: self._differentiate(part[0], part[1], part[2], 1 / B), work)
        if parts[0] is not w:
            torch.sum(torch.stack([part.s for part in parts]), 0, out=w.s)
            torch.sum(torch.stack([part.loss for part in parts]), 0, out=w.loss)
        gradients = {
            "input.weight": w.g[0].mT @ inputs,
            "input.bias": w.g[0].sum(1),
            "output.weight": w.error.mT @ w.x[-1],
            "output.bias": w.error.sum(1),
        }
        if w.norm is not None:
            gradients["norm.weight"] = w.norm.all.gain_gradient.transpose(0, 1)
            gradients["norm.bias"] = w.norm.all.shift_gradient.transpose(0, 1)
        self.alive &= _finite(w, gradients)
        self.steps += self.alive
        self._update(w, gradients)
        return w.loss.clone()

    def _signals_of(self, batch: int) -> Signals:
        """Memory for the signals of a batch of this size, the same every time."""
        if batch not in self._signals:
            shape = self.model.depth, len(self.members), batch, self.model.width
            self._signals[batch] = Signals.empty(
                shape,
                classes=self.tensors["output.bias"].shape[1],
                norm=self.model.norm == "batch",
                every_g=self.model.weights == "orthogonal",
                like=self._norm,
            )
        return self._signals[batch]

    def _differentiate(self, w: Signals, inputs: Tensor, labels: Tensor, share: float) -> None:
        """Loss and signals of some samples; without batch normalisation they have nothing to do with the others.

        Args:
            w: filled.
            inputs: of these samples, (K, B, inputs).
            labels: (K, B).
            share: of one sample in the mean of the batch.
        """
        log_p = torch.log_softmax(self._forward(w, inputs), dim=-1)
        target = labels.unsqueeze(-1)
        torch.mul(log_p.gather(-1, target).sum(dim=(1, 2)), -share, out=w.loss)
        torch.mul(log_p.exp().scatter_add(-1, target, log_p.new_full(target.shape, -1)), share, out=w.error)
        self._backward(w, torch.bmm(w.error, self.tensors["output.weight"]))

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make a step for each of some batches of the training split.

        Args:
            data: on the fleet's device.
            batches: indices (K, B) of each.

        Yields:
            what `step` returns, after each; to be used before the next.
        """
        for indices in batches:
            yield self.step(*data.batch(indices, self.dtype))

    def anyone_alive(self) -> bool:
        """Whether there is a member left to train."""
        return bool(self.alive.any())

    def _activate(self, h: Tensor, out: Tensor) -> list[Tensor | None]:
        """a·φ(h) + b into `out`, both (K, B, n); returns what `_pull_back` wants to know of each group's φ(h)."""
        values = []
        for activation, a, b, group in self._groups:
            value = activation.phi(h[group])
            torch.add(b, value, alpha=a, out=out[group])
            values.append(None if activation.pull_back_by_value is None else value)
        return values

    def _pull_back(self, g: Tensor, h: Tensor, values: list[Tensor | None]) -> Tensor:
        """g·φ'(h), all (K, B, n): the gradient of φ(h) becomes that of h. The factor a is left to what comes next."""
        parts = []
        for (activation, _, _, group), value in zip(self._groups, values, strict=True):
            if activation.pull_back_by_value is not None and value is not None:
                parts.append(activation.pull_back_by_value(g[group], value))
            else:
                parts.append(activation.pull_back(g[group], h[group]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _forward(self, w: Signals, inputs: Tensor) -> Tensor:
        """Fill the signals upwards; (K, B, inputs) → logits (K, B, classes)."""
        t = self.tensors
        w.x[0].copy_(_affine(inputs, t["input.weight"], t["input.bias"]))
        for layer, (V, x, h, above) in enumerate(zip(self._V, w.x[:-1], w.h, w.x[1:], strict=True)):
            torch.bmm(x, V.mT, out=h)
            self._lift(w, layer, h, above)
        return _affine(w.x[-1], t["output.weight"], t["output.bias"])

    def _backward(self, w: Signals, g: Tensor) -> None:
        """Fill `w.d`, `w.g` and `w.s` downwards, from ∂E/∂x of the top, (K, B, n)."""
        for layer, (V, h, d, below) in reversed(list(enumerate(zip(self._V, w.h, w.d, w.g, strict=True)))):
            self._lower(w, layer, g, h, d)
            g = torch.bmm(d, V, out=below)
        if w.norm is not None:
            w.norm.finish(self._a.squeeze(2), self.tensors["norm.weight"].transpose(0, 1), out=w.s)

    def _lift(self, w: Signals, layer: int, h: Tensor, above: Tensor) -> None:
        """From the product xVᵀ in h to h itself, and the signal above."""
        if self.model.weights == "unit_rows":
            h.mul_(self._inverse_norm[layer])
        if w.norm is not None:
            gain, shift = self.tensors["norm.weight"][:, layer], self.tensors["norm.bias"][:, layer]
            normalise_each(h, gain, shift, w.norm.members[layer], out=w.d[layer])
            h = w.d[layer]
        w.values.append(self._activate(h, above))

    def _lower(self, w: Signals, layer: int, g: Tensor, h: Tensor, d: Tensor) -> None:
        """From ∂E/∂x above a layer to d and s."""
        if w.norm is not None:
            gain = self.tensors["norm.weight"][:, layer]
            u = self._pull_back(g, d, w.values.pop())
            denormalise_each(u, h, gain, self._scale[layer], w.norm.members[layer], out=d)
            return
        u = self._pull_back(g, h, w.values.pop())
        if self.model.weights == "unit_rows":
            torch.linalg.vecdot(u, h, dim=1, out=w.s[layer])
        torch.mul(u, self._scale[layer], out=d)

    def _update(self, w: Signals, gradients: dict[str, Tensor]) -> None:
        """M ← μM + ∂E/∂V and V ← V − lr·M of the members that are alive."""
        tangent = (w.s.unsqueeze(2) * self._scale * self._inverse_norm).mT  # s/‖v‖² of each row
        self._update_matrices(w, tangent)
        self._rescale()
        step_size = torch.where(self.alive, self._step_size, 0)
        for name, gradient in gradients.items():
            shape = (-1, *[1] * (gradient.dim() - 1))
            gradient.masked_fill_(~self.alive.view(shape), 0)  # 0 · NaN is NaN
            momentum = self.tensors[f"momentum.{name}"].mul_(self.momentum).add_(gradient)
            self.tensors[name].addcmul_(momentum, step_size.view(shape))
        if w.norm is not None:
            self._track_statistics(w.norm)

    def _update_matrices(self, w: Signals, tangent: Tensor) -> None:
        living = [k for k, alive in enumerate(self.alive.tolist()) if alive]
        places = list(itertools.product(range(self.model.depth), living))
        self._workers.each(lambda place: self._move(w, tangent, *place), places)

    def _move(self, w: Signals, tangent: Tensor, layer: int, k: int) -> None:
        """Update one matrix, by one core while its V and M are in that core's reach."""
        V, M, d, x = self._V[layer][k], self._M[layer][k], w.d[layer, k], w.x[layer, k]
        lr = self.members[k].lr
        if self._drift is not None:
            M.addmm_(d.mT, x, beta=self.momentum, alpha=0.5).addmm_(w.h[layer, k].mT, w.g[layer, k], alpha=-0.5)
            if self._drift.advance(k, slice(layer, layer + 1), longest_column(M), lr, self.alive[k]):
                self._drift.complete(k, layer, V, M, lr)
            else:
                V.add_(M, alpha=-lr)
            return
        M.addmm_(d.mT, x, beta=self.momentum)
        if self.model.weights == "unit_rows":
            V.add_(M.addcmul_(V, tangent[layer, k], value=-1), alpha=-lr)
            torch.linalg.vector_norm(V, dim=-1, out=self._norm[layer, k])
        else:
            V.add_(M, alpha=-lr)

    def _track_statistics(self, norm: BatchNorm) -> None:
        """Move the running statistics of living members towards those of the batch."""
        for name, batch in (("norm.running_mean", norm.all.mean), ("norm.running_var", norm.all.variance)):
            running = self.tensors[name]
            moved = running.lerp(batch.transpose(0, 1), NORM_MOMENTUM)
            running.copy_(torch.where(self.alive.view(-1, 1, 1), moved, running))

    def _rescale(self) -> None:
        """1/‖v‖ and a/‖v‖ of every layer, (L, K, 1, n): factors of the signals on their way up and down."""
        torch.reciprocal(self._norm.unsqueeze(2), out=self._inverse_norm)
        torch.mul(self._inverse_norm, self._a, out=self._scale)


def _finite(w: Signals, gradients: dict[str, Tensor]) -> Tensor:
    """(K,) whether the loss and the squared norms of all gradients are finite.

    For the hidden layers a bound stands for the norm: ‖∂E/∂V‖ ≤ ‖d‖ ‖x‖.
    """
    bound = torch.linalg.vector_norm(w.d, dim=(-2, -1)) * torch.linalg.vector_norm(w.x[:-1], dim=(-2, -1))
    total = w.loss + bound.square().sum(0)
    for gradient in gradients.values():
        total = total + torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
    finite: Tensor = total.isfinite()
    return finite


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(K, B, in), (K, out, in), (K, out) → (K, B, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack on a new first dimension; a single tensor is taken over, not copied (its size is that of all weights)."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
