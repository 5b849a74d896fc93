"""How much main memory there is, how much a training takes, and the refusal of what does not fit."""

from __future__ import annotations

from bsnn_cli.common.machine import available_bytes
from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.config import ModelConfig


def training_bytes(model: ModelConfig, batch_size: int) -> int:
    """Return the bytes of one network in training, in float32: weights, momentum and the signals of a batch."""
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
