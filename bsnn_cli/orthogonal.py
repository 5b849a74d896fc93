"""Random streams, Haar-uniform orthogonal matrices, and the distance to orthogonality."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stream(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU random stream that is a function of its arguments alone.

    Streams of different purposes or indices are independent, so that the initial weights of one layer, or the batch
    order of one epoch, can be drawn again without drawing what came before it.

    Args:
        seed: of the run; 0 is a seed like any other.
        purpose: what is drawn, such as "hidden" or "batches".
        index: layer or epoch, counted from 0.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def haar(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw an (n, n) matrix uniformly from the orthogonal group (assumption 2 of the paper's theorems).

    Householder QR of a Gaussian matrix fixes the signs of R's diagonal by convention, which biases Q. Moving those
    signs into Q makes the factorisation unique and Q Haar distributed (Mezzadri 2007).
    """
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=dtype))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(dtype)


def orthogonality_error(weight: Tensor) -> Tensor:
    """Largest |WᵀW − I| over all entries; (..., n, n) → (...)."""
    gram = weight.mT @ weight
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram.abs().amax(dim=(-2, -1))
