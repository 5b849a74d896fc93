"""Haar-uniform orthogonal matrices, the distance to orthogonality, and steps that stay close to it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def haar(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, columns: int | None = None) -> Tensor:
    """Draw an (n, n) matrix uniformly from the orthogonal group (assumption 2 of the paper's theorems).

    With `columns`, at most n, draw the first columns of one: an (n, columns) matrix, uniform on the Stiefel manifold.

    Householder QR of a Gaussian matrix fixes the signs of R's diagonal by convention, which biases Q. Moving those
    signs into Q makes the factorisation unique and Q Haar distributed (Mezzadri 2007).
    """
    gaussian = torch.randn(n, columns or n, generator=generator, dtype=dtype)
    reflectors, tau = torch.geqrf(gaussian)  # R stands above the diagonal
    signs = torch.where(reflectors.diagonal() < 0, -1.0, 1.0).to(dtype)
    q: Tensor = torch.linalg.householder_product(reflectors, tau)
    return q.mul_(signs)


def semi_orthogonal(n_out: int, n_in: int, generator: torch.Generator) -> Tensor:
    """Draw an (n_out, n_in) matrix with rows of unit length on average, as orthogonal as its shape allows.

    One that narrows has orthonormal rows. One that widens has orthonormal columns times √(n_out/n_in), with which
    ‖Wx‖²/n_out is ‖x‖²/n_in. Both are uniform on their Stiefel manifold; a square one is what `haar` draws.
    """
    if n_out < n_in:
        return haar(n_in, generator, columns=n_out).T.contiguous()
    return haar(n_out, generator, columns=n_in).mul_(math.sqrt(n_out / n_in))


def deviation(weight: Tensor) -> Tensor:
    """Return WᵀW − I; (..., m, n) → (..., n, n)."""
    exact = weight.double() if weight.is_cuda else weight  # a GPU may be told to multiply in TF32, three digits
    gram = exact.mT @ exact
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram.to(weight.dtype)


def orthogonality_error(weight: Tensor) -> Tensor:
    """Return the largest |WᵀW − I| over all entries; (..., n_out, n_in) → (...).

    Of a matrix that narrows it is that of WWᵀ − I, and of one that widens that of (n_in/n_out)WᵀW − I: the smaller of
    the two products, which `semi_orthogonal` makes the identity.
    """
    n_out, n_in = weight.shape[-2:]
    if n_out < n_in:
        weight = weight.mT
    elif n_out > n_in:
        weight = weight * math.sqrt(n_in / n_out)
    return deviation(weight).abs().amax(dim=(-2, -1))


LIMIT = 5e-6
"""Largest |WᵀW − I| that a step may lead to by its bound: half of the 1e-5 that is promised. The other half is for what
the bound leaves out: terms in (WᵀW − I)·lr, and the rounding of its measurement, 1e-6 at width 500 in float32."""

NEWTON_SCHULZ_STEPS = 12
"""From ‖WᵀW − I‖ = 1 to rounding takes eight."""


def retract(W: Tensor) -> Tensor:
    """Replace W, (n, n), by the orthogonal matrix next to it; returns the largest |WᵀW − I| then, measured.

    That is the polar factor U of W = UP. Newton-Schulz, W ← W − W(WᵀW − I)/2, finds it by products alone and squares
    the error each time, once ‖WᵀW − I‖ < 1 (Björck and Bowie 1971). From further away a singular value decomposition
    does. An error of 16 units of rounding counts as none.
    """
    rounding = 16 * torch.finfo(W.dtype).eps
    for _ in range(NEWTON_SCHULZ_STEPS):
        E = deviation(W)
        if E.abs().max() <= rounding:
            break
        if torch.linalg.matrix_norm(E) < 1:
            W.copy_(torch.addmm(W, W, E, alpha=-0.5))
        else:
            U, _, Vh = torch.linalg.svd(W)
            W.copy_(U @ Vh)
    return orthogonality_error(W)


def longest_column(M: Tensor) -> Tensor:
    """Return the largest squared length of a column; (..., n, n) → (...)."""
    return (M * M).sum(-2).amax(-1)


class Drift:
    """Updates orthogonal matrices by W ← W − lr·M, and retracts them when they may be too far from WᵀW = I.

    M ← μM + P is the momentum, P the gradient's tangent part. With E = WᵀW − I and S = WᵀM + MᵀW a step leads to

        E' = E − lr·S + lr²·MᵀM,        then M' = μM + P' to  S' = μ(S − 2lr·MᵀM),

    since P' is tangent at the new W. No entry of MᵀM is larger than c², the largest squared length of a column of M. So
    a bound of |E| grows by lr·s + lr²c² a step, and one of |S| follows s ← μ(s + 2lr·c²): one pass over M, no product.
    Only when the bound passes `LIMIT` is the error measured, and only if the step from there would still pass it, the
    step is completed by the retraction. At the paper's learning rate that is once in hundreds of steps; at 0.1, always.

    Args:
        tensors: with the entries of `start`; kept up to date, so that a resumed run decides the same.
        momentum: μ.
    """

    def __init__(self, tensors: Mapping[str, Tensor], momentum: float) -> None:
        self.momentum = momentum
        self.bound, self.sway, self.worst = (tensors[f"orthogonality.{name}"] for name in ("bound", "sway", "worst"))
        self.growth, self.held = torch.zeros_like(self.bound), torch.zeros_like(self.bound, dtype=torch.bool)

    @staticmethod
    def start(like: Tensor, members: int, depth: int) -> dict[str, Tensor]:
        """Bounds of |E| and |S|, and the largest error measured, of each member and layer; nothing is known yet."""
        return {
            "orthogonality.bound": like.new_full((members, depth), torch.inf),
            "orthogonality.sway": like.new_zeros(members, depth),
            "orthogonality.worst": like.new_zeros(members, depth),
        }

    def advance(self, k: int, layers: slice, c_squared: Tensor, lr: Tensor | float, alive: Tensor) -> Tensor:
        """Advance the bounds of some matrices by a step that is about to be made; nothing waits for a device here.

        Args:
            k: the member.
            layers: c of them, counted from 0.
            c_squared: (c,) `longest_column` of M, with the gradient in it.
            lr: the learning rate.
            alive: whether the member is; without dimensions.

        Returns:
            (c,) which matrices must not make the step but by `complete`, because it may lead past the limit.
        """
        bound, sway, held = self.bound[k, layers], self.sway[k, layers], self.held[k, layers]
        growth = lr * (sway + lr * c_squared) + torch.finfo(bound.dtype).eps / 8  # the last term for rounding
        sway.add_(2 * lr * c_squared).mul_(self.momentum)
        bound.add_(growth)
        self.growth[k, layers] = growth
        held.copy_(~(bound <= LIMIT) & alive)  # what is not a number passes the limit
        return held

    def step(self, k: int, layers: slice, V: Tensor, M: Tensor, c_squared: Tensor, lr: float) -> None:
        """Make the step V ← V − lr·M of some matrices of a living member, each retracted if necessary.

        Args:
            k: the member.
            layers: c of them, counted from 0.
            V: (c, n, n), changed in place.
            M: (c, n, n).
            c_squared: (c,) `longest_column` of M.
            lr: the learning rate.
        """
        held = self.advance(k, layers, c_squared, lr, torch.ones((), dtype=torch.bool))
        if not held.any():
            V.add_(M, alpha=-lr)
            return
        first = layers.start
        for place, holding in enumerate(held.tolist()):
            if holding:
                self.complete(k, first + place, V[place], M[place], lr)
            else:
                V[place].add_(M[place], alpha=-lr)

    def complete(self, k: int, layer: int, W: Tensor, M: Tensor, lr: float) -> None:
        """Make the step W ← W − lr·M of a matrix that was held back: measure it first, and retract it if necessary.

        Every error in `worst` is one of weights that a forward pass used or will use, and one that drift has led to is
        measured before the retraction.

        Args:
            k: the member.
            layer: counted from 0.
            W: changed in place, (n, n).
            M: (n, n).
            lr: the learning rate.
        """
        bound, worst = self.bound[k, layer], self.worst[k, layer]
        error = orthogonality_error(W)
        worst.copy_(torch.maximum(worst, error))
        bound.copy_(error + self.growth[k, layer])
        W.add_(M, alpha=-lr)
        if not bound <= LIMIT:
            bound.copy_(retract(W))
            worst.copy_(torch.maximum(worst, bound))

    def keep(self, k: int, layer: int, W: Tensor) -> None:
        """Retract a matrix after a step of which no bound is known, (n, n), in place; `layer` is counted from 0."""
        bound, worst = self.bound[k, layer], self.worst[k, layer]
        bound.copy_(retract(W))
        worst.copy_(torch.maximum(worst, bound))

    def largest_error(self, weights: Tensor) -> Tensor:
        """Return the largest |WᵀW − I| of (K, L, n, n) now and in all measurements since the last call; (K,)."""
        for W, worst in zip(weights.unbind(1), self.worst.unbind(1), strict=True):
            worst.copy_(torch.maximum(worst, orthogonality_error(W)))
        largest = self.worst.amax(1)
        self.worst.zero_()
        return largest
