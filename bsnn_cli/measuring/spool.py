"""Stacks of tensors that are written once and read back soon, in memory where they fit and in a temporary file else."""

from __future__ import annotations

import math
import shutil
import tempfile

import torch
from torch import Tensor

KEPT_BYTES = 200 * 500 * 500 * 4
"""Stacks are kept in memory up to this size, the matrices of a network of the paper's."""


class Spool:
    """Tensors of equal shape in a temporary file that nobody else sees and that is gone when this is.

    Reading a matrix takes a thirtieth of the time of drawing it or less, and what the system keeps of a file in memory
    it gives up when a program needs it.

    Args:
        shape: of one.
        dtype: of all.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when nobody has the tensors any more)
        self._shape, self._dtype = shape, dtype

    def __del__(self) -> None:
        self._file.close()

    def __setitem__(self, index: int, value: Tensor) -> None:
        try:
            self._file.seek(index * value.nbytes)
            self._file.write(value.contiguous().numpy().data)
        except OSError as error:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error

    def __getitem__(self, index: int) -> Tensor:
        value = torch.empty(self._shape, dtype=self._dtype)
        self._file.seek(index * value.nbytes)
        self._file.readinto(value.numpy().data)
        return value


def stack(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | Spool | None:
    """A place on the CPU for tensors, by their index; None where they fit neither into memory nor on the disk.

    Args:
        shape: number of tensors, then the shape of each.
        dtype: of all.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= KEPT_BYTES:
        return torch.empty(shape, dtype=dtype)
    return Spool(shape[1:], dtype) if fits_on_disk(size) else None


def fits_on_disk(size: int) -> bool:
    """Whether a temporary file of so many bytes leaves as many free."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 2 * size
