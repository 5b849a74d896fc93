"""The functions that the kernels of networks have code for: families, each with a few constants."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Family(enum.IntEnum):
    """Functions f of h with two constants p and q; the numbers are those of the kernels' code."""

    TANH = 0  # tanh(h)
    RECTIFIER = 1  # h, or ph below 0
    ELU = 2  # qh, or qp(exp(h) − 1) below 0
    SWISH = 3  # hσ(ph)
    SOFTPLUS = 4  # log(1 + exp(h))
    SIGMOID = 5  # σ(h)
    MISH = 6  # h·tanh(log(1 + exp(h)))


ON_GPU = (Family.TANH, Family.RECTIFIER, Family.ELU, Family.SWISH)
"""The families that the kernels of a GPU have code for; those of a CPU have it for all."""


class KernelForm(NamedTuple):
    """φ(h) = (1 − share)·f(gain·h) + share·h with f of a family: all that a kernel needs to know of an activation."""

    family: Family
    p: float = 0.0
    q: float = 0.0
    gain: float = 1.0
    share: float = 0.0

    def tailored(self, gain: float, share: float) -> KernelForm:
        """Return the form of (1 − share)·φ(gain·h) + share·h. At gain 1 a rectifier's lower slope absorbs the share.

        Only a form that is not tailored yet can be tailored.
        """
        if self.family is Family.RECTIFIER and gain == 1:
            return self._replace(p=share + (1 - share) * self.p)
        return self._replace(gain=gain, share=share)
