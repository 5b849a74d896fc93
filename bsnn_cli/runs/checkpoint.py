"""Checkpoints: files of tensors and plain values, written atomically, verified on reading, never executed.

Torch is imported only where a state is read or written, so that verbs that list or tidy runs start without it.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from bsnn_cli.common.files import write_atomically
from bsnn_cli.errors import CheckpointError

CURRENT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def digest(state: Any) -> str:
    """Return the SHA-256 of nested dicts and lists of tensors and plain values, independent of the order of keys."""
    import torch

    hasher = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                hasher.update(f"{key}:".encode())
                feed(value[key])
        elif isinstance(value, list):
            for item in value:
                feed(item)
        elif isinstance(value, torch.Tensor):
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            hasher.update(repr(value).encode())
        hasher.update(b";")

    feed(state)
    return hasher.hexdigest()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, with a checksum of them.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    import torch

    content = {"sha256": digest(state), "state": _compact(state)}
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except RuntimeError as error:
        cause = error.__context__
        if isinstance(cause, OSError):  # torch's message does not say that the disk is full
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def _compact(value: Any) -> Any:
    """Give each tensor its own storage, without a copy: of a view torch would write the whole tensor behind it."""
    import torch

    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    return torch.from_numpy(value.detach().cpu().numpy()) if isinstance(value, torch.Tensor) else value


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: where the file is absent, damaged, not one of ours, or carries code (it is not executed).
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state"]
        intact = content["sha256"] == digest(state)
    except Exception as error:  # a damaged file can fail in any way inside the reader
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if not intact:
        raise CheckpointError(f"{path}: content does not match its checksum")
    return dict(state)


def rotate(directory: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint of a run and keep the one before it.

    A process killed at any point leaves at least one of the two whole.
    """
    pending = directory / "checkpoint.next.pt"
    save(pending, state)
    current = directory / CURRENT
    if current.exists():
        current.replace(directory / PREVIOUS)
    pending.replace(current)


def newest(directory: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Load the newest readable checkpoint of a run, and a warning for each unreadable one; None if there is none.

    Raises:
        CheckpointError: where there are checkpoints and none of them can be read.
    """
    warnings: list[str] = []
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if path.exists():
            try:
                return load(path), warnings
            except CheckpointError as error:
                warnings.append(str(error))
    if warnings:
        raise CheckpointError("; ".join(warnings) + "; force=true starts over")
    return None, warnings


def epoch(directory: Path) -> int:
    """Read the completed epochs of the newest checkpoint, without its tensors and unverified; 0 if that fails."""
    import torch

    for name in (CURRENT, PREVIOUS):
        if (directory / name).exists():
            with contextlib.suppress(Exception):
                content = torch.load(directory / name, map_location="cpu", mmap=True, weights_only=True)
                return int(content["state"]["epoch"])
    return 0


def discard(directory: Path) -> None:
    """Remove all checkpoints of a run, and files that a killed process has left half written."""
    for path in directory.glob("*checkpoint.*pt*"):
        path.unlink()
