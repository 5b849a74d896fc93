"""Random streams that are functions of a seed and a purpose."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU random stream that is a function of its arguments alone.

    Streams of different purposes or indices are independent, so that the initial weights of one layer, or the batch
    order of one epoch, can be drawn again without drawing what came before it.

    Args:
        seed: of the run; 0 is a seed like any other.
        purpose: what is drawn, such as "hidden" or "batches".
        index: layer or epoch, counted from 0.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
