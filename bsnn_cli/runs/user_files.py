"""The user's own Python files that a run depends on, and their copies in its directory. Imports no torch.

A run goes on meaning the same when such a file has changed: what continues, repeats or loads it reads the copy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bsnn_cli.common import source_file
from bsnn_cli.common.files import write_atomically
from bsnn_cli.settings.choices import CUSTOM
from bsnn_cli.settings.config import TrainConfig

COPIES = {"activation": "activation.py", "network": "network.py"}
"""Names of the copies, by the node of the config whose `path` and `fingerprint` tell the file."""


def used(config: TrainConfig) -> list[str]:
    """Return the nodes of a config that name a file."""
    custom = config.network.path is None and config.activation.name == CUSTOM
    return [*(["activation"] if custom else []), *(["network"] if config.network.path is not None else [])]


def texts(config: TrainConfig) -> dict[str, str]:
    """Return the text of each file by the name of its copy.

    Raises:
        ConfigError: a file cannot be read, or is not the one that the config was made for.
    """
    nodes = {node: getattr(config, node) for node in used(config)}
    return {
        COPIES[node]: source_file.source(f"{node}.path", values.path, values.fingerprint)
        for node, values in nodes.items()
    }


def write(folder: Path, copies: dict[str, str]) -> None:
    """Write what `texts` returns into a run directory."""
    for name, text in copies.items():
        content = source_file.encoded(text)
        write_atomically(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]


def moved(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the config with the paths of the copies in a run directory."""
    changes = {}
    for node in used(config):
        values = getattr(config, node)
        changes[node] = dataclasses.replace(values, path=f"{folder / COPIES[node]}:{source_file.parts(values.path)[1]}")
    return dataclasses.replace(config, **changes)


def discard(folder: Path) -> None:
    """Remove the copies from a run directory."""
    for name in COPIES.values():
        (folder / name).unlink(missing_ok=True)
