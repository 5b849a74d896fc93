"""The C kernels of a CPU, `native.c`: compiled for this machine when they are first needed, and loaded.

The library is kept in the user's cache, by a name that stands for the source, the compiler's options and the processor:
a folder that several machines share holds one file for each kind of machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bsnn_cli.common.files import user_cache

SOURCE = Path(__file__).with_name("native.c")
OPTIONS = (
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
COMPILE_S = 60
"""After so long a compiler counts as one that does not work."""

SIZES = ("depth", "units", "claim", "samples", "stride", "kept", "matrix", "signal", "signal_below", "row",
         "parameters", "family", "unit_rows", "evaluating")  # fmt: skip
NUMBERS = ("a", "b", "p", "q", "gain_of_phi", "share", "eps")
ADDRESSES = ("V", "M", "x", "h", "d", "g", "s", "norm", "inverse_norm", "scale", "gain", "shift", "mean", "variance",
             "inverse_std", "gain_gradient", "shift_gradient", "x_squares",
             "d_squares", "top")  # fmt: skip
"""The members of `network` in the source, in their order."""

REALS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def _structure(real: Any) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in SIZES]
    fields += [(name, real) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in ADDRESSES]
    return type("Network", (ctypes.Structure,), {"_fields_": fields})


STRUCTURES = {dtype: _structure(real) for dtype, real in REALS.items()}


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | str:
    """Return the compiled kernels for numbers of a type; where no compiler makes them, the reason in words."""
    try:
        return _load(name(dtype), _options(dtype))
    except (OSError, subprocess.SubprocessError) as error:
        output = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return f"the C kernels cannot be compiled ({output[0] if output else type(error).__name__})"


def name(dtype: torch.dtype) -> str:
    """Return the name of the kernels for numbers of a type on this machine; equal names compute equal digits."""
    parts = [*_options(dtype), compiler(), processor()]
    return f"native-{hashlib.sha256(SOURCE.read_bytes() + chr(0).join(parts).encode()).hexdigest()[:16]}"


def _options(dtype: torch.dtype) -> list[str]:
    return [*OPTIONS, *(["-DDOUBLE"] if dtype == torch.float64 else [])]


def compiler() -> str:
    """Return the command of the C compiler."""
    return os.environ.get("CC") or "cc"


def processor() -> str:
    """Return what distinguishes machines that do not run the same code."""
    kind = f"{platform.system()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{kind} {platform.processor()} {platform.node()}"
    return kind + "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "CPU part"))}))


def _load(name: str, options: Sequence[str]) -> ctypes.CDLL:
    """Load the library of this name, or compile it and keep it in the cache, if that can be written.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it fails, or what it has made cannot be loaded.
    """
    cache = user_cache()
    with contextlib.suppress(OSError):  # absent or damaged
        return ctypes.CDLL(str(cache / f"{name}.so"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=cache))
    except OSError:
        folder = Path(tempfile.mkdtemp())
    try:
        made = folder / f"{name}.so"
        command = [*compiler().split(), *options, str(SOURCE), "-o", str(made), "-lm"]
        subprocess.run(
            command, check=True, capture_output=True, errors="replace", timeout=COMPILE_S, stdin=subprocess.DEVNULL
        )
        code = ctypes.CDLL(str(made))
        with contextlib.suppress(OSError):
            made.replace(cache / made.name)  # at once: another process may be about to load it
        return code
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays so
