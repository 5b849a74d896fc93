"""How much main memory there is, how much a training takes, and the refusal of what does not fit."""

from __future__ import annotations

import math
from pathlib import Path

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.config import ModelConfig


def available_bytes() -> float:
    """Main memory that a new process can have without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


def training_bytes(model: ModelConfig, batch_size: int) -> int:
    """What one network takes while it is trained, in float32: weights, momentum and the signals of a batch."""
    weights = 2 * model.depth * model.width**2
    return 4 * (weights + (5 * model.depth + 2) * batch_size * model.width)


def require(needed: float, model: ModelConfig, further: str) -> None:
    """Refuse, before starting, what this machine cannot hold.

    Args:
        needed: bytes.
        model: of the network, whose depth and width are named.
        further: what else the need depends on, as `key=value`.

    Raises:
        ConfigError: with the estimate and the limit.
    """
    available = available_bytes()
    if needed > available:
        raise ConfigError(
            f"model.depth={model.depth}, model.width={model.width}, {further}: "
            f"need about {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free"
        )
