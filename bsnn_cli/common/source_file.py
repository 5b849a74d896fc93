"""Read a user's Python file and take its fingerprint, which identifies a run. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import tokenize
from importlib.util import decode_source
from pathlib import Path

from bsnn_cli.errors import ConfigError


def parts(path: str) -> tuple[Path, str]:
    """Split `FILE.py:FUNCTION` into file and function."""
    file, _, function = path.rpartition(":")
    return Path(file), function


def source(key: str, path: str, expected: str | None) -> str:
    """Return the text of the file, decoded as Python decodes it.

    Args:
        key: that gives the path, for messages.
        path: `FILE.py:FUNCTION`.
        expected: the fingerprint that was taken when the run was planned; None if it was not.

    Raises:
        ConfigError: it cannot be read, or is not what was expected.
    """
    file, function = parts(path)
    try:
        text = decode_source(file.read_bytes())
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}={path}: cannot read {file}: {reason}") from error
    if expected not in (None, fingerprint(text, function)):
        raise ConfigError(f"{key}={path}: {file} is not what it was when this run was planned")
    return text


def encoded(text: str) -> bytes:
    """Encode a text such that `source` reads it back: a comment in it may name its encoding."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(text.encode()).readline)
    return text.encode(encoding)


def fingerprint(text: str, function: str) -> str:
    """Return sixteen hexadecimal digits of the file's content and the function's name, not of the file's place."""
    return hashlib.sha256(f"{function}\0{text}".encode()).hexdigest()[:16]
