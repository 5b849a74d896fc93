"""Signals and gradients of well-known networks before and after `normalise`: `python normalise_networks.py [pixels]`.

No weights are loaded: each network is measured as its library initialises it, then turned into its GPN version in place
and measured again on the same batch, with a standard Gaussian gradient at its output. The first network is drawn, layer
by layer and with and without batch norm, into `normalised_resnet18.png`.
"""

import sys
from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11

from bsnn_cli import measure, normalise

PIXELS = int(sys.argv[1]) if len(sys.argv) > 1 else 64
BATCH = 16


class Unrolled(nn.Module):
    """An LSTM cell over many steps; `state` does nothing but let its hidden state be measured."""

    def __init__(self, size: int, steps: int) -> None:
        super().__init__()
        self.cell, self.state, self.steps = nn.LSTMCell(size, size), nn.Identity(), steps

    def forward(self, x: Tensor) -> Tensor:
        """(batch, size) → the last hidden state, (batch, size)."""
        h, c = x, torch.zeros_like(x)
        for _ in range(self.steps):
            h, c = self.cell(x, (self.state(h), c))
        return h


def small_vgg11() -> nn.Module:
    """The convolutions of vgg11 with a small head: its own has matrices of 25,088 columns."""
    return nn.Sequential(*vgg11().features, nn.Flatten(), nn.Linear(512 * (PIXELS // 32) ** 2, 10))


def plain_cnn() -> nn.Module:
    """A hundred convolutions without normalisations or residual connections."""
    convolutions = (nn.Conv2d(3 if layer == 0 else 32, 32, 3, padding=1) for layer in range(100))
    return nn.Sequential(*(part for convolution in convolutions for part in (convolution, nn.Tanh())))


def transformer_mlps() -> nn.Module:
    """The MLPs of twelve transformer blocks, without what stands around them."""
    blocks = (nn.Sequential(nn.Linear(192, 768), nn.GELU(), nn.Linear(768, 192)) for _ in range(12))
    return nn.Sequential(*blocks)


def resnet18_without_norm() -> nn.Module:
    """The same convolutions and residual connections, nothing where batch norm was."""
    return resnet18(num_classes=10, norm_layer=lambda _: nn.Identity())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: resnet18(num_classes=10), (3, PIXELS, PIXELS)),
    "resnet18 without batch norm": (resnet18_without_norm, (3, PIXELS, PIXELS)),
    "vgg11": (small_vgg11, (3, PIXELS, PIXELS)),
    "CNN of 100 layers": (plain_cnn, (3, 8, 8)),
    "LSTM cell, 100 steps": (lambda: Unrolled(128, 100), (128,)),
    "12 transformer MLPs": (transformer_mlps, (192,)),
}


def summary(frame: pd.DataFrame) -> dict[str, str]:
    """Return the range of ‖x‖²/n, the gradient ‖∂E/∂x‖²/n at the first layer over that at the last, and of weights."""
    steps, layers = frame[frame["module"] == "state"], frame[frame["weights"] > 0]
    signals = steps if len(steps) else layers
    forward, backward, weights = signals["forward_norm"], signals["backward_norm"], layers["gradient_norm"]
    return {
        "‖x‖²/n": f"{forward.min():.2g} to {forward.max():.2g}",
        "gradient, first/last": f"{backward.iloc[0] / backward.iloc[-1]:.2g}",
        "of weights, largest/smallest": f"{weights.max() / weights.min():.2g}",
    }


def draw(frames: dict[tuple[str, str], pd.DataFrame], path: str) -> None:
    """Draw signals and gradients against the layer, a column for each network."""
    names = list(dict.fromkeys(name for name, _ in frames))
    figure, axes = plt.subplots(2, len(names), figsize=(7, 4), sharex=True, sharey="row", layout="constrained")
    for column, name in zip(axes.T, names, strict=True):
        for version, line in (("as built", "--"), ("GPN", "-")):
            layers = frames[name, version]
            layers = layers[layers["weights"] > 0]
            for panel, quantity in zip(column, ("forward_norm", "backward_norm"), strict=True):
                places = range(1, len(layers) + 1)
                panel.semilogy(places, layers[quantity], line, color="#0072B2", marker=".", label=version)
        column[0].set_title(name)
        column[1].set_xlabel("convolution, then the linear layer")
    axes[0, 0].set_ylabel("signal ‖x‖²/n")
    axes[1, 0].set_ylabel("gradient ‖∂E/∂x‖²/n")
    axes[0, 0].legend(frameon=False)
    for panel in axes.flat:
        panel.grid(color="#E6E6E6")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


rows, frames = [], {}
for name, (build, shape) in NETWORKS.items():
    torch.manual_seed(0)
    network, x = build(), torch.randn(BATCH, *shape)
    for version in ("as built", "GPN"):
        if version == "GPN":
            table = normalise(network)
            left = table[table["change"] == "left"]["kind"].value_counts()
            print(f"{name}: {(table['change'] != 'left').sum()} changes, left: {left.to_dict() or 'nothing'}")
        frames[name, version] = measure(network, x)
        rows.append({"network": name, "version": version, **summary(frames[name, version])})
print(pd.DataFrame(rows).to_string(index=False))
draw({key: frame for key, frame in frames.items() if key[0].startswith("resnet18")}, "normalised_resnet18.png")
