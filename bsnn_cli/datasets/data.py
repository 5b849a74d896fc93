"""Read datasets into memory as tensors, with their official split.

Images stay uint8 in memory, at their grey levels, and are standardised batch by batch: MNIST takes 55 MB, and a whole
dataset can live on the device.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bsnn_cli.common.terminal import aligned
from bsnn_cli.datasets import fetch, image_folder
from bsnn_cli.errors import ConfigError, DataError, printable
from bsnn_cli.settings.config import DatasetConfig

CONSTANTS = {
    "mnist": ((33.318421449829934,), (78.56748998339799,)),
    "fashion_mnist": ((72.94035223214286,), (90.02118235130526,)),
    "cifar10": (
        (125.306918046875, 122.950394140625, 113.86538318359375),
        (62.993219278136884, 62.08870764001421, 66.70489964063091),
    ),
    "digits": ((4.882173196948682,), (6.0185209112871405,)),
}
"""(means, standard deviations) per channel over all pixels of the official training split, in grey levels: 0 to 255,
digits 0 to 16. Divided by 255, MNIST's are the usual 0.1307 and 0.3081. They do not depend on `dataset.validation`."""

CLASSES = {
    "mnist": tuple(
        f"{digit} - {word}"
        for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    ),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
"""Names of the classes, as torchvision has them."""

VALIDATION_SEED = 20_061_2169
"""Seed of the permutation that sets samples aside for validation, the same in all runs."""


@dataclass(frozen=True)
class Split:
    """Samples for one purpose.

    Attributes:
        images: uint8 grey levels (N, d), each row a flattened (channels, height, width).
        labels: int64 (N,), index into the class names.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Split:
        """Return the same samples on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Images of one size with labels, and how they are scaled.

    Attributes:
        name: as paths and tables show it.
        class_names: by label.
        shape: (channels, height, width); d is their product.
        train: the training samples, without those set aside for validation.
        test: the official test split, whole.
        validation: samples set aside from the training split for choosing between settings; None if none.
        mean, std: float32 (d,), per channel and repeated over its pixels, in grey levels; a channel that has only one
            grey level gets the `std` 1, which makes it 0 once standardised.
        scaling: `standardize` or `thin_shell`.

    Raises:
        DataError: if the labels do not fit the classes or the images.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    test: Split
    validation: Split | None
    mean: Tensor
    std: Tensor
    scaling: str

    def __post_init__(self) -> None:
        for split in (self.train, self.test):
            low, high = (int(bound) for bound in split.labels.aminmax())
            if low < 0 or high >= self.classes:
                raise DataError(f"{self.name}: labels from {low} to {high}, but there are {self.classes} classes")
            if len(split.labels) != len(split.images):
                raise DataError(f"{self.name}: {len(split.images)} images, but {len(split.labels)} labels")

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def inputs(self) -> int:
        """Return the number d of values of an image."""
        channels, height, width = self.shape
        return channels * height * width

    def standardise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale images for the network: mean 0 and variance 1 per channel and, for `thin_shell`, norm √d per image.

        Inputs on the sphere of radius √d meet the thin-shell assumption of the paper's theorems exactly. An image that
        standardises to 0 has no direction and stays 0.

        Args:
            images: uint8 (..., d), on this dataset's device.
            dtype: of the result.

        Returns:
            (..., d). Neither a branch nor a host synchronisation depends on the values, so that a CUDA graph can
            capture it.
        """
        values = (images - self.mean.to(dtype)) / self.std.to(dtype)
        if self.scaling == "thin_shell":
            radius = values.square().mean(-1, keepdim=True).sqrt()
            values = values / radius.clamp_min(torch.finfo(dtype).tiny)
        return values

    def batch(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return standardised images (..., d) and labels (...) of the training split, by their indices (...)."""
        return self.standardise(self.train.images[indices], dtype), self.train.labels[indices]

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same dataset on a device."""
        return dataclasses.replace(
            self,
            train=self.train.to(device),
            test=self.test.to(device),
            validation=None if self.validation is None else self.validation.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


class _Content(NamedTuple):
    """The content of a dataset's files."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    test: Split


_Levels = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations per channel, in grey levels."""


def load(config: DatasetConfig, progress: bool = True) -> Dataset:
    """Read a dataset into memory, fetching and verifying its files first where needed.

    Args:
        config: checked; `kind` says what is read.
        progress: show bars, on a terminal.

    Raises:
        DataError: if a file is absent, damaged or does not fit the others.
        ConfigError: if `dataset.validation` leaves nothing to train on or nothing to choose on.
    """
    return _loaded(config, progress)[0]


def _loaded(config: DatasetConfig, progress: bool) -> tuple[Dataset, _Levels]:
    content = _READERS[config.kind](config, progress)
    channels, height, width = content.shape
    constants = CONSTANTS.get(config.kind)
    levels = channel_statistics(content.train.images, channels) if constants is None else constants
    means, deviations = levels
    divisors = [1.0 if deviation == 0 else deviation for deviation in deviations]
    train, validation = _set_aside(content.train, config.validation)
    dataset = Dataset(
        name=config.kind if config.name is None else config.name,
        class_names=content.class_names,
        shape=content.shape,
        train=train,
        test=content.test,
        validation=validation,
        mean=torch.tensor(means).repeat_interleave(height * width),
        std=torch.tensor(divisors).repeat_interleave(height * width),
        scaling=config.scaling,
    )
    return dataset, levels


def channel_statistics(images: Tensor, channels: int) -> _Levels:
    """Return means and standard deviations per channel, exact up to the rounding of the result.

    Args:
        images: uint8 (N, d).
        channels: the first factor of d.

    Returns:
        (means, standard deviations) in grey levels.
    """
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in torch.split(images, 1000):
        for channel, values in enumerate(chunk.view(len(chunk), channels, -1).unbind(1)):
            # By NumPy: PyTorch takes nine times as long.
            counts[channel] += torch.from_numpy(np.bincount(values.flatten().numpy(), minlength=256))
    levels = torch.arange(256, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    means = shares @ levels
    variances = (shares * (levels - means[:, None]).square()).sum(1)
    return tuple(means.tolist()), tuple(variances.sqrt().tolist())


def _set_aside(train: Split, share: float) -> tuple[Split, Split | None]:
    """Split off the last round(share · N) samples of a fixed permutation that depends on nothing but N."""
    if share == 0:
        return train, None
    total = len(train.labels)
    rest = total - round(share * total)
    if not 0 < rest < total:
        raise ConfigError(f"dataset.validation={share}: leaves {rest} of {total} samples for training; both need some")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    first, last = order[:rest], order[rest:]
    return Split(train.images[first], train.labels[first]), Split(train.images[last], train.labels[last])


def _root(config: DatasetConfig) -> Path:
    return Path(config.root)


def _read_mnist(config: DatasetConfig, progress: bool) -> _Content:
    """Read MNIST or Fashion-MNIST here, since torchvision, which can, takes a third of a run's start to import."""
    archives = fetch.ARCHIVES[config.kind]
    with fetch.unpacked(_root(config), archives, progress) as folder:
        arrays = [_read_idx(folder / name) for archive in archives for name in archive.contents]
    train, test = (
        Split(images.flatten(1), labels.to(torch.int64))
        for images, labels in zip(arrays[::2], arrays[1::2], strict=True)
    )
    return _Content(CLASSES[config.kind], (1, 28, 28), train, test)


def _read_idx(path: Path) -> Tensor:
    """Read the uint8 array of an idx file, whose checksum is known to be right.

    The file has two bytes 0, a byte for the type, one for the number of dimensions, their sizes as big-endian int32,
    and the values in C order.
    """
    content = np.fromfile(path, np.uint8)
    dimensions = int(content[3])
    header = 4 * (1 + dimensions)
    return torch.from_numpy(content[header:].reshape(content[4:header].view(">i4")))


def _read_cifar10(config: DatasetConfig, progress: bool) -> _Content:
    """Read CIFAR-10 by torchvision's parser."""
    from torchvision.datasets import CIFAR10

    splits = []
    with fetch.unpacked(_root(config), fetch.ARCHIVES["cifar10"], progress) as folder, warnings.catch_warnings():
        # The pickles of 2009 spell a flag of numpy's dtype as 0, which numpy 2.4.0 to 2.4.4 warn of.
        warnings.filterwarnings("ignore", message=".*align should be passed")
        for train in (True, False):
            parsed = CIFAR10(folder, train=train, download=False)
            images = torch.from_numpy(parsed.data).permute(0, 3, 1, 2)
            splits.append(Split(images.flatten(1).contiguous(), torch.tensor(parsed.targets)))
    return _Content(tuple(parsed.classes), (3, 32, 32), *splits)


def _read_digits(config: DatasetConfig, progress: bool) -> _Content:  # noqa: ARG001 - the signature of a reader
    """Read the 1797 handwritten digits of scikit-learn, 8 × 8 pixels with levels 0 to 16.

    They come without a split. Here every fifth image of each class, in scikit-learn's order, is the test split (355
    images), the other 1442 the training split: stratified, without chance, and writers appear in both, as in MNIST's
    usual random validation splits but unlike in its test split.
    """
    # The file itself: `load_digits` reads no more than this, after a second of imports, much for a run of two.
    bundled = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(str(bundled), dtype=np.uint8, delimiter=","))
    images, labels = table[:, :-1].contiguous(), table[:, -1].to(torch.int64)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        is_test[(labels == label).nonzero()[4::5]] = True
    return _Content(
        tuple(str(digit) for digit in range(10)),
        (1, 8, 8),
        Split(images[~is_test], labels[~is_test]),
        Split(images[is_test], labels[is_test]),
    )


def _read_folder(config: DatasetConfig, progress: bool) -> _Content:
    """Read a folder of images of one size."""
    files, *images = image_folder.read(_root(config), progress)
    train, test = (
        Split(torch.from_numpy(part).flatten(1), torch.tensor([label for _, label in samples]))
        for part, samples in zip(images, (files.train, files.test), strict=True)
    )
    channels, height, width = images[0].shape[1:]
    return _Content(files.class_names, (channels, height, width), train, test)


_READERS: dict[str, Callable[[DatasetConfig, bool], _Content]] = {
    "mnist": _read_mnist,
    "fashion_mnist": _read_mnist,
    "cifar10": _read_cifar10,
    "digits": _read_digits,
    "folder": _read_folder,
}


def fingerprint(config: DatasetConfig) -> str | None:
    """Return a fingerprint of an image folder's content; None for datasets that are fixed by name.

    Raises:
        DataError: if the folder is absent or a file cannot be read.
    """
    return image_folder.fingerprint(_root(config)) if config.kind == "folder" else None


def describe(config: DatasetConfig) -> str:
    """Load a dataset and describe it: files with checksums, counts per class, shape, scaling constants.

    Raises:
        DataError, ConfigError: as `load`.
    """
    dataset, levels = _loaded(config, True)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    present = {name: split for name, split in splits.items() if split is not None}
    counts = [split.labels.bincount(minlength=dataset.classes).tolist() for split in present.values()]
    shape = " × ".join(str(length) for length in dataset.shape)
    channels = [
        [str(channel), f"{mean:.4f}", f"{deviation:.4f}", "" if deviation > 0 else "(one grey level; it becomes 0)"]
        for channel, (mean, deviation) in enumerate(zip(*levels, strict=True))
    ]
    blocks = [
        [[f"{dataset.name}: {dataset.classes} classes, images of {shape} values (channels × height × width)"]],
        _files(config),
        [
            ["class", *present],
            *(
                [printable(name), *map(_with_share, row, map(sum, counts))]
                for name, *row in zip(dataset.class_names, *counts, strict=True)
            ),
            ["all", *(str(sum(column)) for column in counts)],
        ],
        [["channel", "mean", "standard deviation", "(grey levels of the whole training split)"], *channels],
    ]
    return "\n\n".join(aligned(rows) for rows in blocks)


def _with_share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.2f} %)"


def _files(config: DatasetConfig) -> list[list[str]]:
    """Return a table of the files that a dataset was read from."""
    if config.kind == "digits":
        return [["bundled with scikit-learn; test split: every fifth image of each class"]]
    root = _root(config)
    if config.kind == "folder":
        return [[f"{root}: fingerprint of the content {image_folder.fingerprint(root)}"]]
    if config.kind not in fetch.ARCHIVES:
        return [["not fetched by this program, so no checksum is known"]]
    rows = [[f"file in {root}", "bytes", "md5", "state"]]
    for archive in fetch.ARCHIVES[config.kind]:
        for name, md5 in {archive.path: archive.md5, **archive.contents, **dict.fromkeys(archive.others, "")}.items():
            if (root / name).is_file():
                wrong = fetch.flaw(root / name, md5)
                if wrong is not None and name not in archive.contents and fetch.holds(root / name, archive):
                    wrong, md5 = None, "(of the content)"
                state = "verified" if wrong is None else f"{wrong}; not used"
                rows.append([name, str((root / name).stat().st_size), md5, state])
    return rows
