"""Activations of one's own, for `activation=custom_gpn activation.path=my_activation.py:bent`.

A function takes a tensor of any shape and floating dtype, and gives φ of each entry in differentiable operations.
"""

import torch
from torch import Tensor


def bent(h: Tensor) -> Tensor:
    """Slope 1 above 0.4, slope 0.3 below: the kink need not be at 0, nor need it be told to anybody."""
    return torch.where(h > 0.4, h, 0.3 * h + 0.28)


def slow_tanh(h: Tensor) -> Tensor:
    """Tanh nearer to its linear region; its derivative is given below, and checked."""
    return torch.tanh(0.3 * h)


def slow_tanh_derivative(h: Tensor) -> Tensor:
    """Optional: without it, autograd gives the derivative."""
    return 0.3 * (1 - torch.tanh(0.3 * h).square())
