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
from typing import NamedTuple

import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks import parameters
from bsnn_cli.networks.batch_norm import NORM_EPS, NORM_MOMENTUM, BatchNorm, denormalise_each, normalise_each
from bsnn_cli.networks.members import Member, activate, grouped, pull_back
from bsnn_cli.networks.orthogonal import Drift, longest_column, orthogonality_error
from bsnn_cli.networks.parameters import NORM_STATISTICS
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers, intra_op_threads
from bsnn_cli.settings.config import ModelConfig

PARALLEL_WIDTH = 200
"""From this width on, updating a matrix takes a core long enough to be worth handing to it."""


class _Hidden(NamedTuple):
    """Views of the tensors of one hidden layer, made once for the reason given at `signals.Layer`.

    Attributes:
        V, transposed: (K, n, n), each the other's transpose.
        inverse_norm, scale: (K, 1, n), 1/‖v‖ and a/‖v‖: factors of the signals on their way up and down.
        scale_of, gain_of, shift_of: of each member: a/‖v‖ (1, n), and γ and β (n,) of batch normalisation, if any.
    """

    V: Tensor
    transposed: Tensor
    inverse_norm: Tensor
    scale: Tensor
    scale_of: Sequence[Tensor]
    gain_of: Sequence[Tensor]
    shift_of: Sequence[Tensor]


class _Matrix(NamedTuple):
    """One matrix V, its momentum M, both (n, n), and the lengths of its rows, (n,)."""

    layer: int
    member: int
    V: Tensor
    M: Tensor
    norm: Tensor


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
        arithmetic: what rounds in the same way has the same name.
    """

    arithmetic = "PyTorch"

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
        self.steps, self.alive = self.tensors["steps"], self.tensors["alive"]
        self._a = torch.tensor([one.a for one in members], device=self.device, dtype=dtype).view(-1, 1, 1)
        self._step_size = torch.tensor([-one.lr for one in members], device=self.device, dtype=dtype)
        self._norm = torch.ones(model.depth, K, model.width, device=self.device, dtype=dtype)
        self._groups = grouped(members, self._norm)
        self._drift = Drift(self.tensors, momentum) if model.weights == "orthogonal" else None
        self._inverse_norm = self._norm.new_empty(model.depth, K, 1, model.width)
        self._scale = torch.empty_like(self._inverse_norm)
        self._hidden = [self._views(layer) for layer in range(model.depth)]
        V, M = self.tensors["hidden.weight"], self.tensors["momentum.hidden.weight"]
        places = itertools.product(range(model.depth), range(K))
        self._matrices = [_Matrix(layer, k, V[k, layer], M[k, layer], self._norm[layer, k]) for layer, k in places]
        if model.weights == "unit_rows":
            for matrix in self._matrices:
                torch.linalg.vector_norm(matrix.V, dim=-1, out=matrix.norm)
        self._rescale()
        self._signals: dict[int, tuple[Signals, list[Signals]]] = {}
        parallel = self.device.type == "cpu" and model.width >= PARALLEL_WIDTH
        self._workers = Workers(torch.get_num_threads() if parallel else 1)
        # torch's own threads wait in a busy loop for its next operation, on cores that the workers need.
        self._threads = 1 if self._parts > 1 else torch.get_num_threads()

    @property
    def _parts(self) -> int:
        """A batch is split into so many, a part for each worker; batch normalisation needs all samples together."""
        return 1 if self.model.norm == "batch" else self._workers.count

    @property
    def _keeps_every_g(self) -> bool:
        """Whether the signals of all layers on their way down have a place of their own."""
        return self.model.weights == "orthogonal"

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

    def _views(self, layer: int) -> _Hidden:
        own = {name: tensor[:, layer] for name, tensor in self.tensors.items() if name.startswith(("hidden", "norm"))}
        V, scale = own["hidden.weight"], self._scale[layer]
        gain, shift = (own[name].unbind() if name in own else () for name in ("norm.weight", "norm.bias"))
        return _Hidden(V, V.mT, self._inverse_norm[layer], scale, scale.unbind(), gain, shift)

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
        for hidden in self._hidden:
            error = torch.maximum(error, orthogonality_error(hidden.V * hidden.inverse_norm.mT))
        return error

    def logits(self, inputs: Tensor) -> Tensor:
        """Evaluation mode: (B, inputs), the same for all members, → (K, B, classes)."""
        t = self.tensors
        x = affine(inputs.expand(len(self.members), *inputs.shape), t["input.weight"], t["input.bias"])
        value = torch.empty_like(x)
        for layer, hidden in enumerate(self._hidden):
            h = torch.bmm(x, hidden.transposed).mul_(hidden.inverse_norm)
            if self.model.norm == "batch":
                scale = t["norm.weight"][:, layer] * torch.rsqrt(t["norm.running_var"][:, layer] + NORM_EPS)
                h.sub_(t["norm.running_mean"][:, layer].unsqueeze(1)).mul_(scale.unsqueeze(1))
                h.add_(t["norm.bias"][:, layer].unsqueeze(1))
            activate(self._groups, h, value)
            x, value = value, x
        return affine(x, t["output.weight"], t["output.bias"])

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One update of every member by stochastic gradient descent with momentum.

        The weights of a member whose loss or gradient is not finite stay as they are, now and in all later steps.
        A gradient counts as finite if its own length can be measured, of those of V the lengths of the signals whose
        product it is, and if the square of a step's length is finite: rows of V longer than that could not be measured.
        In the first steps of a deep network with batch normalisation, gradients of 1e18 are not rare.

        Args:
            inputs: (K, B, inputs); each member has a batch of its own.
            labels: (K, B) class indices.

        Returns:
            (K,) mean cross-entropy of each batch before the update, in nats.
        """
        w, parts = self._signals_of(inputs.shape[1])
        B, size = inputs.shape[1], parts[0].error.shape[1]
        work = list(zip(parts, torch.split(inputs, size, 1), torch.split(labels, size, 1), strict=True))
        self._workers.each(lambda part: self._differentiate(part[0], part[1], part[2], 1 / B), work)
        if parts[0] is not w:
            for name in ("s", "loss", "bound"):
                torch.sum(torch.stack([getattr(part, name) for part in parts]), 0, out=getattr(w, name))
        gradients = {
            "input.weight": w.g[0].mT @ inputs,
            "input.bias": w.g[0].sum(1),
            "output.weight": w.error.mT @ w.x[-1],
            "output.bias": w.error.sum(1),
        }
        if w.norm is not None:
            gradients["norm.weight"] = w.norm.all.gain_gradient.transpose(0, 1)
            gradients["norm.bias"] = w.norm.all.shift_gradient.transpose(0, 1)
        self.alive &= self._finite(w, gradients)
        self.steps += self.alive
        self._update(w, gradients)
        return w.loss.clone()

    def _signals_of(self, batch: int) -> tuple[Signals, list[Signals]]:
        """Memory for the signals of a batch of this size, the same every time, and how workers share it out."""
        if batch not in self._signals:
            w = Signals.empty(
                (self.model.depth, len(self.members), batch, self.model.width),
                classes=self.tensors["output.bias"].shape[1],
                norm=self.model.norm == "batch",
                every_g=self._keeps_every_g,
                like=self._norm,
            )
            self._signals[batch] = w, w.split(self._parts)
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
        self._fall(w, torch.bmm(w.error, self.tensors["output.weight"]))
        if w.norm is not None:  # what it computes for all layers at once
            w.norm.finish(self._a.squeeze(2), self.tensors["norm.weight"].transpose(0, 1), out=w.s)
        self._bound(w)

    def _bound(self, w: Signals, layers: slice = slice(None)) -> None:
        """Fill `w.bound`, of some layers."""
        lengths = (torch.linalg.vector_norm(signal[layers], dim=(-2, -1)) for signal in (w.d, w.x[:-1]))
        torch.mul(*lengths, out=w.bound[layers])

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make a step for each of some batches of the training split.

        Args:
            data: on the fleet's device.
            batches: indices (K, B) of each.

        Yields:
            what `step` returns, after each; to be used before the next.
        """
        for indices in batches:
            with intra_op_threads(self._threads):
                loss = self.step(*data.batch(indices, self.dtype))
            yield loss

    def anyone_alive(self) -> bool:
        """Whether there is a member left to train."""
        return bool(self.alive.any())

    def _forward(self, w: Signals, inputs: Tensor) -> Tensor:
        """Fill the signals upwards; (K, B, inputs) → logits (K, B, classes)."""
        t = self.tensors
        w.x[0].copy_(affine(inputs, t["input.weight"], t["input.bias"]))
        self._rise(w)
        return affine(w.x[-1], t["output.weight"], t["output.bias"])

    def _rise(self, w: Signals) -> None:
        """Fill the signals of all hidden layers upwards, from `w.x[0]`."""
        for layer, (hidden, signals) in enumerate(zip(self._hidden, w.layers, strict=True)):
            torch.bmm(signals.x, hidden.transposed, out=signals.h)
            self._lift(w, layer)

    def _fall(self, w: Signals, g: Tensor) -> None:
        """Fill `w.d`, `w.g` and `w.s` downwards, from ∂E/∂x of the top, (K, B, n)."""
        for layer in reversed(range(self.model.depth)):
            self._lower(w, layer, g)
            signals = w.layers[layer]
            g = torch.bmm(signals.d, self._hidden[layer].V, out=signals.below)

    def _lift(self, w: Signals, layer: int) -> None:
        """From the product xVᵀ in h to h itself, and the signal above."""
        hidden, signals = self._hidden[layer], w.layers[layer]
        if self.model.weights == "unit_rows":
            signals.h.mul_(hidden.inverse_norm)
        if w.norm is None:
            w.values.append(activate(self._groups, signals.h, signals.above))
            return
        normalise_each(signals.h_of, hidden.gain_of, hidden.shift_of, w.norm.members[layer], out=signals.d_of)
        w.values.append(activate(self._groups, signals.d, signals.above))

    def _lower(self, w: Signals, layer: int, g: Tensor) -> None:
        """From ∂E/∂x above a layer to d and s."""
        hidden, signals = self._hidden[layer], w.layers[layer]
        if w.norm is not None:
            u_of = pull_back(self._groups, g, signals.d, w.values.pop()).unbind()
            statistics = w.norm.members[layer]
            denormalise_each(u_of, signals.h_of, hidden.gain_of, hidden.scale_of, statistics, out=signals.d_of)
            return
        u = pull_back(self._groups, g, signals.h, w.values.pop())
        if self.model.weights == "unit_rows":
            torch.linalg.vecdot(u, signals.h, dim=1, out=signals.s)
        torch.mul(u, hidden.scale, out=signals.d)

    def _finite(self, w: Signals, gradients: dict[str, Tensor]) -> Tensor:
        """(K,) whether the loss and the squared lengths of the step in all tensors are finite."""
        lr = self._step_size if self._drift is None else torch.ones_like(self._step_size)  # M² is wanted there, not V²
        total = w.loss + (lr * w.bound).square().sum(0)
        for gradient in gradients.values():
            total = total + (lr * torch.linalg.vector_norm(gradient.flatten(1), dim=1)).square()
        finite: Tensor = total.isfinite()
        return finite

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
        living = self.alive.tolist()
        places = zip(self._matrices, w.factors, tangent.flatten(0, 1).unbind(), strict=True)
        self._workers.each(lambda place: self._move(w, *place), [one for one in places if living[one[0].member]])

    def _move(self, w: Signals, matrix: _Matrix, factors: tuple[Tensor, Tensor], tangent: Tensor) -> None:
        """Update one matrix, by one core while its V and M are in that core's reach."""
        layer, k, V, M, norm = matrix
        lr = self.members[k].lr
        if self._drift is not None:
            M.addmm_(*factors, beta=self.momentum, alpha=0.5).addmm_(w.h[layer, k].mT, w.g[layer, k], alpha=-0.5)
            if self._drift.advance(k, slice(layer, layer + 1), longest_column(M), lr, self.alive[k]):
                self._drift.complete(k, layer, V, M, lr)
            else:
                V.add_(M, alpha=-lr)
            return
        M.addmm_(*factors, beta=self.momentum)
        if self.model.weights == "unit_rows":
            V.add_(M.addcmul_(V, tangent, value=-1), alpha=-lr)
            torch.linalg.vector_norm(V, dim=-1, out=norm)
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


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(K, B, in), (K, out, in), (K, out) → (K, B, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack on a new first dimension; a single tensor is taken over, not copied (its size is that of all weights)."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
