"""K networks of one shape, trained together on stacked tensors, with a hand-derived backward pass.

A member of a fleet gives the same numbers as the same network alone. Weights are stacked as (K, L, n, n), signals as
(K, B, n), so that every product is a batched one; activations act on contiguous slices of K. With V the free matrix of
a layer, W_i = v_i/‖v_i‖ its unit rows, x the signal below it and d = ∂E/∂h, W is never built:

    h      = (x Vᵀ) / ‖v‖                                       a divide of each column of the product
    ∂E/∂x  = (d/‖v‖) V
    ∂E/∂V  = (d/‖v‖)ᵀ x − diag(s/‖v‖²) V,   s_j = Σ_batch d_j h_j

The second term keeps the update tangent to the unit sphere of each row; it costs a column sum. Where the weights are
orthogonal, the gradient is projected to the tangent space of the orthogonal group, with signals that are known anyway:

    ½(∂E/∂W − W (∂E/∂W)ᵀ W) = ½(dᵀx − hᵀ(dW))

The whole backward pass runs before any weight changes, so that a step whose gradient is not finite can be left out as a
whole. The fleet computes the input and output layers and the loss; an engine (`engine`) computes the hidden layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks import parameters
from bsnn_cli.networks.batch_norm import NORM_MOMENTUM, BatchNorm
from bsnn_cli.networks.captured import CapturedSteps, delayed_read
from bsnn_cli.networks.clipping import clip
from bsnn_cli.networks.engine import EngineFactory
from bsnn_cli.networks.engine_choice import choose
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.huge_pages import in_huge_pages
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.optimiser import Optimiser, Step
from bsnn_cli.networks.orthogonal import Drift, orthogonality_error
from bsnn_cli.networks.parameters import NORM_STATISTICS
from bsnn_cli.networks.rule_engine import with_rule
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ModelConfig


class Fleet:
    """K networks trained together.

    Args:
        model: the shape and constraint that all members share.
        members: in contiguous groups of equal activations.
        inputs: size of one input.
        classes: number of outputs.
        optimiser: of all members; None: SGD with momentum 0.5 and a constant learning rate.
        states: what `member_state` returned for each member; None starts from the members' seeds.
        device, dtype: where and in which precision to compute.
        engine: computes the hidden layers; None: `engine_choice.choose`.
        capture: gather batches on the device and capture steps as CUDA graphs; None: on a GPU.

    Attributes:
        tensors: everything a run stores, by the names of `parameters.shapes`, stacked on a leading dimension K, and
            the optimiser's buffers of each trained tensor, such as `momentum.<name>`.
        steps: (K,) updates applied to each member.
        alive: (K,) False from the step on whose loss or gradient was not finite; that step was not applied.
        engine: what computes the hidden layers.
        slow_because: why no fast kernels compute them, in words; None if they do.
        captured: the CUDA graphs of its steps, or None.
    """

    def __init__(
        self,
        model: ModelConfig,
        members: Sequence[Member],
        *,
        inputs: int,
        classes: int,
        optimiser: Optimiser | None = None,
        states: Sequence[dict[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: EngineFactory | None = None,
        capture: bool | None = None,
    ) -> None:
        self.model, self.members, self.optimiser = model, tuple(members), optimiser or Optimiser()
        self.device, self.dtype = torch.device(device), dtype
        shapes = parameters.shapes(model, inputs, classes)
        self.trained = tuple(name for name in shapes if name not in NORM_STATISTICS)
        if states is None:
            self.tensors = self._start(shapes)
        else:
            self.tensors = {name: _stack([state[name] for state in states]).to(self.device) for name in states[0]}
        for tensor in self.tensors.values():
            in_huge_pages(tensor)
        self.steps, self.alive = self.tensors["steps"], self.tensors["alive"]
        self.hidden = HiddenLayers(model, members, self.tensors, self.optimiser)
        self.engine, self.slow_because = (
            choose(self.hidden) if engine is None else (with_rule(engine(self.hidden)), None)
        )
        self._clip: Tensor | None = None
        if any(member.clip is not None for member in members):
            limits = [math.inf if member.clip is None else member.clip for member in members]
            self._clip = torch.tensor(limits, dtype=torch.float64, device=self.device)
        self._decayed = parameters.decayed(model)
        self._signals: dict[int, Signals] = {}
        self.captured: CapturedSteps | None = None
        if self.device.type == "cuda" if capture is None else capture:
            self.captured = CapturedSteps(len(members), self.device, dtype)
        self._delayed_alive = delayed_read(self.alive)
        self._old_alive: Tensor | None = None

    @property
    def arithmetic(self) -> str:
        """Fleets that round in the same way have the same name."""
        return self.engine.arithmetic

    @property
    def threads(self) -> int:
        """Return the threads that PyTorch's operations use beside the engine's own."""
        return self.engine.threads

    @property
    def description(self) -> str:
        """Return the names of this class and its engine, for the provenance of a run."""
        return f"{type(self).__name__} ({self.engine.description})"

    def _start(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        K = len(self.members)
        tensors = {name: torch.empty(K, *shape, device=self.device, dtype=self.dtype) for name, shape in shapes.items()}
        for k, member in enumerate(self.members):
            parameters.initialise({name: tensor[k] for name, tensor in tensors.items()}, self.model, member.seed)
        steps = torch.zeros(K, dtype=torch.int64, device=self.device)
        state = tensors | self.optimiser.start(tensors, self.trained)
        state |= {"steps": steps, "alive": torch.ones_like(steps, dtype=torch.bool)}
        if self.model.weights == "orthogonal":
            state |= Drift.start(tensors["hidden.weight"], K, self.model.depth)
        return state

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Return all tensors of member k, on the CPU; views where the fleet is there."""
        return {name: tensor[k].cpu() for name, tensor in self.tensors.items()}

    def parameter_count(self) -> int:
        """Return the number of trained values of one member."""
        return sum(self.tensors[name][0].numel() for name in self.trained)

    def orthogonality_error(self) -> Tensor:
        """Return the largest |WᵀW − I| over all entries and layers of each member; (K,).

        For orthogonal weights it is the largest since the last call, and includes every error before a retraction.
        """
        hidden = self.hidden
        if hidden.drift is not None:
            return hidden.drift.largest_error(hidden.V)
        self.engine.measure_rows()
        errors = torch.empty(self.model.depth, len(self.members), device=self.device, dtype=self.dtype)

        def measure(layer: int) -> None:
            errors[layer] = orthogonality_error(hidden.V[:, layer] * hidden.inverse_norm[layer].mT)

        with intra_op_threads(self.engine.threads):
            self.engine.workers.run(measure, range(self.model.depth))
        return errors.amax(0)

    def logits(self, inputs: Tensor) -> Tensor:
        """Compute the logits in evaluation mode: (B, inputs), the same for all members, → (K, B, classes)."""
        self.engine.measure_rows()
        workers = self.engine.workers
        parts = inputs.chunk(workers.count)
        logits: dict[int, Tensor] = {}

        def compute(part: int) -> None:
            logits[part] = self._logits(parts[part])

        with intra_op_threads(self.engine.threads):
            workers.run(compute, range(len(parts)))
        return torch.cat([logits[part] for part in range(len(parts))], dim=1) if len(parts) > 1 else logits[0]

    def _logits(self, inputs: Tensor) -> Tensor:
        t = self.tensors
        x = affine(inputs.expand(len(self.members), *inputs.shape), t["input.weight"], t["input.bias"])
        return affine(self.engine.evaluate(x), t["output.weight"], t["output.bias"])

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One update of every member by the optimiser.

        The weights of a member whose loss or gradient is not finite stay as they are, now and in all later steps.
        A gradient counts as finite if its own length can be measured, of those of V the lengths of the signals whose
        product it is, and if the square of a step's length, after clipping, is finite: longer rows of V could not be
        measured. Where M or the square of the gradient is needed, the rate of the step counts as 1.
        In the first steps of a deep network with batch normalisation, gradients of 1e18 are not rare.

        Args:
            inputs: (K, B, inputs); each member has a batch of its own.
            labels: (K, B) class indices.

        Returns:
            (K,) mean cross-entropy of each batch before the update, in nats.
        """
        w = self._signals_of(inputs.shape[1])
        self.hidden.follow_schedule(self.steps)
        self._differentiate(w, inputs, labels)
        gradients = {
            "input.weight": w.g[0].mT @ inputs,
            "input.bias": w.g[0].sum(1),
            "output.weight": w.error.mT @ w.x[-1],
            "output.bias": w.error.sum(1),
        }
        if w.norm is not None:
            gradients["norm.weight"] = w.norm.all.gain_gradient.transpose(0, 1)
            gradients["norm.bias"] = w.norm.all.shift_gradient.transpose(0, 1)
        if self._clip is not None:
            clip(self.engine, w, gradients.values(), self._clip)
        self.alive &= self._finite(w, gradients)
        self.steps += self.alive
        self._update(w, gradients)
        return w.loss.clone()

    def _signals_of(self, batch: int) -> Signals:
        """Return memory for the signals of a batch of this size, the same every time."""
        if batch not in self._signals:
            self._prepare(batch)
            self._signals[batch] = Signals.empty(
                (self.model.depth, len(self.members), batch, self.model.width),
                self.engine.allocate,
                classes=self.tensors["output.bias"].shape[1],
                norm=self.model.norm == "batch",
                every_g=self.engine.every_g,
                like=self.hidden.norm,
            )
        return self._signals[batch]

    def _prepare(self, batch: int) -> None:
        """Prepare the engine for a batch size; where it fails, PyTorch's operations take its place."""
        try:
            self.engine.prepare(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 a compiler may fail in any way
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                f"PyTorch's operations take the place of fast kernels, which is slower: {reason}", stacklevel=2
            )
            on_gpu = True if self.captured is not None else None
            self.engine, self.slow_because = with_rule(TorchEngine(self.hidden, on_gpu=on_gpu)), reason
            if self.captured is not None:
                self.captured.clear()

    def _differentiate(self, w: Signals, inputs: Tensor, labels: Tensor) -> None:
        """Fill the signals of a step, forwards and backwards; inputs (K, B, inputs), labels (K, B)."""
        t, share = self.tensors, 1 / inputs.shape[1]
        w.x[0].copy_(affine(inputs, t["input.weight"], t["input.bias"]))
        self.engine.forward(w)
        log_p = torch.log_softmax(affine(w.x[-1], t["output.weight"], t["output.bias"]), dim=-1)
        target = labels.unsqueeze(-1)
        torch.mul(log_p.gather(-1, target).sum(dim=(1, 2)), -share, out=w.loss)
        torch.mul(log_p.exp().scatter_add(-1, target, log_p.new_full(target.shape, -1)), share, out=w.error)
        self.engine.backward(w, torch.bmm(w.error, t["output.weight"]))
        if w.norm is not None:  # what it computes for all layers at once
            w.norm.finish(self.hidden.a.squeeze(2), t["norm.weight"].transpose(0, 1), out=w.s)

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make a step for each of some batches of the training split.

        Args:
            data: on the fleet's device.
            batches: indices (K, B) of each.

        Yields:
            what `step` returns, after each; to be used before the next.
        """
        if self.captured is None:
            for indices in batches:
                with intra_op_threads(self.engine.threads):
                    loss = self.step(*data.batch(indices, self.dtype))
                self.engine.complete_held_steps()
                yield loss
            return
        self._old_alive = None
        for loss in self.captured.losses(self.step, data, batches):
            self.engine.complete_held_steps()
            self._old_alive = self._delayed_alive.push(self.alive)
            yield loss
        self._old_alive = None

    def anyone_alive(self) -> bool:
        """Return whether there is a member left to train; within an epoch on a GPU, as of some steps ago."""
        return bool((self.alive if self._old_alive is None else self._old_alive).any())

    def _finite(self, w: Signals, gradients: dict[str, Tensor]) -> Tensor:
        """Return whether the loss and the squared lengths of the step in all tensors are finite; (K,)."""
        lr = self.hidden.step_size
        if self.hidden.drift is not None or not self.optimiser.in_engines:
            lr = torch.ones_like(lr)  # there M² is needed, not V², or the square of the gradient
        total = w.loss + (lr * w.bound).square().sum(0)
        for gradient in gradients.values():
            total = total + (lr * torch.linalg.vector_norm(gradient.flatten(1), dim=1)).square()
        finite: Tensor = total.isfinite()
        return finite

    def _update(self, w: Signals, gradients: dict[str, Tensor]) -> None:
        """Make a step of the optimiser with the members that are alive."""
        hidden, engine = self.hidden, self.engine
        if hidden.decaying is not None and self.optimiser.in_engines:
            engine.workers.run(hidden.decay, range(len(self.members)))
        engine.update(w)
        step_size = torch.where(self.alive, hidden.step_size, 0)
        number = self.steps.clamp(min=1).double()
        for name, gradient in gradients.items():
            shape = (-1, *[1] * (gradient.dim() - 1))
            gradient.masked_fill_(~self.alive.view(shape), 0)  # 0 · NaN is NaN
            weight_decay = hidden.weight_decay if name in self._decayed else None
            step = Step(
                size=step_size.view(shape),
                weight_decay=None if weight_decay is None else weight_decay.view(shape),
                number=number.view(shape),
            )
            buffers = [self.tensors[f"{buffer}.{name}"] for buffer in self.optimiser.buffers]
            self.optimiser.update(self.tensors[name], gradient, buffers, step)
        if w.norm is not None:
            self._track_statistics(w.norm)

    def _track_statistics(self, norm: BatchNorm) -> None:
        """Move the running statistics of living members towards those of the batch."""
        for name, batch in (("norm.running_mean", norm.all.mean), ("norm.running_var", norm.all.variance)):
            running = self.tensors[name]
            moved = running.lerp(batch.transpose(0, 1), NORM_MOMENTUM)
            running.copy_(torch.where(self.alive.view(-1, 1, 1), moved, running))


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute xWᵀ + b: (K, B, in), (K, out, in), (K, out) → (K, B, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack on a new first dimension; a single tensor is taken over, not copied (its size is that of all weights)."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
