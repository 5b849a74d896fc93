"""Read the file of a custom activation and take its fingerprint, which identifies a run. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tokenize
from importlib.util import decode_source
from pathlib import Path

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.choices import CUSTOM
from bsnn_cli.settings.config import ActivationConfig

COPY = "activation.py"
"""In a run directory: the file as it was, so that the run goes on meaning the same."""


def parts(config: ActivationConfig) -> tuple[Path, str]:
    """Split `activation.path` into file and function."""
    file, _, function = str(config.path).rpartition(":")
    return Path(file), function


def source(config: ActivationConfig) -> str | None:
    """Return the text of the file, decoded as Python decodes it; None for a named activation.

    Raises:
        ConfigError: it cannot be read, or is not the one that `config.fingerprint` tells.
    """
    if config.name != CUSTOM:
        return None
    path, function = parts(config)
    try:
        text = decode_source(path.read_bytes())
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"activation.path={config.path}: cannot read {path}: {reason}") from error
    if config.fingerprint not in (None, fingerprint(text, function)):
        raise ConfigError(f"activation.path={config.path}: {path} is not what it was when this run was planned")
    return text


def encoded(text: str) -> bytes:
    """Encode a text such that `source` reads it back: a comment in it may name its encoding."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(text.encode()).readline)
    return text.encode(encoding)


def fingerprint(text: str, function: str) -> str:
    """Return sixteen hexadecimal digits of the file's content and the function's name, not of the file's place."""
    return hashlib.sha256(f"{function}\0{text}".encode()).hexdigest()[:16]


def moved(config: ActivationConfig, folder: Path) -> ActivationConfig:
    """Return the config with the path of the file's copy in a run directory; unchanged for a named activation."""
    if config.name != CUSTOM:
        return config
    return dataclasses.replace(config, path=f"{folder / COPY}:{parts(config)[1]}")
