"""Training by autograd of networks that no fleet covers: the reference network behind the interface of a fleet.

Options such as layer normalisation or spectral normalisation are there to be compared with, not to be fast. Here they
are PyTorch's own modules under PyTorch's own optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.network import Hidden, Network, Phi
from bsnn_cli.networks.optimiser import RULES, Optimiser, parameter_of
from bsnn_cli.networks.orthogonal import orthogonality_error
from bsnn_cli.networks.parameters import ENDS, UNTRAINED, decayed
from bsnn_cli.networks.workers import intra_op_threads, threads_for
from bsnn_cli.settings.config import ModelConfig


def covers(model: ModelConfig) -> bool:
    """Return whether a fleet trains networks of this kind."""
    return (
        model.norm in ("none", "batch")
        and model.weights not in ("weight_norm", "spectral_norm")
        and model.init != "lsuv"
        and not model.residual
    )


class ReferenceTrainer:
    """K reference networks, trained one after the other; arguments, attributes and methods as those of `fleet.Fleet`.

    With `init=lsuv`, the first batch of training settles the scales of the matrices, before the first update.
    """

    arithmetic = "PyTorch"
    description = "ReferenceTrainer"

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
    ) -> None:
        self.model, self.members, self.optimiser = model, tuple(members), optimiser or Optimiser()
        self.device, self.dtype = torch.device(device), dtype
        self.slow_because: str | None = "a fleet does not cover this network; autograd trains the reference network"
        self.threads = threads_for(len(members) * model.depth * model.width**2)
        self.networks = [
            Network(model, Phi(member.activation, member.a, member.b), inputs, classes, member.seed).to(
                self.device, dtype
            )
            for member in members
        ]
        self.optimizers = [
            self.optimiser.of_torch(network.parameters(), _decayed(network, model), member.lr, member.weight_decay)
            for network, member in zip(self.networks, members, strict=True)
        ]
        self.steps = torch.zeros(len(members), dtype=torch.int64, device=self.device)
        self.alive = torch.ones(len(members), dtype=torch.bool, device=self.device)
        for k, state in enumerate(states or ()):
            self._resume(k, state)

    def _resume(self, k: int, state: dict[str, Tensor]) -> None:
        self.networks[k].load(state)
        for name, buffers in self._buffers(k).items():
            for buffer, value in zip(buffers, state[name].view(len(buffers), *buffers[0].shape), strict=True):
                buffer.copy_(value)
        for kept in self.optimizers[k].state.values():
            kept["step"].fill_(int(state["steps"]))
        self.steps[k], self.alive[k] = state["steps"], state["alive"]

    def _buffers(self, k: int) -> dict[str, list[Tensor]]:
        """By names such as `momentum.hidden.weight`: the buffer of each layer, or of the one tensor there is."""
        state = self.optimizers[k].state
        names = zip(self.optimiser.buffers, RULES[self.optimiser.kind].torch_buffers, strict=True)
        return {
            f"{ours}.{name}": [state[parameter][theirs] for parameter in parameters]
            for ours, theirs in names
            for name, parameters in self.networks[k].tensors().items()
            if name not in UNTRAINED
        }

    def member_state(self, k: int) -> dict[str, Tensor]:
        """All tensors of member k, on the CPU."""
        stored = {name: [tensor.detach() for tensor in many] for name, many in self.networks[k].tensors().items()}
        tensors = {
            name: many[0] if parameter_of(name).startswith(ENDS) else torch.stack(many)
            for name, many in (stored | self._buffers(k)).items()
        }
        tensors |= {"steps": self.steps[k], "alive": self.alive[k]}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def parameter_count(self) -> int:
        """Return the number of trained values of one member."""
        return sum(parameter.numel() for parameter in self.networks[0].parameters())

    @torch.no_grad()
    def orthogonality_error(self) -> Tensor:
        """Return the largest |WᵀW − I| over all entries and layers of each member; (K,)."""
        errors = []
        for network in self.networks:
            layers = cast("list[Hidden]", list(network.eval().hidden))
            errors.append(torch.stack([orthogonality_error(layer.linear.weight) for layer in layers]).max())
        return torch.stack(errors)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Evaluation mode: (B, inputs), the same for all members, → (K, B, classes)."""
        return torch.stack([network.eval()(inputs) for network in self.networks])

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One update of every member, as `Fleet.step`: (K, B, inputs), (K, B) → (K,) losses in nats before the update.

        What a member stores stays as it is from the step on whose loss or gradient is not finite.
        """
        losses = []
        for k, network in enumerate(self.networks):
            network.train()
            if self.model.init == "lsuv" and self.steps[k] == 0 and self.alive[k]:
                network.unit_variance(inputs[k])
            statistics = [buffer.clone() for buffer in network.buffers()]
            self.optimizers[k].zero_grad()
            loss = F.cross_entropy(network(inputs[k]), labels[k])
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self.alive[k] &= loss.isfinite() & norm.isfinite()
            if self.alive[k]:
                member, factor = self.members[k], self.optimiser.schedule.factor(int(self.steps[k]))
                if member.clip is not None:
                    nn.utils.clip_grads_with_norm_(network.parameters(), member.clip, norm)
                for group in self.optimizers[k].param_groups:
                    group["lr"] = member.lr * factor
                self.optimizers[k].step()
                self.steps[k] += 1
            else:
                for buffer, value in zip(network.buffers(), statistics, strict=True):
                    buffer.copy_(value)
            losses.append(loss.detach())
        return torch.stack(losses)

    def updates(self, data: Dataset, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make a step for each batch, as `Fleet.updates`."""
        for indices in batches:
            with intra_op_threads(self.threads):
                loss = self.step(*data.batch(indices, self.dtype))
            yield loss

    def anyone_alive(self) -> bool:
        """Return whether there is a member left to train."""
        return bool(self.alive.any())


def _decayed(network: Network, model: ModelConfig) -> list[Tensor]:
    """Return the parameters that weight decay acts on."""
    return [tensor for name, many in network.tensors().items() if name in decayed(model) for tensor in many]
