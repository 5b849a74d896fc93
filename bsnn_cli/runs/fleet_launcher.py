"""`hydra/launcher=fleet`: the jobs of a sweep that share shape and protocol are trained as one fleet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from bsnn_cli.common.machine import available_bytes
from bsnn_cli.networks.memory import training_bytes
from bsnn_cli.runs import job
from bsnn_cli.runs.job import Orders
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label

LAUNCHER = "hydra_plugins.bsnn.FleetLauncher"
"""Hydra takes plugins of this name space only; this one is registered, not installed."""

MEMORY_SHARE = 0.7
"""Of the main memory that is free: the networks of a fleet may take as much. On a GPU it is the other memory that
counts: what does not fit there is halved."""

OWN = ("activation", "optim.lr", "seed", "force", "wait")
"""What may differ between the members of a fleet."""


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().class_name_to_class[LAUNCHER] = FleetLauncher
    ConfigStore.instance().store(
        group="hydra/launcher", name="fleet", node={"_target_": LAUNCHER, "networks": 24}, provider="bsnn"
    )


class FleetLauncher(Launcher):
    """Trains the jobs of a sweep in as few fleets as their shapes and the memory allow, one fleet after the other.

    Args:
        networks: in one fleet at most. On a GPU more than 24 gain nothing: the arithmetic is the limit then.
    """

    def __init__(self, networks: int) -> None:
        self.networks = networks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """See the base class."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Bring the jobs to their end. Nothing is returned: what came of them stands in the run directories."""
        orders = Orders.read(Path(self.config.hydra.sweep.dir))
        configs = orders.configs[initial_job_idx : initial_job_idx + len(job_overrides)]
        for fleet in fleets(configs, self.networks, MEMORY_SHARE * available_bytes()):
            if orders.stopped() is None:
                job.supervise(fleet, orders)
        return []


def fleets(configs: Sequence[TrainConfig], networks: int, memory: float) -> list[list[TrainConfig]]:
    """Split runs into fleets: equal in all but `OWN`, equal activations side by side.

    Args:
        configs: resolved.
        networks: in one fleet at most.
        memory: bytes that a fleet may take; a single run is never refused.
    """
    alike: dict[str, list[TrainConfig]] = {}
    for config in configs:
        alike.setdefault(_shared(config), []).append(config)
    result = []
    for group in alike.values():
        # Stable: seeds stay in their order.
        group.sort(key=_activation)
        size = max(1, min(networks, int(memory // training_bytes(group[0].model, group[0].optim.batch_size))))
        result += [group[first : first + size] for first in range(0, len(group), size)]
    return result


def _activation(config: TrainConfig) -> tuple[str, str, float, str]:
    """Equal where the function is."""
    own = config.activation
    return activation_label(config), own.path or "", own.separation or 0, own.parameter or ""


def _shared(config: TrainConfig) -> str:
    content: dict[str, Any] = dataclasses.asdict(config)
    for key in OWN:
        node, _, name = key.rpartition(".")
        del (content[node] if node else content)[name]
    return json.dumps(content, sort_keys=True)
