"""A cache of bytes that take long to compute, in the user's cache folder. Imports no torch.

An entry that is damaged, absent or cannot be written counts as not cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bsnn_cli.common.files import user_cache

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

ROOM = 2 * 2**30
"""Bytes that all entries may take together. The oldest ones are removed first."""

DIGEST = 32
"""Bytes of the SHA-256 at the beginning of a file."""


def _folder() -> Path:
    return user_cache() / "images"


def load(name: str) -> NDArray[numpy.uint8] | None:
    """Return the bytes cached under a name as a uint8 array (bytes,); None if they are absent or damaged."""
    import numpy

    try:
        content = numpy.fromfile(_folder() / name, numpy.uint8)
    except OSError:
        return None
    digest, rest = content[:DIGEST], content[DIGEST:]
    return rest if digest.tobytes() == hashlib.sha256(rest.data).digest() else None


def store(name: str, *parts: NDArray[numpy.generic]) -> None:
    """Store the bytes of some arrays, one after the other, if there is room for them."""
    if sum(part.nbytes for part in parts) > ROOM:
        return
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data)
    with contextlib.suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        # A unique name, since other processes may be writing the same entry.
        with tempfile.NamedTemporaryFile(dir=_folder(), delete=False) as file:
            try:
                file.write(digest.digest())
                for part in parts:
                    file.write(part.data)
                file.close()
                os.replace(file.name, _folder() / name)
            except BaseException:
                os.unlink(file.name)
                raise
        _make_room()


def _make_room() -> None:
    taken = 0
    for path in sorted(_folder().iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        taken += path.stat().st_size
        if taken > ROOM:
            path.unlink()
