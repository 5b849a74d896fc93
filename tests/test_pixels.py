"""What the network gets is what a viewer shows, or the file is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from bsnn_cli.errors import DataError
from tests.conftest import Answer
from tests.folders import GREY, load, save

INK = [[0, 51, 102], [153, 204, 255]]
"""How much of a pixel is covered, in 255ths."""
PAPER = [255 - covered for row in INK for covered in row]
"""Black ink on white."""


def shown(root: Path, write: Callable[[Path], object], name: str = "a.png") -> list[list[int]]:
    """Channels of the only image of a folder, which `write` makes."""
    for split in ("train", "test"):
        (root / split / "c").mkdir(parents=True)
        write(root / split / "c" / name)
    dataset = load(root)
    return dataset.train.images.view(dataset.shape[0], -1).tolist()


def layered(mode: str, *below: int) -> Image.Image:
    """Channels of one level each, and `INK` as the transparency above."""
    levels = [numpy.full((2, 3), level) for level in below]
    return Image.fromarray(numpy.stack([*levels, INK], -1).astype(numpy.uint8), mode)


def indexed(levels: list[int]) -> Image.Image:
    """The indices 0 to 5 into a palette of greys."""
    image = Image.fromarray(numpy.arange(6, dtype=numpy.uint8).reshape(2, 3), "P")
    image.putpalette([level for level in levels for _ in range(3)])
    return image


@pytest.mark.parametrize(
    ("image", "options", "channels"),
    [
        (layered("RGBA", 0, 0, 0), {}, 3),
        (layered("LA", 0), {}, 1),
        (indexed([0] * 6), {"transparency": bytes(covered for row in INK for covered in row)}, 3),
    ],
    ids=["RGBA", "LA", "palette"],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_transparency_lies_on_white(image: Image.Image, options: dict[str, Any], channels: int, tmp_path: Path) -> None:
    assert shown(tmp_path, lambda path: image.save(path, **options)) == [PAPER] * channels


@pytest.mark.parametrize(
    ("mode", "clear", "channels"), [("L", 50, 1), ("RGB", (50, 50, 50), 3), ("P", 1, 3)], ids=["L", "RGB", "P"]
)
def test_a_transparent_colour_lies_on_white(mode: str, clear: object, channels: int, tmp_path: Path) -> None:
    image = indexed([0, 50, 100, 150, 200, 250]).convert(mode)
    pixels = shown(tmp_path, lambda path: image.save(path, transparency=clear))
    assert pixels == [[0, 255, 100, 150, 200, 250]] * channels


@pytest.mark.parametrize(
    ("mode", "name", "channels"),
    [("RGBA", "a.png", 3), ("LA", "a.png", 1), ("RGB", "a.webp", 3), ("P", "a.png", 3), ("CMYK", "a.tif", 3)],
)
def test_pictures_without_transparency_keep_their_levels(mode: str, name: str, channels: int, tmp_path: Path) -> None:
    pixels = shown(tmp_path, lambda path: save(path, GREY, mode, lossless=True), name)
    assert pixels == [[0, 50, 100, 150, 200, 250]] * channels


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    assert shown(tmp_path, lambda path: save(path, [[0, 255, 0], [255, 0, 255]], "1")) == [[0, 255] * 3]


def test_of_16_bits_a_colour_the_higher_8_are_taken(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0x5680, 0x78AA, 0x9A01, 0xBC00)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b""))
    pixels = shown(tmp_path, lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))
    assert pixels == [[0x12, 0x78], [0x34, 0x9A], [0x56, 0xBC]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
@pytest.mark.parametrize(("orientation", "quarters"), [(3, 2), (6, -1), (8, 1)])
def test_pictures_are_turned_as_their_exif_data_say(name: str, orientation: int, quarters: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = numpy.zeros((16, 32), numpy.uint8)
    lying[:8, :16] = 255  # where JPEG's blocks end
    pixels = shown(tmp_path, lambda path: save(path, lying, exif=exif, lossless=True, quality=100), name)
    upright = numpy.rot90(lying, quarters).flatten()
    assert numpy.abs(numpy.array(pixels) - upright).max() <= 1


def test_sizes_are_compared_upright(grey_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(grey_folder / "train/ant/9.png", numpy.zeros((3, 2)), exif=exif)
    assert len(load(grey_folder).train.labels) == 4
    save(grey_folder / "train/ant/9.png", GREY, exif=exif)
    with pytest.raises(DataError, match=r"train/ant/9\.png: is 2 × 3 pixels, but"):
        load(grey_folder)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x09\0", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_damaged_exif_data_turn_nothing_and_say_nothing(exif: bytes, tmp_path: Path) -> None:
    assert shown(tmp_path, lambda path: save(path, GREY, exif=exif)) == [[0, 50, 100, 150, 200, 250]]


@pytest.mark.parametrize(("kind", "name"), [("GIF", "a.png"), ("PNG", "a.png"), ("TIFF", "a.tif"), ("WEBP", "a.webp")])
def test_moving_pictures_and_several_pages_are_refused(kind: str, name: str, grey_folder: Path) -> None:
    first, *others = [Image.fromarray(numpy.roll(numpy.array(GREY, numpy.uint8), shift)) for shift in range(3)]
    first.save(grey_folder / "train/ant" / name, kind, save_all=True, append_images=others)
    with pytest.raises(DataError, match=rf"train/ant/{name}: has 3 frames or pages"):
        load(grey_folder)


def test_of_a_photograph_with_a_preview_the_photograph_is_read(tmp_path: Path) -> None:
    photograph, preview = (Image.new("L", (8, 8), level) for level in (200, 100))
    pixels = shown(tmp_path, lambda path: photograph.save(path, "MPO", save_all=True, append_images=[preview]), "a.jpg")
    assert pixels == [[200] * 64]


@pytest.mark.parametrize(
    ("mode", "name"), [("I;16", "a.png"), ("F", "a.tif"), ("I", "a.tif"), ("LAB", "a.tif")], ids=lambda word: word
)
def test_pixels_that_do_not_fit_into_8_bits_are_refused(mode: str, name: str, grey_folder: Path) -> None:
    Image.new(mode, (3, 2)).save(grey_folder / "train/ant" / name)
    with pytest.raises(DataError, match=rf"train/ant/{name}: has pixels of kind {mode}; allowed are 8 bits"):
        load(grey_folder)


@pytest.mark.parametrize("below", [(255, 255, 255), (255,)], ids=["RGBA", "LA"])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_white_on_nothing_is_refused_by_one_line(
    below: tuple[int, ...], grey_folder: Path, bsnn: Callable[..., Answer]
) -> None:
    layered("LA" if len(below) == 1 else "RGBA", *below).save(grey_folder / "train/ant/9.png")
    answer = bsnn("data", "dataset=folder", "dataset.name=mine", f"dataset.root={grey_folder}")
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: {grey_folder}/train/ant/9.png: shows nothing on white")


def test_colours_that_nothing_shows_are_refused(grey_folder: Path) -> None:
    image = Image.fromarray(numpy.array(GREY, numpy.uint8)).convert("RGB")
    image.putalpha(0)
    image.save(grey_folder / "train/ant/9.png")
    with pytest.raises(DataError, match=r"train/ant/9\.png: shows nothing on white"):
        load(grey_folder)
