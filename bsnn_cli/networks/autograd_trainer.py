"""Training by autograd of networks that no fleet covers, such as a user's own module, behind the interface of a fleet.

Options such as layer normalisation or spectral normalisation are there to be compared with, not to be fast. Here they
are PyTorch's own modules under PyTorch's own optimiser.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.common.random_streams import stream
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.networks.members import Hyperparameters
from bsnn_cli.networks.optimiser import RULES, Optimiser
from bsnn_cli.networks.orthogonal import orthogonality_error
from bsnn_cli.networks.parameters import State
from bsnn_cli.networks.trainable import Trainable, restore, stored
from bsnn_cli.networks.workers import intra_op_threads


class AutogradTrainer:
    """K networks, trained one after the other; attributes and methods as those of `fleet.Fleet`.

    What is random in a pass, such as dropout, is drawn from generators that are set to a function of the member's seed
    and the step, so that a resumed training goes on with the same draws, whatever is trained beside it.

    Args:
        networks: K of them, all of the same size.
        members: the settings of each.
        optimiser: of all members; None: SGD with momentum 0.5 and a constant learning rate.
        states: what `member_state` returned for each member; None: the networks as they are.
        device, dtype: where and in which precision to compute.
        slow_because: why nothing faster trains them, in words; None where there is nothing faster.
    """

    arithmetic = "PyTorch"

    def __init__(
        self,
        networks: Sequence[Trainable],
        members: Sequence[Hyperparameters],
        *,
        optimiser: Optimiser | None = None,
        states: Sequence[dict[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        slow_because: str | None = None,
    ) -> None:
        self.members, self.optimiser = tuple(members), optimiser or Optimiser()
        self.device, self.dtype = torch.device(device), dtype
        self.networks = [network.to(self.device, dtype) for network in networks]
        self.description = f"AutogradTrainer ({type(self.networks[0]).__name__})"
        self.slow_because = slow_because
        self.threads = self.networks[0].threads()
        self.optimizers = [
            self.optimiser.of_torch(_trained(network), network.decayed(), member.lr, member.weight_decay)
            for network, member in zip(self.networks, members, strict=True)
        ]
        self.steps = torch.zeros(len(members), dtype=torch.int64, device=self.device)
        self.alive = torch.ones(len(members), dtype=torch.bool, device=self.device)
        for k, state in enumerate(states or ()):
            self._resume(k, state)

    def _resume(self, k: int, state: dict[str, Tensor]) -> None:
        self.networks[k].load(state)
        restore(self._buffers(k), state)
        for kept in self.optimizers[k].state.values():
            kept["step"].fill_(int(state["steps"]))
        self.steps[k], self.alive[k] = state["steps"], state["alive"]

    def _buffers(self, k: int) -> State:
        """Return the optimiser's buffers of each trained tensor, by names such as `momentum.hidden.weight`."""
        kept = self.optimizers[k].state
        names = zip(self.optimiser.buffers, RULES[self.optimiser.kind].torch_buffers, strict=True)
        return {
            f"{ours}.{name}": kept[value][theirs]
            if isinstance(value, Tensor)
            else [kept[parameter][theirs] for parameter in value]
            for ours, theirs in names
            for name, value in self.networks[k].tensors().items()
            if (value if isinstance(value, Tensor) else value[0]).requires_grad
        }

    def member_state(self, k: int) -> dict[str, Tensor]:
        """All tensors of member k, on the CPU."""
        tensors = stored({**self.networks[k].tensors(), **self._buffers(k)})
        tensors |= {"steps": self.steps[k], "alive": self.alive[k]}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def parameter_count(self) -> int:
        """Return the number of trained values of one member."""
        return sum(parameter.numel() for parameter in _trained(self.networks[0]))

    @torch.no_grad()
    def orthogonality_error(self) -> Tensor:
        """Return the largest `orthogonality_error` over the layers of each member, NaN where there is none; (K,)."""
        errors = []
        for network in self.networks:
            layers = [orthogonality_error(weight) for weight in network.eval().matrices()]
            errors.append(torch.stack(layers).max() if layers else torch.tensor(torch.nan, device=self.device))
        return torch.stack(errors)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Evaluation mode: (B, inputs), the same for all members, → (K, B, classes)."""
        logits = []
        for k, network in enumerate(self.networks):
            self._set_generators(k)
            logits.append(network.eval()(inputs))
        return torch.stack(logits)

    def _set_generators(self, k: int) -> None:
        """Set all generators that a module may draw from to a function of a member's seed and step."""
        number = stream(self.members[k].seed, "network in training", int(self.steps[k])).initial_seed()
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)  # it is the generator that modules of users may draw from

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One update of every member, as `Fleet.step`: (K, B, inputs), (K, B) → (K,) losses in nats before the update.

        What a member stores stays as it is from the step on whose loss or gradient is not finite.
        """
        losses = []
        for k, network in enumerate(self.networks):
            self._set_generators(k)
            network.train()
            if self.steps[k] == 0 and self.alive[k]:
                network.settle(inputs[k])
            statistics = [buffer.clone() for buffer in network.buffers()]
            self.optimizers[k].zero_grad()
            loss = F.cross_entropy(network(inputs[k]), labels[k])
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = [_gradient(parameter) for parameter in _trained(network)]
            norm = nn.utils.get_total_norm(gradients)
            self.alive[k] &= loss.isfinite() & norm.isfinite()
            if self.alive[k]:
                member, factor = self.members[k], self.optimiser.schedule.factor(int(self.steps[k]))
                if member.clip is not None:
                    nn.utils.clip_grads_with_norm_(_trained(network), member.clip, norm)
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


def _trained(network: Trainable) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of a parameter, which is 0 if it had no part in this step.

    PyTorch's optimisers leave out a parameter without a gradient, and count its steps apart; a resumed training would
    not know how many.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
