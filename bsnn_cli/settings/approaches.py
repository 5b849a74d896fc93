"""The approaches that the paper compares, as presets in `configs/approach`: read here, and held to what they say."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def preset(name: str) -> dict[str, Any]:
    """What an approach says about the network, by the field names of `ModelConfig`."""
    text = (files("bsnn_cli.configs") / "approach" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(cast(DictConfig, OmegaConf.create(text)).model)


def contradictions(config: Any) -> list[str]:
    """Where a network goes by the name of an approach and is another one; one line each.

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
