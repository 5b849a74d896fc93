"""The kernels of a CPU, `native.c`: compiled for this machine when they are first needed, and called.

What the compiler makes lies in the user's cache, by a name that stands for the source, the compiler's options and the
processor: a folder that several machines share holds a file for each kind of them.
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
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsnn_cli.common.files import user_cache
from bsnn_cli.networks.batch_norm import NORM_EPS
from bsnn_cli.networks.members import FAMILIES, Member
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers

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
)
COMPILE_S = 60
"""After so long a compiler counts as one that does not work."""

SIZES = ("depth", "units", "samples", "kept", "matrix", "signal", "signal_below", "row", "parameters", "family",
         "unit_rows")  # fmt: skip
NUMBERS = ("a", "b", "p", "q", "eps")
ADDRESSES = ("V", "M", "x", "h", "d", "g", "s", "norm", "inverse_norm", "scale", "gain", "shift", "mean", "variance",
             "inverse_std", "gain_gradient", "shift_gradient", "turned", "top")  # fmt: skip
"""The members of `network` in the source, in their order."""

REALS: dict[torch.dtype, Any] = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def _structure(real: Any) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in SIZES]
    fields += [(name, real) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in ADDRESSES]
    return type("Network", (ctypes.Structure,), {"_fields_": fields})


STRUCTURES = {dtype: _structure(real) for dtype, real in REALS.items()}


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels for numbers of a type; None, with a warning, where no compiler makes them."""
    try:
        return _load(name(dtype), _options(dtype))
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        reason = said[0] if said else type(error).__name__
        warnings.warn(f"PyTorch's operations take the place of compiled ones, which is slower: {reason}", stacklevel=2)
        return None


def name(dtype: torch.dtype) -> str:
    """What the kernels for numbers of a type are called on this machine: where it is equal, so are their digits."""
    parts = [*_options(dtype), compiler(), processor()]
    return f"native-{hashlib.sha256(SOURCE.read_bytes() + chr(0).join(parts).encode()).hexdigest()[:16]}"


def _options(dtype: torch.dtype) -> list[str]:
    return [*OPTIONS, *(["-DDOUBLE"] if dtype == torch.float64 else [])]


def compiler() -> str:
    """The command of the C compiler."""
    return os.environ.get("CC") or "cc"


def processor() -> str:
    """What tells machines apart that do not run the same code."""
    kind = f"{platform.system()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{kind} {platform.processor()} {platform.node()}"
    return kind + "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "CPU part"))}))


def _load(name: str, options: Sequence[str]) -> ctypes.CDLL:
    """What has been compiled under that name; where there is none to be had, it is compiled, and kept if it can be.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it fails, or what it has made cannot be loaded.
    """
    cache = user_cache()
    with contextlib.suppress(OSError):  # it is not there, or damaged
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


class Native:
    """The kernels of one fleet. Shapes as in `signals.Signals`; all work in place.

    Args:
        code: what `library` gives.
        members: of activations that are in `FAMILIES`.
        tensors: of the fleet: `hidden.weight`, its momentum, and what there is of batch normalisation.
        norm, inverse_norm, scale: (L, K, n) lengths of the rows of V, (L, K, 1, n) 1/‖v‖ and a/‖v‖.
        unit_rows: whether rows of V are scaled to length 1.
        workers: the cores that share the work.
    """

    def __init__(
        self, code: ctypes.CDLL, members: Sequence[Member], tensors: dict[str, Tensor], norm: Tensor,
        inverse_norm: Tensor, scale: Tensor, *, unit_rows: bool, workers: Workers,
    ) -> None:  # fmt: skip
        self._code, self._members, self._tensors, self._workers = code, members, tensors, workers
        self._rows = {"norm": norm, "inverse_norm": inverse_norm, "scale": scale}
        self._unit_rows, self._real = unit_rows, REALS[norm.dtype]
        for name in ("room_turned", "room", "room_to_move", "room_for_claims"):
            getattr(code, name).restype = ctypes.c_int64
        self._networks: dict[int, list[ctypes.Structure]] = {}
        self._turned: list[Tensor] = []
        depth, _, n = norm.shape
        self._claims = torch.zeros(self._room("room_for_claims", n, depth), dtype=torch.int32)

    @property
    def alone(self) -> int:
        """So many networks are each left to one core: whole rounds of them. The others are shared by all cores."""
        return len(self._members) - len(self._members) % self._workers.count

    def measure_rows(self) -> None:
        """The lengths of the rows of V, as `move` leaves them."""
        V, norm = self._tensors["hidden.weight"], self._rows["norm"]
        n = ctypes.c_int64(norm.shape[2])

        def measure(place: tuple[Tensor, Tensor]) -> None:
            matrix, lengths = place
            self._code.measure(ctypes.c_void_p(matrix.data_ptr()), ctypes.c_void_p(lengths.data_ptr()), n)

        depth, members, _ = norm.shape
        self._workers.each(measure, [(V[k, layer], norm[layer, k]) for k in range(members) for layer in range(depth)])

    def rise(self, w: Signals) -> None:
        """Fill `w.x`, `w.h` and what batch normalisation keeps, from `w.x[0]`."""
        self._share_out(self._code.rise, w)

    def fall(self, w: Signals, g: Tensor) -> None:
        """Fill `w.d`, `w.g` and `w.s` or the gradients of batch normalisation, from g = ∂E/∂x of the top, (K, B, n).

        Where networks are shared, w has to have every g.
        """
        g = g.contiguous()
        for network, one in zip(self._of(w), g, strict=True):
            network.top = one.data_ptr()
        self._share_out(self._code.fall, w)

    def move(self, w: Signals, k: int, layers: slice, tangent: Tensor, momentum: float) -> None:
        """M ← μM + ∂E/∂V, V ← V − lr·M and the lengths of its rows, of some layers of a member.

        Args:
            w: as `rise` and `fall` have filled it.
            k: the member.
            layers: which of its matrices.
            tangent: s/‖v‖² of each row, (L, K, n, 1).
            momentum: μ.
        """
        self._update(self._code.move, w, k, layers, tangent[0, k], momentum, self._members[k].lr)

    def turn(self, w: Signals, k: int, layers: slice, momentum: float) -> Tensor:
        """M ← μM + ½(dᵀx − hᵀg) of c matrices that are to stay orthogonal; returns `longest_column` of each, (c,).

        Args:
            w: as `rise` and `fall` have filled it, with every g.
            k: the member.
            layers: c of its matrices.
            momentum: μ.
        """
        longest = w.s.new_empty(layers.stop - layers.start)
        self._update(self._code.turn, w, k, layers, longest, momentum)
        return longest

    def _update(
        self, code: Callable[..., object], w: Signals, k: int, layers: slice, own: Tensor, *numbers: float
    ) -> None:
        packed = w.h.new_empty(self._room("room_to_move", w.h.shape[3]))
        code(
            ctypes.byref(self._of(w)[k]), ctypes.c_void_p(own.data_ptr()), *(self._real(number) for number in numbers),
            ctypes.c_int64(layers.start), ctypes.c_int64(layers.stop), ctypes.c_void_p(packed.data_ptr()),
        )  # fmt: skip

    def _share_out(self, code: Callable[..., object], w: Signals) -> None:
        """Whole networks to each core as long as there is one for every core; all cores to each of the others."""
        networks, room, cores = self._of(w), self._room("room", w.h.shape[2]), self._workers.count

        def work(place: tuple[int, int, int], claims: Tensor | None = None) -> None:
            k, part, parts = place
            memory, claims = w.h.new_empty(room), torch.zeros_like(self._claims) if claims is None else claims
            code(
                ctypes.byref(networks[k]), ctypes.c_int64(part), ctypes.c_int64(parts),
                ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(claims.data_ptr()),
            )  # fmt: skip

        self._workers.each(work, [(k, 0, 1) for k in range(self.alone)])
        for k in range(self.alone, len(networks)):
            together = functools.partial(work, claims=self._claims.zero_())
            self._workers.each(together, [(k, part, cores) for part in range(cores)])

    def _room(self, name: str, *sizes: int) -> int:
        room: int = getattr(self._code, name)(*map(ctypes.c_int64, sizes))
        return room

    def _of(self, w: Signals) -> list[ctypes.Structure]:
        """The description of each member, for signals of this batch size."""
        B = w.h.shape[2]
        if B not in self._networks:
            self._networks[B] = [self._describe(w, k) for k in range(len(self._members))]
        return self._networks[B]

    def _describe(self, w: Signals, k: int) -> ctypes.Structure:
        depth, K, B, n = w.h.shape
        member = self._members[k]
        family, p, q = FAMILIES[member.activation.name]
        kept = depth + 1 if k >= self.alone else 2
        self._turned.append(w.h.new_empty(kept * self._room("room_turned", n, B)))
        tensors = {
            "V": self._tensors["hidden.weight"][k],
            "M": self._tensors["momentum.hidden.weight"][k],
            **{name: getattr(w, name)[:, k] for name in ("x", "h", "d", "g", "s")},
            **{name: row[:, k] for name, row in self._rows.items()},
            "turned": self._turned[-1],
        }
        if w.norm is not None:
            tensors |= {name: statistic[:, k] for name, statistic in w.norm.all._asdict().items()}
            tensors |= {"gain": self._tensors["norm.weight"][k], "shift": self._tensors["norm.bias"][k]}
        return STRUCTURES[w.h.dtype](
            depth=depth, units=n, samples=B, kept=kept, matrix=n * n, signal=K * B * n, signal_below=w.g.stride(0),
            row=K * n, parameters=n, family=family, unit_rows=self._unit_rows,
            a=member.a, b=member.b, p=p, q=q, eps=NORM_EPS,
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )  # fmt: skip
