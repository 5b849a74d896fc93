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
from bsnn_cli.networks.orthogonal import orthogonality_error
from bsnn_cli.networks.parameters import ENDS, UNTRAINED
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
        momentum: float,
        states: Sequence[dict[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.members = model, tuple(members)
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
            torch.optim.SGD(network.parameters(), member.lr, momentum)
            for network, member in zip(self.networks, members, strict=True)
        ]
        for optimizer in self.optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.steps = torch.zeros(len(members), dtype=torch.int64, device=self.device)
        self.alive = torch.ones(len(members), dtype=torch.bool, device=self.device)
        for k, state in enumerate(states or ()):
            self._resume(k, state)

    def _resume(self, k: int, state: dict[str, Tensor]) -> None:
        self.networks[k].load(state)
        for name, momenta in self._momenta(k).items():
            for momentum, value in zip(momenta, state[name].view(len(momenta), *momenta[0].shape), strict=True):
                momentum.copy_(value)
        self.steps[k], self.alive[k] = state["steps"], state["alive"]

    def _momenta(self, k: int) -> dict[str, list[Tensor]]:
        """By names such as `momentum.hidden.weight`: the buffer of each layer, or of the one tensor there is."""
        state = self.optimizers[k].state
        return {
            f"momentum.{name}": [state[parameter]["momentum_buffer"] for parameter in parameters]
            for name, parameters in self.networks[k].tensors().items()
            if name not in UNTRAINED
        }

    def member_state(self, k: int) -> dict[str, Tensor]:
        """All tensors of member k, on the CPU."""
        stored = {name: [tensor.detach() for tensor in many] for name, many in self.networks[k].tensors().items()}
        tensors = {
            name: many[0] if name.removeprefix("momentum.").startswith(ENDS) else torch.stack(many)
            for name, many in (stored | self._momenta(k)).items()
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
            self.alive[k] &= loss.isfinite() & nn.utils.get_total_norm(gradients).isfinite()
            if self.alive[k]:
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
