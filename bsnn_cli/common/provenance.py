"""The provenance of a result: versions, commit, command, hardware, time."""

from __future__ import annotations

import datetime
import platform
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bsnn_cli.common import checkout


def collect(device: torch.device) -> dict[str, Any]:
    """Return the provenance of this process's results."""
    commit, dirty = checkout.state()
    return {
        "version": package_version(),
        "commit": commit,
        "dirty": dirty,
        "command": " ".join([sys.argv[0], shlex.join(sys.argv[1:])]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "started": now(),
        "ended": None,
    }


def now() -> str:
    """Return the present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def package_version() -> str:
    """Return the version of the installed `bsnn`; "unknown" where it runs without being installed."""
    try:
        return version("bsnn")
    except PackageNotFoundError:
        return "unknown"


def commit(provenance: Mapping[Any, Any]) -> str:
    """Return the commit of a provenance, shortened, with a mark where files were changed."""
    if provenance["commit"] is None:
        return "unknown"
    return str(provenance["commit"])[:10] + (" with changes" if provenance["dirty"] else "")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
