"""Data for a benchmark, which fetches nothing: what lies on the disk, or something to stand in for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from bsnn_cli.common.terminal import say
from bsnn_cli.datasets import data, fetch
from bsnn_cli.datasets.data import Dataset, Split
from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.config import DatasetConfig

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""(channels, height, width) of the paper's datasets."""


def fetched(config: DatasetConfig) -> bool:
    """Whether all that has to be fetched is there."""
    archives = fetch.ARCHIVES.get(config.kind, ())
    return all((Path(config.root) / archive.path).is_file() for archive in archives)


def present(config: DatasetConfig) -> Dataset:
    """The dataset, or scikit-learn's digits where its files have not been fetched."""
    if not fetched(config):
        say(f"{config.kind} is not in {config.root}; timing with digits (`bsnn data` fetches)")
        config = dataclasses.replace(config, kind="digits", name=None)
    return data.load(config)


def of_the_paper(config: DatasetConfig) -> Dataset:
    """MNIST or CIFAR-10, or as many random images of that size where its files have not been fetched."""
    if fetched(config):
        return data.load(config)
    samples, shape = DATASETS[config.kind].samples, SHAPES[config.kind]
    assert samples is not None
    say(f"{config.kind} is not in {config.root}; its place is taken by random images of the same size and number")
    generator = torch.Generator().manual_seed(0)
    d = shape[0] * shape[1] * shape[2]

    def split(n: int) -> Split:
        images = torch.randint(256, (n, d), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(10, (n,), generator=generator))

    return Dataset(
        name=f"random images like {config.kind}",
        class_names=tuple("0123456789"),
        shape=shape,
        train=split(samples[0]),
        test=split(samples[1]),
        validation=None,
        mean=torch.full((d,), 127.5),
        std=torch.full((d,), 74.0),
        scaling=config.scaling,
    )
