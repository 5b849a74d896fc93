"""Image folders made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from bsnn_cli.datasets import data
from bsnn_cli.settings.config import DatasetConfig

GREY = [[0, 50, 100], [150, 200, 250]]
"""Two rows of three pixels."""


def config(root: Path, **settings: Any) -> DatasetConfig:
    """Return the config of the images in a folder."""
    return DatasetConfig(kind="folder", name="mine", root=str(root), **settings)


def load(root: Path, **settings: Any) -> data.Dataset:
    return data.load(config(root, **settings), progress=False)


def save(path: Path, pixels: object, mode: str | None = None, **options: Any) -> None:
    """Write an image from its grey levels (rows of pixels), converted to one of Pillow's modes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numpy.array(pixels, numpy.uint8))
    (image if mode is None else image.convert(mode)).save(path, **options)
