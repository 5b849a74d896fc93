"""Read pictures as a viewer shows them: upright, transparency on white, 8 bits a channel. Imports no torch."""

from __future__ import annotations

import contextlib
import struct
import warnings
from typing import TYPE_CHECKING

from bsnn_cli.errors import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy
    from numpy.typing import NDArray
    from PIL import Image

GREY_MODES = ("1", "L", "LA")
"""Pillow's names for pixels that are read as one channel."""

COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
"""Pillow's names for pixels that are read as red, green and blue. Colour profiles are not applied."""

VERSION = 1
"""Raise it whenever `read` gives other pixels, or cached pixels of before will be used."""


def read_all(paths: Sequence[str], progress: bool) -> NDArray[numpy.uint8]:
    """Read pictures of one size: as one channel if all are grey, otherwise as three.

    Args:
        paths: at least one.
        progress: show a bar, on a terminal.

    Returns:
        uint8 (N, channels, height, width).

    Raises:
        DataError: as `read`, or naming the first picture of another size than the first.
    """
    import numpy
    from tqdm import tqdm

    first = read(paths[0])
    images = numpy.empty((len(paths), *first.shape), numpy.uint8)
    quiet = None if progress else True  # None: quiet unless standard error is a terminal
    # One after the other: with pictures of this kind, threads mostly wait for the interpreter.
    for index, path in enumerate(tqdm(paths, desc="reading", unit="image", disable=quiet)):
        picture = read(path)
        if picture.shape[1:] != first.shape[1:]:
            (height, width), (first_height, first_width) = picture.shape[1:], first.shape[1:]
            raise DataError(
                f"{printable(path)}: is {width} × {height} pixels, but {printable(paths[0])} is"
                f" {first_width} × {first_height}; an image folder needs one size"
            )
        if len(picture) > images.shape[1]:  # the first colour: what is grey is the same in all channels
            images = numpy.repeat(images, 3, axis=1)
        images[index] = picture
    return images


def read(path: str) -> NDArray[numpy.uint8]:
    """Read one picture as a viewer shows it.

    It is turned as its EXIF data say, and transparency is laid on white. Of 16 bits in a colour channel the higher 8
    are taken; 16 bits of grey, which often fill only a part of their range, are refused.

    Returns:
        uint8 (channels, height, width), with one channel if it is grey and three if it is in colour.

    Raises:
        DataError: it is damaged, no picture, or a moving one, has several pages, has pixels that do not fit into 8 bits
            a channel, or shows nothing on white though there is something in it.
    """
    import numpy
    from PIL import Image, UnidentifiedImageError

    try:
        # Opened here: Pillow maps an uncompressed TIFF that it opens itself, and mixes up the pixels of a turned one.
        with open(path, "rb") as file, Image.open(file) as image:
            _require_one_still(path, image)
            image.load()
            _turn(image)
            shown = _on_white(path, image) if image.has_transparency_data else image
            pixels = numpy.asarray(shown.convert("L" if image.mode in GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else printable(str(error))
        raise DataError(f"{printable(path)}: is damaged or no image: {reason}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _require_one_still(path: str, image: Image.Image) -> None:
    if image.mode not in GREY_MODES + COLOUR_MODES:
        reason = f"has pixels of kind {image.mode}; allowed are 8 bits a channel, grey or colour"
        raise DataError(f"{printable(path)}: {reason}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with a preview or a depth map, which no viewer shows
        raise DataError(f"{printable(path)}: has {frames} frames or pages; save the one that is meant as an image")


def _turn(image: Image.Image) -> None:
    """Turn a picture as its EXIF data say. If those are damaged, it stays as it lies, as a viewer leaves it."""
    from PIL import ImageOps

    with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError, struct.error):
        warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
        ImageOps.exif_transpose(image, in_place=True)


def _on_white(path: str, image: Image.Image) -> Image.Image:
    from PIL import Image

    layers = image.convert("RGBA")
    shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers)
    if _is_plain(shown) and not _is_plain(layers):
        raise DataError(
            f"{printable(path)}: shows nothing on white, though its colours or its transparency vary;"
            " save it on a background of its own"
        )
    return shown


def _is_plain(image: Image.Image) -> bool:
    return all(low == high for low, high in (channel.getextrema() for channel in image.split()))


def monotony(images: NDArray[numpy.uint8]) -> str | None:
    """Say why images (N, channels, height, width) hold no information, in words that follow "they"; None if they do."""
    if len(images) > 1 and all((image == images[0]).all() for image in images):
        return "are all the same"
    if images[0, 0].size > 1 and all((image == image[:, :1, :1]).all() for image in images):
        return "are each of one colour"
    return None
