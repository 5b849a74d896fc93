"""Read the presets in `configs/approach`, the approaches that the paper compares, and hold networks to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def preset(name: str) -> dict[str, Any]:
    """Return what an approach says about the network, by the field names of `ModelConfig`; nothing for a user's own."""
    path = files("bsnn_cli.configs") / "approach" / f"{name}.yaml"
    if not path.is_file():
        return {}
    return dict(cast(DictConfig, OmegaConf.create(path.read_text(encoding="utf-8"))).model)


def recognised(settings: Mapping[Any, Any]) -> str | None:
    """Return the approach that a network follows: the one it is named after, or whose preset it agrees with.

    Without GPN, the default network is like bsnn in all else, and follows none.

    Args:
        settings: of a run, by dotted key.
    """
    if isinstance(settings["approach"], str):
        return settings["approach"]
    for name, model in _presets().items():
        agrees = all(settings[f"model.{key}"] == value for key, value in model.items())
        if agrees and (name != "bsnn" or settings["activation.gpn"]):
            return name
    return None


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    entries = sorted((files("bsnn_cli.configs") / "approach").iterdir(), key=lambda path: path.name)
    names = [path.name.removesuffix(".yaml") for path in entries if path.name.endswith(".yaml")]
    return {name: preset(name) for name in names}


def contradictions(config: Any) -> list[str]:
    """Return one line for each key in which a network differs from the approach that it is named after.

    Depth, width and activation are free: the paper's approaches go with any.
    """
    name = getattr(config, "approach", None)
    if name is None:
        return []
    return [
        f"model.{key}={getattr(config.model, key)}: contradicts approach={name}, which is model.{key}={value}"
        for key, value in preset(name).items()
        if getattr(config.model, key) != value
    ]
