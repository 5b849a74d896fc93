"""The widths of the hidden layers: one for all, a list, or widths that fall or grow geometrically. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bsnn_cli.settings.config import ModelConfig


def widths(model: ModelConfig) -> tuple[int, ...]:
    """Return n_1 … n_{L+1}: the units of what enters each of the L hidden matrices, and of what leaves the last one.

    Under `model.taper` n_l = n·taper^((l − 1)/L), rounded.
    """
    if model.widths is not None:
        return tuple(model.widths)
    if model.taper is not None:
        return tuple(round(model.width * model.taper ** (layer / model.depth)) for layer in range(model.depth + 1))
    return (model.width,) * (model.depth + 1)


def changing(model: ModelConfig) -> bool:
    """Return whether some hidden layer is of another width than the others."""
    return len(set(widths(model))) > 1


def matrix_shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Return the shape (n_{l+1}, n_l) of each hidden matrix."""
    sizes = widths(model)
    return list(zip(sizes[1:], sizes[:-1], strict=True))


def matrix_entries(model: ModelConfig) -> int:
    """Return the number of entries of all hidden matrices, Σ n_l n_{l+1}."""
    return sum(n_out * n_in for n_out, n_in in matrix_shapes(model))


def in_words(sizes: Sequence[int]) -> str:
    """Return the first and the last width, such as `500 to 250`; of widths that rise and fall the least and largest."""
    ends = (sizes[0], sizes[-1])
    if list(sizes) not in (sorted(sizes), sorted(sizes, reverse=True)):
        ends = (min(sizes), max(sizes))
    return f"{ends[0]} to {ends[1]}"


def with_plain_width(model: ModelConfig) -> ModelConfig:
    """Return the model with its first width as `width`, and with nothing else where all widths are equal."""
    first = widths(model)[0]
    if changing(model):
        return dataclasses.replace(model, width=first)
    return dataclasses.replace(model, width=first, widths=None, taper=None)


def resized(model: ModelConfig, depth: int, scale: float = 1.0) -> ModelConfig:
    """Return a model of another depth whose widths are those of this one at evenly spaced layers, times a factor.

    Args:
        model: with `width` as the first of its widths.
        depth: of the new model.
        scale: of the widths, which are rounded to at least 1.
    """
    sizes = widths(model)
    sampled = None
    if model.widths is not None:
        places = (round(layer * model.depth / depth) for layer in range(depth + 1))
        sampled = [max(1, round(sizes[place] * scale)) for place in places]
    return dataclasses.replace(model, depth=depth, width=max(1, round(model.width * scale)), widths=sampled)
