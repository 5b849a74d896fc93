"""From the config of a run to its network, and from the configs of several to what trains them together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsnn_cli.gpn import custom
from bsnn_cli.gpn.activations import normalise
from bsnn_cli.networks import network_file
from bsnn_cli.networks.autograd_trainer import AutogradTrainer
from bsnn_cli.networks.convolutional import Convolutional
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Hyperparameters, Member
from bsnn_cli.networks.network import Network, Phi, nonlinearity
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.trainable import Module, Trainable
from bsnn_cli.networks.training import Trainer
from bsnn_cli.settings.config import ActivationConfig, ModelConfig, TrainConfig
from bsnn_cli.settings.widths import changing


def fleet_covers(model: ModelConfig) -> bool:
    """Return whether a fleet trains multilayer perceptrons of this kind."""
    return (
        model.norm in ("none", "batch")
        and model.weights not in ("weight_norm", "spectral_norm")
        and model.init != "lsuv"
        and not model.residual
        and not changing(model)
    )


def constants(activation: ActivationConfig) -> tuple[float, float, str | None]:
    """Return a and b of the activation a·φ(h) + b, and the root that was taken for b; (1, 0, None) without GPN."""
    if not activation.gpn:
        return 1.0, 0.0, None
    solution = normalise(custom.activation(activation), activation.root)
    return solution.a, solution.b, solution.root


def hyperparameters(config: TrainConfig) -> Hyperparameters:
    """Return what may differ between runs that are trained together."""
    optim = config.optim
    return Hyperparameters(seed=config.seed, lr=optim.lr, weight_decay=optim.weight_decay, clip=optim.clip)


def member(config: TrainConfig) -> Member:
    """Return the fleet's member for a run."""
    a, b, _ = constants(config.activation)
    return Member(activation=custom.activation(config.activation), a=a, b=b, **vars(hyperparameters(config)))


def network(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> Trainable:
    """Return the network of a run at the start of its training, on the CPU.

    Args:
        config: resolved and identified.
        shape: (channels, height, width) of an image.
        classes: number of outputs.

    Raises:
        ConfigError: it is a user's own, and cannot be built or is no classifier of such images.
    """
    if config.network.path is not None:
        text = network_file.source(config.network)
        module, _ = network_file.build(config.network, str(text), config.seed)
        return Module(module, shape, classes, f"network={config.network.path}")
    phi = nonlinearity(config.activation)
    if config.network.kind == "cnn":
        return Convolutional(config.model, phi, shape, classes, config.seed)
    channels, height, width = shape
    return Network(config.model, phi, channels * height * width, classes, config.seed)


def trainer(
    configs: Sequence[TrainConfig],
    shape: tuple[int, int, int],
    classes: int,
    *,
    optimiser: Optimiser | None = None,
    states: Sequence[dict[str, Tensor]] | None = None,
    device: torch.device | str = "cpu",
) -> Trainer:
    """Return what trains some runs together: a fleet where it covers their networks, else autograd.

    Args:
        configs: resolved and identified; equal in all but what `Member` holds.
        shape: (channels, height, width) of an image.
        classes: number of outputs.
        optimiser: of all runs; None: SGD with momentum 0.5 and a constant learning rate.
        states: what `member_state` returned for each; None starts from the seeds.
        device: where to compute.

    Raises:
        ConfigError: as `network`.
    """
    first = configs[0]
    if first.network.path is None and first.network.kind == "mlp":
        channels, height, width = shape
        build = Fleet if fleet_covers(first.model) else reference_trainer
        return build(
            first.model,
            [member(config) for config in configs],
            inputs=channels * height * width,
            classes=classes,
            optimiser=optimiser,
            states=states,
            device=device,
        )
    return AutogradTrainer(
        [network(config, shape, classes) for config in configs],
        [hyperparameters(config) for config in configs],
        optimiser=optimiser,
        states=states,
        device=device,
    )


def reference_trainer(
    model: ModelConfig,
    members: Sequence[Member],
    *,
    inputs: int,
    classes: int,
    optimiser: Optimiser | None = None,
    states: Sequence[dict[str, Tensor]] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AutogradTrainer:
    """Return what trains the reference networks of some members by autograd; arguments as those of `Fleet`."""
    networks = [
        Network(model, Phi(member.activation, member.a, member.b), inputs, classes, member.seed) for member in members
    ]
    reason = "a fleet does not cover this network; autograd trains the reference network"
    return AutogradTrainer(
        networks, members, optimiser=optimiser, states=states, device=device, dtype=dtype, slow_because=reason
    )
