"""Datasets: what is read is what the files hold, split and scaled as documented."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision import datasets

from bsnn_cli.datasets import data, fetch
from bsnn_cli.errors import ConfigError, DataError
from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.config import DatasetConfig
from bsnn_cli.settings.validation import check
from tests.conftest import SHARED_DATA
from tests.folders import load as folder
from tests.folders import save

CONFIGS = Path(__file__).parents[1] / "configs" / "dataset"


def digits(**settings: object) -> data.Dataset:
    return data.load(DatasetConfig(kind="digits", **settings))


def test_mnist_is_what_the_official_files_hold(mnist_root: Path) -> None:
    dataset = data.load(DatasetConfig(kind="mnist", root=str(mnist_root)))
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        raw = mnist_root / "MNIST" / "raw"
        images = numpy.frombuffer(gzip.decompress((raw / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), numpy.uint8)
        labels = numpy.frombuffer(gzip.decompress((raw / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), numpy.uint8)
        assert numpy.array_equal(split.images.numpy(), images[16:].reshape(-1, 784))
        assert numpy.array_equal(split.labels.numpy(), labels[8:])
    assert (len(dataset.train.labels), len(dataset.test.labels)) == DATASETS["mnist"].samples
    assert (dataset.shape, dataset.inputs, dataset.classes) == ((1, 28, 28), 784, 10)
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (torch.uint8, torch.int64)
    # Digit 1: 11.24 % of the training split and 11.35 % of the test split, the paper's accuracies of a constant answer.
    assert dataset.train.labels.bincount()[1] == 6742
    assert dataset.test.labels.bincount()[1] == 1135


def test_unverified_files_of_an_old_torchvision_are_not_read(mnist_root: Path, tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw").symlink_to(mnist_root / "MNIST" / "raw")
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), tmp_path / "MNIST/processed" / name)
    assert len(data.load(DatasetConfig(kind="mnist", root=str(tmp_path))).train.labels) == 60_000


def test_a_truncated_mnist_file_is_named(mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.load(DatasetConfig(kind="mnist", root=str(mnist_root)))  # unpacks
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist_root / "MNIST" / "raw").glob("*ubyte"):
        (raw / path.name).symlink_to(path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte").write_bytes((mnist_root / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[:-1])
    monkeypatch.setenv(fetch.MIRROR_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=f"{raw}/t10k-labels-idx1-ubyte is damaged .10007 bytes"):
        data.load(DatasetConfig(kind="mnist", root=str(tmp_path)))


def test_a_dataset_that_is_not_fetched_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data._READERS, "own", data._READERS["digits"])
    told = data.describe(DatasetConfig(kind="own"))
    assert "own: 10 classes" in told
    assert "not fetched by this program" in told


@pytest.mark.parametrize("kind", ["mnist", "digits"])
def test_constants_are_those_of_the_training_split(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("mnist_root") if kind == "mnist" else "unused"
    images = data.load(DatasetConfig(kind=kind, root=str(root))).train.images.numpy()
    (mean,), (std,) = data.CONSTANTS[kind]
    assert mean == pytest.approx(images.mean(dtype=numpy.float64), rel=1e-12)
    assert std == pytest.approx(images.std(dtype=numpy.float64), rel=1e-12)


def test_cifar10_constants_are_near_those_of_its_jpeg_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = SHARED_DATA / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    tenth = ["--wildcards", "train/*/???5.jpg", "test/*/??55.jpg"]
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path, *tenth], check=True)
    dataset = folder(tmp_path)
    assert (dataset.shape, len(dataset.train.labels), len(dataset.test.labels)) == ((3, 32, 32), 5000, 100)
    assert dataset.class_names == tuple(sorted(dataset.class_names))
    means, deviations = data.CONSTANTS["cifar10"]
    assert dataset.mean[::1024].tolist() == pytest.approx(means, abs=2)
    assert dataset.std[::1024].tolist() == pytest.approx(deviations, abs=2)


def test_checksums_and_classes_are_those_of_torchvision() -> None:
    for kind, published in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        listed = [(Path(archive.path).name, archive.md5) for archive in fetch.ARCHIVES[kind]]
        assert listed == published.resources
        assert data.CLASSES[kind] == tuple(published.classes)
    (archive,) = fetch.ARCHIVES["cifar10"]
    cifar10 = datasets.CIFAR10
    assert (archive.path, archive.md5) == (cifar10.filename, cifar10.tgz_md5)
    files = [*cifar10.train_list, *cifar10.test_list, (cifar10.meta["filename"], cifar10.meta["md5"])]
    assert archive.contents == {f"{cifar10.base_folder}/{name}": md5 for name, md5 in files}


def pickled_in_2009(content: dict[str, object]) -> bytes:
    """A pickle as numpy wrote it when CIFAR-10 was published: another module name, a flag spelt 0."""
    new = pickle.dumps(content, protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert old.count(b"numpy.core") == ("data" in content) == old.count(b"K\x00K\x01\x87")
    return old


def test_cifar10_is_what_its_pickles_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 2, 3072), numpy.uint8)
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    files = {
        name: pickled_in_2009({"data": pixels[index], "labels": [index, 9 - index]}) for index, name in enumerate(names)
    }
    files["batches.meta"] = pickled_in_2009({"label_names": [f"class{index}" for index in range(10)]})
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in reversed(files.items()):
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    packed = hashlib.md5((tmp_path / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    contents = {f"cifar-10-batches-py/{name}": md5 for name, md5 in md5s.items()}
    archive = fetch.Archive("cifar-10-python.tar.gz", 0, packed, contents, ())
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", (archive,))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5s[name]] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[names[5], md5s[names[5]]]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", md5s["batches.meta"])

    dataset = data.load(DatasetConfig(kind="cifar10", root=str(tmp_path)))
    assert dataset.shape == (3, 32, 32)
    assert dataset.class_names[3] == "class3"
    assert numpy.array_equal(dataset.train.images.numpy(), pixels[:5].reshape(10, 3072))
    assert numpy.array_equal(dataset.test.images.numpy(), pixels[5])
    assert dataset.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert dataset.test.labels.tolist() == [5, 4]
    green = dataset.mean[1024:2048]
    assert torch.equal(green, torch.full((1024,), data.CONSTANTS["cifar10"][0][1]))


def test_digits_are_split_one_to_four_within_each_class_and_none_is_lost() -> None:
    dataset, bundled = digits(), load_digits()
    assert (len(dataset.train.labels), len(dataset.test.labels)) == DATASETS["digits"].samples
    assert (len(dataset.train.labels), len(dataset.test.labels), dataset.shape) == (1442, 355, (1, 8, 8))
    for label in range(10):
        of_class = torch.from_numpy(bundled.data[bundled.target == label]).to(torch.uint8)
        is_test = torch.arange(len(of_class)) % 5 == 4
        assert torch.equal(dataset.test.images[dataset.test.labels == label], of_class[is_test])
        assert torch.equal(dataset.train.images[dataset.train.labels == label], of_class[~is_test])


def test_standardised_training_split_has_mean_0_and_variance_1_per_channel(tmp_path: Path) -> None:
    colours = numpy.random.default_rng(0).integers(0, (256, 100, 20), (2, 5, 4, 3))
    for index, pixels in enumerate(colours):
        save(tmp_path / f"train/a/{index}.png", pixels)
        save(tmp_path / f"test/a/{index}.png", pixels)
    dataset = folder(tmp_path)
    channels = dataset.standardise(dataset.train.images, torch.float64).view(2, 3, 20)
    assert channels.mean((0, 2)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert channels.var((0, 2), correction=0).tolist() == pytest.approx([1] * 3, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thin_shell_puts_every_image_on_the_sphere_and_keeps_its_direction(dtype: torch.dtype) -> None:
    plain, shell = digits(), digits(scaling="thin_shell")
    images = plain.test.images.view(5, 71, 64)
    standardised, placed = plain.standardise(images, dtype), shell.standardise(images, dtype)
    assert placed.dtype == dtype
    assert placed.shape == images.shape
    torch.testing.assert_close(placed.norm(dim=-1), torch.full((5, 71), math.sqrt(64), dtype=dtype))
    cosines = torch.nn.functional.cosine_similarity(standardised, placed, dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


@pytest.mark.parametrize("scaling", ["standardize", "thin_shell"])
def test_images_of_one_grey_level_become_zero(scaling: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "a/0.png", [[7] * 3] * 2)
    dataset = folder(tmp_path, scaling=scaling)
    assert torch.equal(dataset.standardise(dataset.train.images), torch.zeros(1, 6))


@pytest.mark.parametrize("scaling", ["standardize", "thin_shell"])
def test_standardising_never_looks_at_values_on_the_host(scaling: str) -> None:
    dataset = digits(scaling=scaling)
    traced = make_fx(lambda images: dataset.standardise(images))(dataset.test.images[:2])
    torch.testing.assert_close(traced(dataset.test.images[2:4]), dataset.standardise(dataset.test.images[2:4]))


def test_validation_is_a_fixed_part_of_the_training_split_alone() -> None:
    whole, parted = digits(), digits(validation=0.1)
    torch.manual_seed(1)
    again = digits(validation=0.1)
    assert parted.validation is not None
    assert again.validation is not None
    assert torch.equal(parted.validation.images, again.validation.images)
    assert torch.equal(parted.train.labels, again.train.labels)
    assert (len(parted.train.labels), len(parted.validation.labels)) == (1442 - 144, 144)

    def rows(*splits: data.Split) -> list[list[int]]:
        return sorted(
            [*image, label]
            for split in splits
            for image, label in zip(split.images.tolist(), split.labels.tolist(), strict=True)
        )

    assert rows(parted.train, parted.validation) == rows(whole.train)
    assert torch.equal(parted.test.images, whole.test.images)
    assert torch.equal(parted.mean, whole.mean)
    assert set(parted.validation.labels.tolist()) == set(range(10))
    assert whole.validation is None


def test_constants_of_a_folder_do_not_depend_on_validation(grey_folder: Path) -> None:
    assert torch.equal(folder(grey_folder, validation=0.4).mean, folder(grey_folder).mean)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_validation_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"dataset.validation={share}: leaves"):
        digits(validation=share)


def test_datasets_fixed_by_their_name_have_no_fingerprint() -> None:
    assert data.fingerprint(DatasetConfig(kind="digits")) is None


def test_labels_outside_the_classes_are_refused() -> None:
    images = torch.zeros(2, 4, dtype=torch.uint8)
    good, bad = data.Split(images, torch.tensor([0, 1])), data.Split(images, torch.tensor([0, 2]))
    for train, test in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match="labels from 0 to 2, but there are 2 classes"):
            data.Dataset("x", ("a", "b"), (1, 2, 2), train, test, None, torch.zeros(4), torch.ones(4), "standardize")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_dataset_moves_whole() -> None:
    moved = digits(validation=0.1).to("cuda")
    assert moved.validation is not None
    tensors = [moved.mean, moved.std]
    for split in (moved.train, moved.test, moved.validation):
        tensors += [split.images, split.labels]
    assert all(tensor.is_cuda for tensor in tensors)


def test_the_description_has_checksums_counts_and_constants(mnist_root: Path) -> None:
    text = data.describe(DatasetConfig(kind="mnist", root=str(mnist_root)))
    for archive in fetch.ARCHIVES["mnist"]:
        assert f"{archive.md5}  verified" in text
    assert "images of 1 × 28 × 28" in text
    assert "6742 (11.24 %)" in text
    assert "1135 (11.35 %)" in text
    assert "33.3184  78.5675" in text


def test_descriptions_of_other_kinds(grey_folder: Path) -> None:
    text = data.describe(DatasetConfig(kind="digits", validation=0.1))
    assert "1298" in text.splitlines()[-4]
    config = DatasetConfig(kind="folder", name="mine", root=str(grey_folder))
    assert str(data.fingerprint(config)) in data.describe(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_config_is_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSNN_DATA_DIR", "/elsewhere")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), OmegaConf.load(path)))
    check(config)
    assert path.stem in (config.kind, config.name)
    assert config.root.startswith("/elsewhere")
