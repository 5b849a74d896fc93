"""C kernels as the engine of a fleet on a CPU. Its numbers do not depend on the number of threads."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from bsnn_cli.networks import native
from bsnn_cli.networks.batch_norm import NORM_EPS
from bsnn_cli.networks.engine import Engine
from bsnn_cli.networks.hidden_layers import HiddenLayers
from bsnn_cli.networks.huge_pages import in_huge_pages
from bsnn_cli.networks.members import kernel_forms
from bsnn_cli.networks.native import REALS, STRUCTURES
from bsnn_cli.networks.signals import Signals
from bsnn_cli.networks.workers import Workers, threads_for

LAYERS_AT_ONCE = 5
"""Layers of one network that one core updates: enough to be worth the call, few enough for cores to end together."""


SIZE_FUNCTIONS = ("stride_of_signals", "room_for_units", "size_of_memory", "size_of_update", "count_of_claims",
                  "units_of_claim")  # fmt: skip
"""Functions in C that return the size of something."""

SAMPLES_AT_ONCE = 256
"""Samples of an evaluation that a core sends through all layers at a time: their signals stay in its cache."""


class CEngine(Engine):
    """An engine of the kernels in `native.c`.

    Args:
        hidden: the layers to compute, of activations with a `kernel`.

    Raises:
        RuntimeError: the kernels cannot be compiled.
    """

    def __init__(self, hidden: HiddenLayers) -> None:
        code = native.library(hidden.dtype)
        if isinstance(code, str):
            raise RuntimeError(code)
        super().__init__(hidden)
        self.arithmetic, self._code = native.name(hidden.dtype), code
        self.threads = 1  # idle threads of PyTorch would keep busy the cores that the workers need
        self.workers = Workers(threads_for(hidden.V.numel()))
        self._real = REALS[hidden.dtype]
        for name in SIZE_FUNCTIONS:
            getattr(code, name).restype = ctypes.c_int64
        depth, K, n = hidden.norm.shape
        self._chunks = [slice(first, min(first + LAYERS_AT_ONCE, depth)) for first in range(0, depth, LAYERS_AT_ONCE)]
        self._networks: dict[int, list[ctypes.Structure]] = {}
        self._tops: dict[int, Tensor] = {}
        self._of_thread = threading.local()
        self._x_squares, self._d_squares = (hidden.norm.new_zeros(length, K, n) for length in (depth + 1, depth))
        self._claim = self._size("units_of_claim", n, self.workers.count)
        self._claims = torch.zeros(self._size("count_of_claims", n, self._claim, depth), dtype=torch.int32)
        self._alone = K - K % self.workers.count
        """So many networks are each left to one core: whole rounds of them. The others are shared by all cores."""
        self.take_over()

    @override
    def take_over(self) -> None:
        hidden = self.hidden
        if hidden.unit_rows:
            depth, K, _ = hidden.norm.shape
            matrices = [(hidden.V[k, layer], hidden.norm[layer, k]) for k in range(K) for layer in range(depth)]
            self.workers.run(self._measure, matrices)
        hidden.rescale()

    @override
    def allocate(self, layers: int, K: int, B: int, n: int) -> Tensor:
        """Return views of memory where the samples of a unit are contiguous, with zeros up to whole vectors."""
        units, stride = self._size("room_for_units", n), self._size("stride_of_signals", B)
        return in_huge_pages(self.hidden.norm.new_zeros(layers, K, units, stride))[:, :, :n, :B].mT

    @override
    def forward(self, signals: Signals) -> None:
        self._pass(self._code.forward, signals)

    @override
    def backward(self, signals: Signals, gradient: Tensor) -> None:
        self._describe(signals)
        self._tops[gradient.shape[1]].copy_(gradient)
        self._pass(self._code.backward, signals)
        torch.linalg.vecdot(signals.x[0], signals.x[0], dim=1, out=self._x_squares[0])
        torch.mul(*(squares.sum(2).sqrt() for squares in (self._x_squares[:-1], self._d_squares)), out=signals.bound)

    @override
    def update(self, signals: Signals) -> None:
        hidden = self.hidden
        places = [(k, layers) for k, alive in enumerate(hidden.alive.tolist()) if alive for layers in self._chunks]
        if hidden.drift is None:
            tangent = hidden.tangent(signals).contiguous()
            self.workers.run(lambda place: self._update(signals, *place, tangent), places)
        else:
            self.workers.run(lambda place: self._update_orthogonal(signals, *place), places)
        hidden.rescale()

    def _update(self, signals: Signals, k: int, layers: slice, tangent: Tensor) -> None:
        self._call_update(self._code.update, signals, k, layers, tangent[0, k], self.hidden.lr(k))

    def _update_orthogonal(self, signals: Signals, k: int, layers: slice) -> None:
        hidden = self.hidden
        assert hidden.drift is not None
        longest = self.gradient_of_orthogonal(signals, k, layers)
        hidden.drift.step(k, layers, hidden.V[k, layers], hidden.M[k, layers], longest, hidden.lr(k))

    def gradient_of_orthogonal(self, signals: Signals, k: int, layers: slice) -> Tensor:
        """M ← μM + ½(dᵀx − hᵀg) of c matrices that stay orthogonal; return `longest_column` of each, (c,)."""
        longest = signals.s.new_empty(layers.stop - layers.start)
        self._call_update(self._code.update_orthogonal, signals, k, layers, longest)
        return longest

    def _call_update(
        self, code: Callable[..., object], signals: Signals, k: int, layers: slice, rows: Tensor, *lr: float
    ) -> None:
        packed = self._scratch(self._size("size_of_update", signals.h.shape[3]))
        code(
            ctypes.byref(self._describe(signals)[k]), ctypes.c_void_p(rows.data_ptr()),
            *(self._real(number) for number in (self.hidden.momentum, *lr)),
            ctypes.c_int64(layers.start), ctypes.c_int64(layers.stop), ctypes.c_void_p(packed.data_ptr()),
        )  # fmt: skip

    def _measure(self, matrix: tuple[Tensor, Tensor]) -> None:
        V, norm = matrix
        self._code.measure(ctypes.c_void_p(V.data_ptr()), ctypes.c_void_p(norm.data_ptr()), ctypes.c_int64(len(norm)))

    def _pass(self, code: Callable[..., object], signals: Signals) -> None:
        """Give whole networks to each core while there is one for every core; share the others among all cores."""
        networks, cores = self._describe(signals), self.workers.count
        size = self._size("size_of_memory", self._size("stride_of_signals", signals.h.shape[2]))

        def work(place: tuple[int, int, int], claims: Tensor | None = None) -> None:
            k, part, parts = place
            memory, claims = self._scratch(size), torch.zeros_like(self._claims) if claims is None else claims
            code(
                ctypes.byref(networks[k]), ctypes.c_int64(part), ctypes.c_int64(parts),
                ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(claims.data_ptr()),
            )  # fmt: skip

        self.workers.run(work, [(k, 0, 1) for k in range(self._alone)])
        for k in range(self._alone, len(networks)):
            shared = functools.partial(work, claims=self._claims.zero_())
            self.workers.run(shared, [(k, part, cores) for part in range(cores)])

    def _scratch(self, size: int) -> Tensor:
        """Return memory of the calling thread, the same every time: new memory takes as long as a small layer."""
        memory: Tensor | None = getattr(self._of_thread, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._of_thread.memory = self.hidden.norm.new_empty(size)
        return memory

    def _size(self, name: str, *sizes: int) -> int:
        size: int = getattr(self._code, name)(*map(ctypes.c_int64, sizes))
        return size

    def _describe(self, signals: Signals) -> list[ctypes.Structure]:
        """Return the C structure of each member, for signals of this batch size."""
        batch = signals.h.shape[2]
        if batch not in self._networks:
            self._tops[batch] = self.allocate(1, *signals.h.shape[1:])[0]
            self._networks[batch] = [self._structure(signals, k) for k in range(len(self.hidden.members))]
        return self._networks[batch]

    @override
    def evaluate(self, x: Tensor) -> Tensor:
        norm, depth = self.hidden.running_normalisation(), self.hidden.model.depth
        by_layer = [] if norm is None else [tensor.transpose(0, 1).contiguous() for tensor in norm[2:]]
        for signals in torch.split(x, SAMPLES_AT_ONCE, dim=1):
            K, B, n = signals.shape
            below, h = (self.allocate(2, 1, B, n).squeeze(1) for _ in range(2))
            memory = self._scratch(self._size("size_of_memory", below.stride(2)))
            for k in range(K):
                below[0] = signals[k]
                tensors = {"x": below, "h": h}
                if norm is not None:
                    tensors |= {"gain": norm[0][k], "shift": norm[1][k]}
                    tensors |= {"mean": by_layer[0][:, k], "inverse_std": by_layer[1][:, k]}
                network = self._network(k, below, tensors, kept=2, evaluating=True)
                self._code.evaluate(ctypes.byref(network), ctypes.c_void_p(memory.data_ptr()))
                signals[k] = below[depth % 2]
        return x

    def _structure(self, signals: Signals, k: int) -> ctypes.Structure:
        hidden = self.hidden
        tensors = {
            "M": hidden.M[k],
            **{name: getattr(signals, name)[:, k] for name in ("x", "h", "d", "g", "s")},
            **{name: getattr(hidden, name)[:, k] for name in ("norm", "scale")},
            "x_squares": self._x_squares[:, k],
            "d_squares": self._d_squares[:, k],
            "top": self._tops[signals.h.shape[2]][k],
        }
        if signals.norm is not None:
            tensors |= {name: statistic[:, k] for name, statistic in signals.norm.all._asdict().items()}
            tensors |= {"gain": hidden.tensors["norm.weight"][k], "shift": hidden.tensors["norm.bias"][k]}
        return self._network(k, signals.h[:, k], tensors, kept=hidden.model.depth + 1, signal_below=signals.g.stride(0))

    def _network(self, k: int, like: Tensor, tensors: dict[str, Tensor], **sizes: int) -> ctypes.Structure:
        """Return the C structure of a member.

        Args:
            k: the member.
            like: its signals of some layers, (layers, B, n).
            tensors: beside V and the lengths of its rows.
            sizes: what depends on whether it is trained or evaluated.
        """
        hidden, member = self.hidden, self.hidden.members[k]
        _, B, n = like.shape
        family, p, q, gain, share = kernel_forms(hidden.members)[k]
        tensors = {"V": hidden.V[k], "inverse_norm": hidden.inverse_norm[:, k], **tensors}
        return STRUCTURES[hidden.dtype](
            depth=hidden.model.depth, units=n, claim=self._claim, samples=B, stride=like.stride(2), matrix=n * n,
            signal=like.stride(0), row=len(hidden.members) * n, parameters=n, family=family, unit_rows=hidden.unit_rows,
            a=member.a, b=member.b, p=p, q=q, gain_of_phi=gain, share=share, eps=NORM_EPS, **sizes,
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )  # fmt: skip
