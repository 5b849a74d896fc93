"""Image folders: which files are samples, what is told of the others, and what identifies them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from bsnn_cli.datasets import data, image_folder, pixels
from bsnn_cli.errors import DataError
from bsnn_cli.runs import plan, runner
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import identity
from bsnn_cli.settings.validation import resolve
from tests.conftest import Answer
from tests.folders import GREY, config, load, save


def test_a_grey_folder_is_read_as_one_channel_in_the_order_of_names(grey_folder: Path) -> None:
    dataset = load(grey_folder)
    assert (dataset.name, dataset.class_names, dataset.shape) == ("mine", ("ant", "zebra"), (1, 2, 3))
    assert dataset.train.images.tolist() == [[20] * 6, [10] * 6, [0, 50, 100, 150, 200, 250]]
    assert dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.test.images[:, 0].tolist() == [30, 40]
    assert dataset.test.labels.tolist() == [0, 1]
    # (6·20 + 6·10 + 750) / 18 and (6·400 + 6·100 + 137500) / 18 − mean²
    mean = 930 / 18
    assert dataset.mean.tolist() == pytest.approx([mean] * 6)
    assert dataset.std.tolist() == pytest.approx([math.sqrt(140_500 / 18 - mean**2)] * 6)


def test_one_colour_image_makes_all_of_a_folder_colour(grey_folder: Path) -> None:
    save(
        grey_folder / "test/zebra/1.png",
        [[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[11, 12, 13], [14, 15, 16], [17, 18, 19]]],
    )
    dataset = load(grey_folder)
    assert dataset.shape == (3, 2, 3)
    assert dataset.train.images[2].tolist() == [0, 50, 100, 150, 200, 250] * 3
    assert dataset.test.images[2].tolist() == [1, 4, 7, 11, 14, 17, 2, 5, 8, 12, 15, 18, 3, 6, 9, 13, 16, 19]


def test_an_image_of_another_size_is_named_with_both_sizes(grey_folder: Path) -> None:
    save(grey_folder / "test/ant/1.png", [[0] * 4] * 2)
    with pytest.raises(DataError, match=r"test/ant/1.png: is 4 × 2 pixels, but .*train/ant/0.png is 3 × 2"):
        load(grey_folder)


def test_splits_with_different_classes_are_refused(grey_folder: Path) -> None:
    save(grey_folder / "test/bee/0.png", GREY)
    save(grey_folder / "test/bee2/0.png", GREY)
    with pytest.raises(DataError, match=f"dataset.root={grey_folder}: only test has the classes bee, bee2"):
        load(grey_folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_without_a_split_is_refused(split: str, grey_folder: Path) -> None:
    shutil.rmtree(grey_folder / split)
    with pytest.raises(DataError, match=f"dataset.root={grey_folder}: dataset=folder needs images in {split}/<class>"):
        load(grey_folder)
    with pytest.raises(DataError, match=r"dataset\.root="):
        data.fingerprint(config(grey_folder))


@pytest.mark.parametrize("suffix", ["png", "jpg", "ppm"])
def test_a_truncated_image_is_named(suffix: str, grey_folder: Path) -> None:
    path = grey_folder / f"train/ant/9.{suffix}"
    save(path, GREY)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"{path}: is damaged or no image"):
        load(grey_folder)


def test_a_file_that_is_no_image_is_named(grey_folder: Path) -> None:
    (grey_folder / "train/ant/9.png").write_text("no image")
    with pytest.raises(DataError, match=r"train/ant/9\.png: is damaged or no image"):
        load(grey_folder)


def test_the_fingerprint_is_of_the_content_and_not_of_the_path(grey_folder: Path, tmp_path: Path) -> None:
    original = image_folder.fingerprint(grey_folder)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(grey_folder, copy)
    assert image_folder.fingerprint(copy) == original
    (copy / "notes.txt").write_text("not an image")
    assert image_folder.fingerprint(copy) == original

    seen = {original}
    save(copy / "test/zebra/0.png", [[41] * 3] * 2)
    seen.add(image_folder.fingerprint(copy))
    (copy / "train/ant/1.png").rename(copy / "train/ant/2.png")
    seen.add(image_folder.fingerprint(copy))
    for split in ("train", "test"):
        (copy / split / "ant").rename(copy / split / "bee")
    seen.add(image_folder.fingerprint(copy))
    (copy / "train/bee/2.png").unlink()
    seen.add(image_folder.fingerprint(copy))
    assert len(seen) == 5


def ordinary(root: Path, ending: str) -> Path:
    """Grey (.pgm) or coloured (.ppm) pictures of 2 × 2 pixels, byte by byte: no encoder has a say in them."""
    kind, channels = {".pgm": (b"P5", 1), ".ppm": (b"P6", 3)}[ending]
    for index, name in enumerate(("train/ant/0", "train/ant/1", "train/Zebra/0", "test/ant/0", "test/Zebra/0")):
        levels = bytes((37 * index + 11 * place) % 256 for place in range(4 * channels))
        path = (root / name).with_suffix(ending if index % 2 else ending.upper())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kind + b" 2 2 255\n" + levels)
    return root


@pytest.mark.parametrize(
    ("ending", "fingerprint", "run", "pixels", "means", "deviation"),
    [
        (".pgm", "4947943d5872b73a", "433713fe0e", "83e7dd6e52cde428", [53.5], 32.61773681640625),
        (".ppm", "0fa869339824d163", "a2da624b1d", "7cd4ec77cbe22015", [86.5, 97.5, 108.5], 47.685604095458984),
    ],
)
def test_what_ordinary_pictures_come_to_never_changes(
    ending: str, fingerprint: str, run: str, pixels: str, means: list[float], deviation: float, tmp_path: Path
) -> None:
    of_folder = runner.identified(resolve(TrainConfig(dataset=config(ordinary(tmp_path, ending)))))
    dataset = load(tmp_path)
    digest = hashlib.sha256()
    for tensor in (dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels):
        digest.update(tensor.numpy().tobytes())
    assert dataset.class_names == ("Zebra", "ant")
    assert (of_folder.dataset.fingerprint, identity(of_folder), digest.hexdigest()[:16]) == (fingerprint, run, pixels)
    assert dataset.mean.tolist() == [mean for mean in means for _ in range(4)]
    assert dataset.std.tolist() == [deviation] * 4 * len(means)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["9.png", "9.jpg", "9.JPEG", "9.bmp", "9.tif", "9.webp"])
def test_ordinary_pictures_are_what_pillow_decodes(mode: str, name: str, tmp_path: Path) -> None:
    levels = numpy.random.default_rng(0).integers(0, 256, (5, 7, 3))
    for split in ("train", "test"):
        save(tmp_path / split / "a" / name, levels if mode == "RGB" else levels[..., 0])
    with Image.open(tmp_path / "train/a" / name) as image:
        decoded = numpy.asarray(image).reshape(5, 7, -1).transpose(2, 0, 1)
    dataset = load(tmp_path)
    assert dataset.shape == (decoded.shape if name != "9.webp" else (3, 5, 7))
    assert numpy.array_equal(dataset.train.images.view(dataset.shape).numpy(), decoded)


NOT_READ = [
    "train/ant/.ipynb_checkpoints/0-checkpoint.png",
    "train/.ipynb_checkpoints/0.png",
    "test/.hidden/0.png",
    "train/ant/.0.png",
    "train/ant/._0.png",
    "train/ant/Thumbs.db",
    "test/desktop.ini",
    "train/__MACOSX/ant/0.png",
]


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_hidden_or_left_by_systems_is_passed_over(
    name: str, grey_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = image_folder.scan(grey_folder), image_folder.fingerprint(grey_folder)
    (grey_folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(grey_folder / "test/ant/0.png", grey_folder / name)
    assert (image_folder.scan(grey_folder), image_folder.fingerprint(grey_folder)) == before
    assert capsys.readouterr().err == ""


def test_a_hidden_folder_around_the_images_hides_nothing(grey_folder: Path) -> None:
    hidden = grey_folder.with_name(".images")
    grey_folder.rename(hidden)
    assert len(image_folder.scan(hidden).train) == 3


@pytest.mark.parametrize("name", ["train/ant/0.txt", "test/zebra/notes", "train/labels.csv", "train/ant/more/a.txt"])
def test_one_line_tells_what_is_not_read(name: str, grey_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = image_folder.fingerprint(grey_folder)
    (grey_folder / name).parent.mkdir(exist_ok=True)
    (grey_folder / name).write_text("no image")
    (grey_folder / "test/zebra/z.txt").write_text("no image")
    assert image_folder.fingerprint(grey_folder) == fingerprint
    load(grey_folder)  # tells it no more
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    first = f"{grey_folder}/{name.removesuffix('/a.txt')}"
    assert told == f"warning: dataset.root={grey_folder}: not read, since it is no image: {first} and 1 more"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("train/ant/9.gif", "GIF"), ("test/ant/9", "PNG"), ("train/9.png", "PNG"), ("test/9.jp2", "JPEG2000")],
)
def test_an_image_that_would_be_lost_is_refused(name: str, kind: str, grey_folder: Path) -> None:
    Image.new("L", (3, 2)).save(grey_folder / name, kind)
    with pytest.raises(
        DataError, match=rf"^{grey_folder}/{name}: is an image \({kind}\) that would not be read; .*\.webp$"
    ):
        image_folder.scan(grey_folder)


@pytest.mark.parametrize("name", ["more", "more/deeper"])
def test_a_folder_of_images_inside_a_class_is_refused(name: str, grey_folder: Path) -> None:
    save(grey_folder / "train/ant" / name / "0.PNG", GREY)
    with pytest.raises(DataError, match="train/ant/more: is a folder inside a class, and its images would not be read"):
        image_folder.scan(grey_folder)


def test_links_to_folders_and_files_are_followed(grey_folder: Path, tmp_path: Path) -> None:
    fingerprint = image_folder.fingerprint(grey_folder)
    (grey_folder / "train/ant").rename(tmp_path / "ants")
    (grey_folder / "train/ant").symlink_to(tmp_path / "ants")
    (grey_folder / "test/ant/0.png").rename(tmp_path / "one.png")
    (grey_folder / "test/ant/0.png").symlink_to(tmp_path / "one.png")
    assert image_folder.fingerprint(grey_folder) == fingerprint


@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("train/ant/round", "..", "is a folder inside a class"),
        ("train/ant/9.png", "9.png", "is a broken link or no regular file"),
        ("train/ant/9.png", "nowhere", "is a broken link or no regular file"),
        ("train/round", "../train", "is a folder inside a class"),
    ],
)
def test_links_that_lead_round_or_nowhere_are_refused(link: str, target: str, reason: str, grey_folder: Path) -> None:
    (grey_folder / link).symlink_to(target)
    with pytest.raises(DataError, match=reason):
        image_folder.scan(grey_folder)


@pytest.mark.timeout(10)
def test_a_pipe_is_not_waited_for(grey_folder: Path) -> None:
    os.mkfifo(grey_folder / "train/ant/9.png")
    with pytest.raises(DataError, match=r"9\.png: is a broken link or no regular file"):
        image_folder.scan(grey_folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_folder_of_a_class_is_named(split: str, grey_folder: Path) -> None:
    for name in ("train", "test"):
        save(grey_folder / name / "bee/0.png", GREY)
    (grey_folder / split / "bee/0.png").unlink()
    with pytest.raises(DataError, match=f"needs images in {split}/<class>.*: there is no image in .*{split}/bee$"):
        image_folder.scan(grey_folder)


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "train")])
def test_names_that_look_alike_are_shown_apart(splits: tuple[str, str], grey_folder: Path) -> None:
    for split, name in zip(splits, ("caf\u00e9", "cafe\u0301"), strict=True):
        save(grey_folder / split / name / "0.png", GREY)
    with pytest.raises(DataError, match=r"the classes 'cafe\\u0301' and 'caf\\xe9' look the same"):
        image_folder.scan(grey_folder)


@pytest.mark.parametrize(("name", "shown"), [("two\nlines", r"'two\nlines'"), ("\x1b[31mred", r"'\x1b[31mred'")])
def test_names_break_no_line_of_a_message(
    name: str, shown: str, grey_folder: Path, bsnn: Callable[..., Answer]
) -> None:
    arguments = ["data", "dataset=folder", "dataset.name=mine", f"dataset.root={grey_folder}"]
    save(grey_folder / "train" / name / "0.png", GREY)
    answer = bsnn(*arguments)
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [f"error: dataset.root={grey_folder}: only train has the classes {shown}"]
    save(grey_folder / "test" / name / "0.png", GREY)
    assert shown in bsnn(*arguments).stdout
    (grey_folder / "test" / name / "0.png").write_text("no image")
    (line,) = bsnn(*arguments).stderr.splitlines()
    assert repr(f"{grey_folder}/test/{name}/0.png") in line


def test_names_that_are_no_text_are_read(grey_folder: Path, bsnn: Callable[..., Answer]) -> None:
    for split in ("train", "test"):
        save(grey_folder / split / os.fsdecode(b"caf\xe9") / "0.png", GREY)
    assert r"'caf\udce9'" in bsnn("data", "dataset=folder", "dataset.name=mine", f"dataset.root={grey_folder}").stdout


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (
            [[[7] * 3] * 2] * 2,
            [GREY, GREY],
            ["train: the 2 images are all the same", "test: the 2 images are all the same"],
        ),
        ([GREY, [[9] * 3] * 2], [[[7] * 3] * 2, [[8] * 3] * 2], ["test: the 2 images are each of one colour"]),
        ([GREY, [[9] * 3] * 2], [GREY, [[8] * 3] * 2], []),
    ],
)
def test_a_split_that_tells_nothing_is_told(
    train: list[object], test: list[object], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, pictures in (("train", train), ("test", test)):
        for index, picture in enumerate(pictures):
            save(tmp_path / split / "ab"[index] / "0.png", picture)
    load(tmp_path)
    assert capsys.readouterr().err.splitlines() == [f"warning: {tmp_path}/{line}" for line in told]


def test_a_standard_deviation_of_0_is_told_as_0(tmp_path: Path) -> None:
    colours = numpy.array([GREY, [[70] * 3] * 2, [[80] * 3] * 2]).transpose(1, 2, 0)
    for split in ("train", "test"):
        save(tmp_path / split / "a/0.png", colours)
    *_, red, green, blue = data.describe(config(tmp_path)).splitlines()
    assert red.split() == ["0", "125.0000", "85.3913"]
    assert green == "1        70.0000   0.0000              (one grey level; it becomes 0)"
    assert blue == "2        80.0000   0.0000              (one grey level; it becomes 0)"
    dataset = load(tmp_path)
    assert torch.equal(dataset.standardise(dataset.train.images)[:, 6:], torch.zeros(1, 12))


@pytest.fixture
def kept_folder(grey_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as large and settled, beside a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_folder, "MANY", 1)
    monkeypatch.setattr(image_folder, "SETTLED_NS", 0)
    time.sleep(0.02)  # more than a tick of the clock that stamps files
    return grey_folder


def content(root: Path) -> tuple[str, list[list[int]], list[list[int]]]:
    dataset = load(root)
    return image_folder.fingerprint(root), dataset.train.images.tolist(), dataset.test.images.tolist()


def of_files_alone(path: Path) -> None:
    """Stand in for whatever opens a file of the folder."""
    raise AssertionError(f"{path} is read")


@pytest.mark.parametrize("colour", [False, True])
def test_a_second_start_reads_no_image(colour: bool, kept_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if colour:
        save(kept_folder / "test/ant/9.png", [[[1, 2, 3]] * 3] * 2)
        time.sleep(0.02)
    first = content(kept_folder)
    monkeypatch.setattr(pixels, "read", of_files_alone)
    monkeypatch.setattr(Path, "read_bytes", of_files_alone)
    assert content(kept_folder) == first
    assert load(kept_folder).shape == (3 if colour else 1, 2, 3)


@pytest.mark.parametrize("damage", [b"", b"\0" * 100])
def test_a_damaged_cache_is_made_anew(damage: bytes, kept_folder: Path, tmp_path: Path) -> None:
    first = content(kept_folder)
    files = sorted((tmp_path / "cache/bsnn/images").iterdir())
    whole = [path.read_bytes() for path in files]
    for path in files:
        path.write_bytes(damage)
    assert content(kept_folder) == first
    assert [path.read_bytes() for path in files] == whole


def test_a_file_of_the_same_size_and_time_is_read_anew(kept_folder: Path) -> None:
    path = kept_folder / "test/ant/0.ppm"
    for level in (1, 2):
        path.write_bytes(b"P6 3 2 255\n" + bytes([level] * 18))
        os.utime(path, (1_000_000, 1_000_000))
        time.sleep(0.02)
        found = content(kept_folder)
        assert found[2][1] == [level] * 18
        assert len({found[0], content(kept_folder)[0]}) == 1
    path.unlink()
    assert len(content(kept_folder)[2]) == 2


def test_pixels_that_change_while_they_are_read_are_not_kept(
    kept_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all = pixels.read_all

    def late(paths: list[str], progress: bool) -> numpy.ndarray:
        save(kept_folder / "train/ant/0.png", [[99] * 3] * 2)
        return read_all(paths, progress)

    monkeypatch.setattr(pixels, "read_all", late)
    load(kept_folder)
    assert [path.name[:6] for path in (tmp_path / "cache/bsnn/images").iterdir()] == ["finger"]


def test_nothing_is_kept_of_what_was_just_written_or_is_soon_read(
    kept_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "SETTLED_NS", 60_000_000_000)
    content(kept_folder)
    monkeypatch.setattr(image_folder, "SETTLED_NS", 0)
    monkeypatch.setattr(image_folder, "MANY", 1000)
    content(kept_folder)
    assert not (tmp_path / "cache").exists()


def test_the_folder_of_a_sweep_is_hashed_once(
    grey_folder: Path, monkeypatch: pytest.MonkeyPatch, bsnn: Callable[..., Answer]
) -> None:
    read = []
    fingerprint = image_folder.fingerprint
    monkeypatch.setattr(image_folder, "fingerprint", lambda root: read.append(root) or fingerprint(root))
    monkeypatch.setattr(plan, "preview", lambda configs: str(len(configs)))
    sweep = ["train", "-m", "dataset=folder", f"dataset.root={grey_folder}", "dataset.name=mine", "model.depth=2"]
    assert bsnn(*sweep, "seed=0,1,2", "activation=tanh,relu", "dry_run=true").stdout == "6\n"
    assert read == [grey_folder]
