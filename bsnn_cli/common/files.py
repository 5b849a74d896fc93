"""Writing files such that no reader, and no later process, finds half of one."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import platformdirs


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk and move it into place.

    At any time, `path` holds either its old content or all of the new one. The temporary file has a fixed name,
    so the next process overwrites what a killed one has left; two writers need a lock.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a write that fails does not say of which file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically; file names in it that are not UTF-8 keep their bytes."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def write_texts(directory: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write texts that have been printed already into a folder, by their names.

    Returns:
        The files; none, with a warning, where the folder cannot be written, such as another user's.
    """
    try:
        for name, text in contents.items():
            write_text(directory / name, text)
    except OSError as error:
        reason = f"cannot write {directory}: {error.strerror}"
        print(f"warning: output_root: {reason}; what is printed is not kept", file=sys.stderr)
        return []
    return [directory / name for name in contents]


def read_text(path: Path) -> str:
    """Read what `write_text` has written, whatever encoding the locale prefers."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def user_cache() -> Path:
    """Return the user's folder for what can be made again; a path that cannot be written where there is no home."""
    try:
        return platformdirs.user_cache_path("bsnn")
    except RuntimeError:
        return Path(os.devnull, "bsnn")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, atomically."""
    write_text(path, as_json(content))


def as_json(content: dict[str, Any]) -> str:
    """Return an object as indented JSON. NaN is refused: it is not JSON.

    A path that is no text in the encoding of the locale is escaped, so that it is read back in any other locale too.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(content, indent=2, allow_nan=False)
    return text + "\n"
