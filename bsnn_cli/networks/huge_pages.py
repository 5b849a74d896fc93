"""Memory in huge pages, for matrices that a step reads as a whole: the processor then looks up far fewer addresses."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""Advice of Linux: huge pages for memory that is about to be used, and for what is in use already (since 6.1)."""

WORTHWHILE = 8 * 2**20
"""Bytes. The caches look after less."""


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask Linux to keep the memory of a tensor on the CPU in huge pages, and return the tensor.

    It is only advice: elsewhere, and where the system has no huge page to give, nothing changes.
    """
    storage = tensor.untyped_storage()
    madvise = _madvise()
    if madvise is not None and tensor.device.type == "cpu" and storage.nbytes() >= WORTHWHILE:
        begin = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = ctypes.c_size_t(storage.data_ptr() + storage.nbytes() - begin)
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
            madvise(ctypes.c_void_p(begin), length, ctypes.c_int(advice))
    return tensor


@functools.cache
def _madvise() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), "madvise", None)
    return function
