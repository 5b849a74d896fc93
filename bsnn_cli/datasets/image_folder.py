"""Image folders, `train/<class>/*` and `test/<class>/*`: what they hold, their pixels, and a fingerprint of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bsnn_cli.errors import DataError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

GREY_MODES = ("1", "L", "LA")
"""Pillow's names for pixels that are read as one channel; transparency is ignored."""

COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
"""Pillow's names for pixels that are read as red, green and blue; transparency is ignored."""


class Files(NamedTuple):
    """Images by path, with their labels: indices into the class names."""

    class_names: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def scan(root: Path) -> Files:
    """List the images of both splits by the rules of torchvision's ImageFolder, classes and files sorted by name.

    Raises:
        DataError: if a split is absent, a class has no image, or the splits have different classes.
    """
    from torchvision.datasets import ImageFolder

    listed = {}
    for name in ("train", "test"):
        try:
            listed[name] = ImageFolder(root / name)
        except OSError as error:
            reason = f"dataset=folder needs images in {name}/<class>/*: {error}"
            raise DataError(f"dataset.root={root}: {reason}") from error
    train, test = listed["train"], listed["test"]
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        raise DataError(f"dataset.root={root}: only one of train and test has the classes {', '.join(odd)}")
    return Files(tuple(train.classes), train.samples, test.samples)


def common_shape(files: Files) -> tuple[int, int, int]:
    """(channels, height, width) from the headers: one channel if all images are grey, otherwise three.

    Raises:
        DataError: naming the first image that is unreadable, of another size, or not of 8 bits a channel.
    """
    paths = [path for path, _ in files.train + files.test]
    sizes, modes = [], set()
    for path in paths:
        with _opened(path) as image:
            mode, size = image.mode, image.size
        if mode not in GREY_MODES + COLOUR_MODES:
            raise DataError(f"{path}: has pixels of kind {mode}; allowed are 8 bits a channel, grey or colour")
        sizes.append(size)
        modes.add(mode)
        if size != sizes[0]:
            (width, height), (first_width, first_height) = size, sizes[0]
            raise DataError(
                f"{path}: is {width} × {height} pixels, but {paths[0]} is {first_width} × {first_height};"
                " an image folder needs one size"
            )
    width, height = sizes[0]
    return 1 if modes.issubset(GREY_MODES) else 3, height, width


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An image file; whatever Pillow finds wrong with it, now or in decoding, becomes an error that names it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is damaged or no image: {error}") from error


def decode(samples: list[tuple[str, int]], shape: tuple[int, int, int], progress: bool) -> NDArray[numpy.uint8]:
    """Read images that share a shape (channels, height, width).

    Returns:
        uint8 (N, channels · height · width).

    Raises:
        DataError: naming the first damaged image.
    """
    import numpy
    from tqdm import tqdm

    images = numpy.empty((len(samples), *shape), numpy.uint8)
    quiet = None if progress else True  # None: quiet unless standard error is a terminal
    # One after the other: with images of this kind, threads mostly wait for the interpreter.
    for row, (path, _) in zip(images, tqdm(samples, desc="reading", unit="image", disable=quiet), strict=True):
        with _opened(path) as image:
            pixels = numpy.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
        row[:] = pixels if shape[0] == 1 else pixels.transpose(2, 0, 1)
    return images.reshape(len(samples), -1)


def fingerprint(root: Path) -> str:
    """Sixteen hexadecimal digits of the names and bytes of all images; the path of the folder does not enter.

    Raises:
        DataError: as `scan`, or if a file cannot be read.
    """
    files = scan(root)
    digest = hashlib.sha256()
    for path in (Path(name) for name, _ in files.train + files.test):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"dataset.root={root}: {error}") from error
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
