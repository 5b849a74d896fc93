"""Networks of one's own: `bsnn propagate network=my_network.py:cnn`, `bsnn train network=my_network.py:residual`.

A function returns an `nn.Module`, or a module and its inputs. Its arguments are given as `network.kwargs.depth=50`.
"""

import torch
from torch import Tensor, nn


def cnn(depth: int = 20, channels: int = 16, batch_norm: bool = False) -> tuple[nn.Module, Tensor]:
    """A plain CNN of so many 3×3 convolutions with ReLU, as PyTorch starts it, and 16 random images."""
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers.append(nn.Conv2d(channels if layer else 3, channels, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * channels, 10)), torch.randn(16, 3, 8, 8)


def perceptron(width: int) -> nn.Module:
    """Three layers as PyTorch starts them; needs `network.shape=[32]`."""
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class Block(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same shape."""
        return x + self.inner(x)


def residual(channels: int = 16, blocks: int = 3, classes: int = 10) -> nn.Module:
    """A small residual CNN for images of any size; the first layer takes as many channels as they have."""
    return nn.Sequential(
        nn.LazyConv2d(channels, 3, padding=1),
        *(Block(channels) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )
