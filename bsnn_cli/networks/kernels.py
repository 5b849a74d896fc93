"""Triton kernels of a fleet on a GPU: each matrix product of a step together with the operations on its result.

Between two products of the chain there are a few passes over signals, and after the product of a gradient the update of
V and M, unless V is to stay orthogonal. As kernels of their own they take as long as the products: each waits to be
launched and for the memory. Here a block of a product is finished in registers, where it has been computed. It holds
all samples of its units, so the sums of batch normalisation, tangent term and lengths of rows need no other block.

Tensor cores take factors of eleven binary digits. A float32 number is the sum of its nearest such number and a rest
that is one too, but for its last digits. Three products of these parts, of which the one of both rests is left out,
have the error of float32 and take a third of the time that float32 arithmetic takes.

Triton compiles these functions when they are first called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from bsnn_cli.gpn.kernel_form import ON_GPU
from bsnn_cli.networks.batch_norm import NORM_EPS, Normalised, Statistics
from bsnn_cli.networks.members import Member, kernel_forms

TANH, RECTIFIER, ELU, SWISH = (tl.constexpr(family.value) for family in ON_GPU)

CONSTANTS = tl.constexpr(6)
"""Numbers of each member: a, b, and p, q, gain and share as in `kernel_form`."""


@triton.jit
def _phi(family, p, q, gain, share, signal):
    """φ(h) of a member."""
    h = gain * signal
    value = h
    if family == TANH:
        value = libdevice.tanh(h)
    elif family == RECTIFIER:
        value = tl.where(h > 0, h, p * h)
    elif family == ELU:
        value = q * tl.where(h > 0, h, p * libdevice.expm1(h))
    else:
        value = h * tl.sigmoid(p * h)
    return tl.where(share != 0, value + share * (signal - value), value)


@triton.jit
def _slope(family, p, q, gain, share, signal):
    """φ'(h) of a member."""
    h = gain * signal
    slope = h
    if family == TANH:
        value = libdevice.tanh(h)
        slope = 1 - value * value
    elif family == RECTIFIER:
        slope = tl.where(h > 0, 1.0, p)
    elif family == ELU:
        slope = q * tl.where(h > 0, 1.0, p * tl.exp(h))
    else:
        gate = tl.sigmoid(p * h)
        slope = gate * (1 + p * h * (1 - gate))
    slope *= gain
    return tl.where(share != 0, slope + share * (1 - slope), slope)


@triton.jit
def _load(pointer, rows, cols, row_stride: tl.constexpr, col_stride: tl.constexpr, height: tl.constexpr,
          width: tl.constexpr):  # fmt: skip
    """Load a block of a (height, width) matrix; it is 0 outside of the matrix."""
    inside = (rows[:, None] < height) & (cols[None, :] < width)
    return tl.load(pointer + rows[:, None] * row_stride + cols[None, :] * col_stride, mask=inside, other=0.0)


@triton.jit
def _nearest(value):
    """Return the nearest number of eleven binary digits.

    NaN may become −0. Its rest is NaN then; where no rest is used, the product hides it, but the signals themselves do
    not, and they decide whether a member has diverged.
    """
    return ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _dot(left, right, total, EXACT: tl.constexpr):
    """Total + left·right. A tensor core's own sums are cut off, not rounded: no sum is made there for long."""
    near_left, near_right = _nearest(left), _nearest(right)
    product = tl.dot(near_left, near_right, input_precision="tf32")
    if EXACT:
        rest = tl.dot(left - near_left, near_right, input_precision="tf32")
        rest += tl.dot(near_left, right - near_right, input_precision="tf32")
        product += rest
    return total + product


@triton.jit
def _forward(
    x, V, member_stride, inverse_norm, scale, h, above, families, constants,
    gain, shift, norm_stride, mean, variance, inverse_std, y, eps,
    B: tl.constexpr, n: tl.constexpr, UNIT_ROWS: tl.constexpr, NORM: tl.constexpr, EXACT: tl.constexpr,
    SAMPLES: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute `Kernels.forward` for some units of one member."""
    k = tl.program_id(1)
    samples, units = tl.arange(0, SAMPLES), tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = units < n
    row, signal = k * n + units, k * B * n
    family = tl.load(families + k)
    constants += CONSTANTS * k
    a, b = tl.load(constants), tl.load(constants + 1)
    p, q = tl.load(constants + 2), tl.load(constants + 3)
    gain_of_phi, share = tl.load(constants + 4), tl.load(constants + 5)
    V += k.to(tl.int64) * member_stride
    product = tl.zeros((SAMPLES, UNITS), dtype=tl.float32)
    squares = tl.zeros((INNER, UNITS), dtype=tl.float32)
    for first in range(0, n, INNER):
        inner = first + tl.arange(0, INNER)
        weight = _load(V, inner, units, 1, n, n, n)
        product = _dot(_load(x + signal, samples, inner, n, 1, B, n), weight, product, EXACT)
        if UNIT_ROWS:
            squares += weight * weight
    if UNIT_ROWS:
        factor = 1 / tl.sqrt_rn(tl.where(there, tl.sum(squares, 0), 1.0))
        tl.store(inverse_norm + row, factor, mask=there)
        tl.store(scale + row, a * factor, mask=there)
        product *= factor[None, :]
    inside = (samples[:, None] < B) & there[None, :]
    place = signal + samples[:, None] * n + units[None, :]
    if NORM:
        middle = tl.sum(product, 0) / B
        product = tl.where(inside, product - middle[None, :], 0.0)
        deviations = tl.sum(product * product, 0)
        steepness = 1 / tl.sqrt_rn(deviations / B + eps)
        tl.store(mean + row, middle, mask=there)
        tl.store(variance + row, deviations / (B - 1), mask=there)
        tl.store(inverse_std + row, steepness, mask=there)
        product *= steepness[None, :]
    tl.store(h + place, product, mask=inside)
    if NORM:
        product *= tl.load(gain + k * norm_stride + units, mask=there, other=0.0)[None, :]
        product += tl.load(shift + k * norm_stride + units, mask=there, other=0.0)[None, :]
        tl.store(y + place, product, mask=inside)
    tl.store(above + place, a * _phi(family, p, q, gain_of_phi, share, product) + b, mask=inside)


@triton.jit
def _backward(
    g, d_above, V, member_stride, scale, h, d, s, families, constants,
    gain, norm_stride, inverse_std, gain_gradient, shift_gradient,
    B: tl.constexpr, n: tl.constexpr, UNIT_ROWS: tl.constexpr, NORM: tl.constexpr, EXACT: tl.constexpr,
    MULTIPLY: tl.constexpr, KEEP: tl.constexpr, UNITS_FIRST: tl.constexpr,
    SAMPLES: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute `Kernels.backward` for some units of one member."""
    k = tl.program_id(1)
    samples, units = tl.arange(0, SAMPLES), tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = units < n
    inside = (samples[:, None] < B) & there[None, :]
    row, signal = k * n + units, k * B * n
    place = signal + samples[:, None] * n + units[None, :]
    family = tl.load(families + k)
    constants += CONSTANTS * k
    p, q = tl.load(constants + 2), tl.load(constants + 3)
    gain_of_phi, share = tl.load(constants + 4), tl.load(constants + 5)
    value = tl.load(h + place, mask=inside, other=0.0)
    factor = tl.load(scale + row, mask=there, other=0.0)
    argument = value
    if NORM:
        argument = tl.load(d + place, mask=inside, other=0.0)
        factor *= tl.load(gain + k * norm_stride + units, mask=there, other=0.0)
        factor *= tl.load(inverse_std + row, mask=there, other=0.0)
    if not MULTIPLY:
        below = tl.load(g + place, mask=inside, other=0.0)
    else:
        V += k.to(tl.int64) * member_stride
        if UNITS_FIRST:  # quicker where there is work for all multiprocessors
            below = tl.zeros((UNITS, SAMPLES), dtype=tl.float32)
        else:
            below = tl.zeros((SAMPLES, UNITS), dtype=tl.float32)
        for first in range(0, n, INNER):
            inner = first + tl.arange(0, INNER)
            if UNITS_FIRST:
                weight, above = _load(V, units, inner, 1, n, n, n), _load(d_above + signal, inner, samples, 1, n, n, B)
                below = _dot(weight, above, below, EXACT)
            else:
                above, weight = _load(d_above + signal, samples, inner, n, 1, B, n), _load(V, inner, units, n, 1, n, n)
                below = _dot(above, weight, below, EXACT)
        if UNITS_FIRST:
            below = tl.trans(below)
        if KEEP:
            tl.store(g + place, below, mask=inside)
    u = below * _slope(family, p, q, gain_of_phi, share, argument)
    if NORM:
        sum_of_u, along = tl.sum(u, 0), tl.sum(u * value, 0)
        tl.store(shift_gradient + row, sum_of_u, mask=there)
        tl.store(gain_gradient + row, along, mask=there)
        u -= value * (along / B)[None, :] + (sum_of_u / B)[None, :]
    elif UNIT_ROWS:
        tl.store(s + row, tl.sum(u * value, 0), mask=there)
    tl.store(d + place, u * factor[None, :], mask=inside)


@triton.jit(do_not_specialize=["K", "L"])
def _update(
    V, M, d, x, tangent, step_size, alive, momentum, K, L,
    B: tl.constexpr, n: tl.constexpr, UNIT_ROWS: tl.constexpr, EXACT: tl.constexpr,
    SAMPLES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute `Kernels.update` for a block of one matrix."""
    across: tl.constexpr = (n + COLS - 1) // COLS
    blocks: tl.constexpr = (n + ROWS - 1) // ROWS * across
    matrix, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    k, layer = matrix // L, matrix % L
    if tl.load(alive + k) == 0:
        return
    rows, cols = block // across * ROWS + tl.arange(0, ROWS), block % across * COLS + tl.arange(0, COLS)
    samples = tl.arange(0, SAMPLES)
    signal = (layer * K + k).to(tl.int64) * B * n
    place = matrix.to(tl.int64) * n * n + rows[:, None] * n + cols[None, :]
    inside = (rows[:, None] < n) & (cols[None, :] < n)
    weight, moved = tl.load(V + place, mask=inside, other=0.0), tl.load(M + place, mask=inside, other=0.0)
    left, right = _load(d + signal, rows, samples, 1, n, n, B), _load(x + signal, samples, cols, n, 1, B, n)
    moved = _dot(left, right, momentum * moved, EXACT)
    if UNIT_ROWS:
        along = tl.load(tangent + (layer * K + k) * n + rows, mask=rows < n, other=0.0)
        moved -= along[:, None] * weight
    tl.store(M + place, moved, mask=inside)
    tl.store(V + place, weight + tl.load(step_size + k) * moved, mask=inside)


LARGEST_BATCH = 128
"""More samples of a few units than that do not fit into the registers of a multiprocessor."""

ABSENT: Any = Normalised(*[None] * 2, Statistics(*[None] * 5), None)  # type: ignore[call-arg, arg-type]
"""In place of batch normalisation, where there is none."""

BUSY = 90
"""Blocks that keep most of the 132 multiprocessors of an H100 or H200 busy."""


class Blocks(NamedTuple):
    """How a product is divided among multiprocessors, as timed on an H200.

    Attributes:
        units: of one block.
        units_first: whether units are the rows of the block, not its columns.
    """

    units: int
    units_first: bool = False


class Kernels:
    """The kernels of one fleet. Shapes as in `signals.Signals`; all work in place.

    Args:
        members: of activations with a `kernel`.
        unit_rows: whether rows of V are scaled to length 1.
        exact: products with the error of float32, not of TF32.
        like: a float32 tensor on the device.
    """

    def __init__(self, members: Sequence[Member], *, unit_rows: bool, exact: bool, like: Tensor) -> None:
        forms = kernel_forms(members, ON_GPU)
        families = [form.family.value for form in forms]
        constants = [[member.a, member.b, *form[1:]] for member, form in zip(members, forms, strict=True)]
        self._functions = torch.tensor(families, dtype=torch.int32, device=like.device), like.new_tensor(constants)
        self._options = {"UNIT_ROWS": unit_rows, "EXACT": exact}
        self._like = like
        K, n = len(members), like.shape[-1]
        few = Blocks(32 if K * triton.cdiv(n, 32) >= BUSY else 16)
        many = K * triton.cdiv(n, 64) >= BUSY
        self.blocks_forward = Blocks(64) if many and not exact else few
        self.blocks_backward = Blocks(64, units_first=True) if many else few

    def compile(self, batch: int, *, norm: bool, keep: bool) -> None:
        """Compile all kernels, by a step of two layers of ones whose result is not used.

        Args:
            batch: samples in it.
            norm: with batch normalisation.
            keep: with every g, as orthogonal weights need it.

        Raises:
            Exception: of any kind; no compiler, too little memory in a multiprocessor, too many samples.
        """
        n, ones = self._like.shape[-1], self._like.new_ones
        V, M, signals, row, unit = (
            ones(1, 2, n, n),
            ones(1, 2, n, n),
            ones(3, 2, 1, batch, n),
            ones(1, 1, n),
            ones(1, n),
        )
        x, h, d = signals
        normalised = Normalised(unit, unit, Statistics(*ones(5, 1, n)), d[0]) if norm else None
        self.forward(x[0], V[:, 0], row, row.clone(), h[0], x[1], normalised)
        self.backward(x[0], None, row, h[1], d[1], unit.clone(), normalised, keep=keep)
        self.backward(x[0], (d[1], V[:, 1]), row, h[0], d[0], unit.clone(), normalised, keep=keep)
        self.update(V, M, d, x, ones(2, 1, n, 1), ones(1), torch.ones_like(unit[0, :1], dtype=torch.bool), 0.5)

    def forward(  # noqa: D417
        self, x: Tensor, V: Tensor, inverse_norm: Tensor, scale: Tensor, h: Tensor, above: Tensor,
        norm: Normalised | None,
    ) -> None:  # fmt: skip
        """Fill h = xVᵀ/‖v‖ and, by way of batch normalisation if there is any, aφ(h) + b above.

        Args:
            x, h, above: (K, B, n).
            V: (K, n, n).
            inverse_norm, scale: (K, 1, n), 1/‖v‖ and a/‖v‖; filled if rows are scaled.
            norm: its y and parts of its statistics are filled, and h becomes ĥ.
        """
        K, B, n = x.shape
        gain, shift, batch, y = norm or ABSENT
        units, _ = self.blocks_forward
        _forward[(triton.cdiv(n, units), K)](
            x, V, V.stride(0), inverse_norm, scale, h, above, *self._functions,
            gain, shift, 0 if gain is None else gain.stride(0), batch.mean, batch.variance, batch.inverse_std, y,
            NORM_EPS, B, n, **self._options, NORM=norm is not None,
            SAMPLES=_samples(B), UNITS=units, INNER=64, num_warps=4, num_stages=3,
        )  # fmt: skip

    def backward(  # noqa: D417
        self, g: Tensor, above: tuple[Tensor, Tensor] | None, scale: Tensor, h: Tensor, d: Tensor, s: Tensor,
        norm: Normalised | None, *, keep: bool,
    ) -> None:  # fmt: skip
        """Fill d and s of a layer, from g = ∂E/∂x above it.

        Args:
            g: (K, B, n); where there is a layer above, it is filled if it is to be kept, and not used otherwise.
            above: d and V of the layer above, whose product g is, or None.
            scale: (K, 1, n), a/‖v‖.
            h, d: (K, B, n).
            s: (K, n).
            norm: its y is d, and the other part of its statistics is filled.
            keep: fill g.
        """
        K, B, n = h.shape
        gain, _, batch, _ = norm or ABSENT
        d_above, V = above or (None, None)
        units, units_first = self.blocks_backward
        _backward[(triton.cdiv(n, units), K)](
            g, d_above, V, 0 if V is None else V.stride(0), scale, h, d, s, *self._functions,
            gain, 0 if gain is None else gain.stride(0), batch.inverse_std, batch.gain_gradient, batch.shift_gradient,
            B, n, **self._options, NORM=norm is not None, MULTIPLY=above is not None, KEEP=keep,
            UNITS_FIRST=units_first, SAMPLES=_samples(B), UNITS=units, INNER=64, num_warps=4, num_stages=3,
        )  # fmt: skip

    def update(  # noqa: D417
        self, V: Tensor, M: Tensor, d: Tensor, x: Tensor, tangent: Tensor, step_size: Tensor, alive: Tensor,
        momentum: float,
    ) -> None:  # fmt: skip
        """M ← μM + dᵀx − tangent·V and V ← V + step·M, for all matrices of living members.

        Args:
            V, M: (K, L, n, n).
            d, x: (L, K, B, n).
            tangent: (L, K, n, 1), used if rows are scaled.
            step_size, alive: (K,); the step size is −lr.
            momentum: μ.
        """
        L, K, B, n = d.shape
        rows, cols = 64, 32
        _update[(K * L * triton.cdiv(n, rows) * triton.cdiv(n, cols),)](
            V, M, d, x, tangent, step_size, alive.view(torch.uint8), momentum, K, L, B, n, **self._options,
            SAMPLES=_samples(B), ROWS=rows, COLS=cols, num_warps=4, num_stages=1,
        )  # fmt: skip


def _samples(batch: int) -> int:
    """Rows of a block that holds a batch: a power of two that tensor cores take."""
    if batch > LARGEST_BATCH:
        raise ValueError(f"there are kernels for batches of up to {LARGEST_BATCH}, and this one has {batch}")
    return max(16, triton.next_power_of_2(batch))
