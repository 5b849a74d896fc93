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
from bsnn_cli.common.terminal import say
from bsnn_cli.networks.memory import training_bytes
from bsnn_cli.runs import job, plan
from bsnn_cli.runs.job import Manifest
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label

LAUNCHER = "hydra_plugins.bsnn.FleetLauncher"
"""Hydra takes plugins of this name space only; this one is registered, not installed."""

MEMORY_SHARE = 0.7
"""The networks of a fleet may take this share of the free main memory. On a GPU its own memory counts: a fleet that
does not fit there is halved."""

MEMBER_KEYS = ("activation", "optim.lr", "optim.weight_decay", "optim.clip", "seed", "force", "wait")
"""Keys whose values may differ between the members of a fleet."""


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().class_name_to_class[LAUNCHER] = FleetLauncher
    ConfigStore.instance().store(
        group="hydra/launcher", name="fleet", node={"_target_": LAUNCHER, "networks": 24}, provider="bsnn"
    )


class FleetLauncher(Launcher):
    """Train the jobs of a sweep in as few fleets as their shapes and the memory allow, one fleet after the other.

    Args:
        networks: in one fleet at most. On a GPU more than 24 gain nothing: the arithmetic is the limit then.
    """

    def __init__(self, networks: int) -> None:
        self.networks = networks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """See the base class."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the jobs to their end. Nothing is returned: the run directories tell the outcome."""
        manifest = Manifest.read(Path(self.config.hydra.sweep.dir))
        configs = manifest.configs[initial_job_idx : initial_job_idx + len(job_overrides)]
        apart = [key for key in plan.varied(configs) if not key.startswith(MEMBER_KEYS)]
        if apart:
            say(f"runs that differ in {', '.join(apart)} are trained in different fleets")
        for fleet in fleets(configs, self.networks, MEMORY_SHARE * available_bytes()):
            if manifest.stopped() is None:
                job.supervise(fleet, manifest)
        return []


def fleets(configs: Sequence[TrainConfig], networks: int, memory: float) -> list[list[TrainConfig]]:
    """Split runs into fleets: equal in all but `MEMBER_KEYS`, equal activations side by side.

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
        group.sort(key=_activation)  # stable: seeds stay in their order
        alone = group[0].network.path is not None  # nothing is gained by training a user's own modules together
        size = 1 if alone else max(1, min(networks, int(memory // training_bytes(group[0]))))
        result += [group[first : first + size] for first in range(0, len(group), size)]
    return result


def _activation(config: TrainConfig) -> tuple[str, str, float, str]:
    """Return a key for sorting that is equal for equal activation functions."""
    activation = config.activation
    return activation_label(config), activation.path or "", activation.separation or 0, activation.parameter or ""


def _shared(config: TrainConfig) -> str:
    """Return what the members of a fleet must have in common, as text."""
    content: dict[str, Any] = dataclasses.asdict(config)
    for key in MEMBER_KEYS:
        node, _, name = key.rpartition(".")
        del (content[node] if node else content)[name]
    return json.dumps(content, sort_keys=True)
