"""Image folders, `train/<class>/*` and `test/<class>/*`: what they hold, their pixels, and a fingerprint of both."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bsnn_cli.datasets import pixels
from bsnn_cli.errors import DataError, printable

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


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


@functools.cache
def _warn(line: str) -> None:
    """Print a warning once in a process: a run scans its folder several times."""
    print(f"warning: {line}", file=sys.stderr)


def read(root: Path, progress: bool) -> tuple[Files, NDArray[numpy.uint8], NDArray[numpy.uint8]]:
    """The files of a folder and the pixels of both splits; a line on standard error tells of pixels that tell nothing.

    Args:
        root: as for `scan`.
        progress: show a bar, on a terminal.

    Returns:
        (files, training images, test images), the images as uint8 (N, channels, height, width).

    Raises:
        DataError: as `scan` and `pixels.read_all`.
    """
    files = scan(root)
    images = pixels.read_all([path for path, _ in files.train + files.test], progress)
    train, test = images[: len(files.train)], images[len(files.train) :]
    for name, part in (("train", train), ("test", test)):
        monotony = pixels.monotony(part)
        if monotony is not None:
            _warn(f"{printable(str(root / name))}: the {len(part)} images {monotony}")
    return files, train, test


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
