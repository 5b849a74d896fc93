"""Read image folders, `train/<class>/*` and `test/<class>/*`: list their samples, read pixels, take a fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bsnn_cli.datasets import cache, pixels
from bsnn_cli.errors import DataError, printable

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the names of image files, in any case: those of torchvision's ImageFolder."""

LITTER = ("thumbs.db", "desktop.ini", "__macosx")
"""Names of files that systems leave in folders, in lower case. Like hidden files, they are no part of a dataset."""

MANY = 1000
"""From this number of images on, fingerprint and pixels are cached. Fewer are read in a moment."""

SETTLED_NS = 2_000_000_000
"""A file that is not older may change without a change in its times, which count two seconds at the coarsest."""

SHAPE_BYTES = 4 * 8
"""Length of the shape, four int64, that stands before cached pixels."""


class Files(NamedTuple):
    """Images by path, with their labels: indices into the class names."""

    class_names: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def scan(root: Path) -> Files:
    """List the images of both splits, classes and files sorted by name.

    A sample is a file with one of `ENDINGS` directly in the folder of a class, or a link to one. What is hidden or in
    `LITTER` is passed over; of what else is not read, one line on standard error tells.

    Raises:
        DataError: if a split is absent, a class has no image, the splits have different classes, names of classes look
            alike, or an image lies where it would not be read.
    """
    class_names: dict[str, list[str]] = {}
    samples: dict[str, list[tuple[str, int]]] = {}
    unread: list[str] = []
    for split in ("train", "test"):
        try:
            class_names[split], samples[split] = _scan_split(root / split, unread)
        except OSError as error:
            raise DataError(f"{_named(root)}: dataset=folder needs images in {split}/<class>/*: {error}") from error
    train, test = set(class_names["train"]), set(class_names["test"])
    _require_distinct(root, train | test)
    odd = [
        f"only {split} has the classes {', '.join(map(printable, sorted(names)))}"
        for split, names in (("train", train - test), ("test", test - train))
        if names
    ]
    if odd:
        raise DataError(f"{_named(root)}: {'; '.join(odd)}")
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        _warn(f"{_named(root)}: not read, since it is no image: {printable(unread[0])}{more}")
    return Files(tuple(class_names["train"]), samples["train"], samples["test"])


def _named(root: Path) -> str:
    return f"dataset.root={printable(str(root))}"


@functools.cache
def _warn(line: str) -> None:
    """Print a warning once in a process: a run scans its folder several times."""
    print(f"warning: {line}", file=sys.stderr)


def _scan_split(folder: Path, unread: list[str]) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the classes and samples of a split; entries that are not read are added to `unread`."""
    classes = _select(folder, os.path.isdir, unread)
    if not classes:
        raise FileNotFoundError(f"there is no folder of a class in {printable(str(folder))}")
    samples = []
    for label, folder_of_class in enumerate(classes):
        images = _select(folder_of_class, lambda entry: _is_image(entry.name) and _is_file(entry), unread)
        if not images:
            raise FileNotFoundError(f"there is no image in {printable(folder_of_class.path)}")
        samples += [(entry.path, label) for entry in images]
    return [entry.name for entry in classes], samples


def _select(
    folder: str | os.PathLike[str], wanted: Callable[[os.DirEntry[str]], bool], unread: list[str]
) -> list[os.DirEntry[str]]:
    """Return the wanted entries of a folder, sorted by name. Others go to `unread`, except hidden ones and litter."""
    selected = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in LITTER:
                continue
            if wanted(entry):
                selected.append(entry)
            else:
                _require_no_image(entry)
                unread.append(entry.path)
    return selected


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file or a link to one. The first test needs no access to the disk."""
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry)


def _require_no_image(entry: os.DirEntry[str]) -> None:
    """Refuse to ignore an entry that is, holds or would be an image."""
    lost = None
    if os.path.isdir(entry):
        # Links inside are not followed: they may lead round in a circle.
        if any(_is_image(name) for _, _, names in os.walk(entry) for name in names):
            lost = "is a folder inside a class, and its images would not be read"
    elif _is_file(entry):
        kind = _format(entry.path)
        lost = None if kind is None else f"is an image ({kind}) that would not be read"
    elif _is_image(entry.name):
        lost = "is a broken link or no regular file"
    if lost is not None:
        rule = f"images are train/<class>/* and test/<class>/* with one of the endings {' '.join(ENDINGS)}"
        raise DataError(f"{printable(entry.path)}: {lost}; {rule}")


@functools.cache
def _format(path: str) -> str | None:
    """Return the format of an image, whatever its name; None for other files."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.format
    except Image.DecompressionBombError:
        return "huge"
    except (OSError, SyntaxError, ValueError):
        return None


def _require_distinct(root: Path, names: set[str]) -> None:
    """Refuse names that are spelled differently and look the same, as é is one character or two."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    for spellings in alike.values():
        if len(spellings) > 1:
            shown = " and ".join(map(ascii, spellings))
            raise DataError(f"{_named(root)}: the classes {shown} look the same; give them one name in train and test")


def read(root: Path, progress: bool) -> tuple[Files, NDArray[numpy.uint8], NDArray[numpy.uint8]]:
    """Read the files of a folder and the pixels of both splits; warn where all images are the same or of one colour.

    Args:
        root: as for `scan`.
        progress: show a bar, on a terminal.

    Returns:
        (files, training images, test images), the images as uint8 (N, channels, height, width).

    Raises:
        DataError: as `scan` and `pixels.read_all`.
    """
    files = scan(root)
    images = _pixels(root, files, progress)
    train, test = images[: len(files.train)], images[len(files.train) :]
    for name, part in (("train", train), ("test", test)):
        monotony = pixels.monotony(part)
        if monotony is not None:
            _warn(f"{printable(str(root / name))}: the {len(part)} images {monotony}")
    return files, train, test


def _pixels(root: Path, files: Files, progress: bool) -> NDArray[numpy.uint8]:
    """Return the pixels (N, channels, height, width) of training and test images, from the cache if they are there."""
    import numpy

    paths = [path for path, _ in files.train + files.test]
    state = _state(root, files)
    if state is None:
        return pixels.read_all(paths, progress)
    name = f"pixels-{_fingerprint(root, files, state)}-{pixels.VERSION}-{metadata.version('pillow')}"
    stored = cache.load(name)
    if stored is not None:
        shape, images = stored[:SHAPE_BYTES].view(numpy.int64), stored[SHAPE_BYTES:]
        return images.reshape(shape)
    images = pixels.read_all(paths, progress)
    if _state(root, files) == state:  # or the fingerprint may be that of other pixels
        cache.store(name, numpy.array(images.shape, numpy.int64), images)
    return images


def fingerprint(root: Path) -> str:
    """Return sixteen hexadecimal digits of the names and bytes of all images; the folder's path does not enter.

    Raises:
        DataError: as `scan`, or if a file cannot be read.
    """
    files = scan(root)
    return _fingerprint(root, files, _state(root, files))


def _fingerprint(root: Path, files: Files, state: str | None) -> str:
    """Return `fingerprint`, from the cache if the files have been read before in this state."""
    import numpy

    stored = None if state is None else cache.load(f"fingerprint-{state}")
    if stored is not None:
        return stored.tobytes().decode()
    digest = hashlib.sha256()
    for path in (Path(name) for name, _ in files.train + files.test):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{_named(root)}: {printable(str(error))}") from error
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    result = digest.hexdigest()[:16]
    if state is not None:
        cache.store(f"fingerprint-{state}", numpy.frombuffer(result.encode(), numpy.uint8))
    return result


def _state(root: Path, files: Files) -> str | None:
    """Return a digest of the names, inodes, sizes and times of the files, which changes whenever a file does.

    None for few files, which need no cache, and where it is not safe: a file that has just been written may be written
    again without a change in its time.
    """
    samples = files.train + files.test
    if len(samples) < MANY:
        return None
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    latest = 0
    for path, _ in samples:
        try:
            status = os.stat(path)
        except OSError:
            return None  # reading it will tell
        latest = max(latest, status.st_mtime_ns, status.st_ctime_ns)
        numbers = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(os.fsencode(path) + b"\0%d %d %d %d\0" % numbers)
    return digest.hexdigest() if latest < time.time_ns() - SETTLED_NS else None
