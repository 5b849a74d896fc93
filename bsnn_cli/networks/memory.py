"""How much main memory there is, how much a training takes, and the refusal of what does not fit."""

from __future__ import annotations

from bsnn_cli.common.machine import available_bytes
from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.choices import OPTIMISERS
from bsnn_cli.settings.config import ModelConfig, TrainConfig
from bsnn_cli.settings.widths import matrix_entries, widths


def training_bytes(config: TrainConfig) -> int:
    """Return the bytes of one network in training, in float32: weights, buffers and the signals of a batch.

    Of a user's own module nothing is known, and 1 stands for it. The signals of a convolutional network are taken to
    have 16 × 16 pixels, as those of CIFAR-10.
    """
    if config.network.path is not None:
        return 1
    model, batch = config.model, config.optim.batch_size
    taps, pixels = (9, 256) if config.network.kind == "cnn" else (1, 1)
    copies = 1 + len(OPTIMISERS[config.optim.kind].buffers)
    signals = 5 * sum(widths(model)[:-1]) + 2 * model.width
    return 4 * (copies * taps * matrix_entries(model) + signals * batch * pixels)


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
