"""A deep network of your own with GPN activations and unit rows, in plain PyTorch: `python gpn_in_your_model.py`.

Fifty hidden layers learn scikit-learn's digits. The three lines that differ from any other MLP are marked.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize

from bsnn_cli import GPN, UnitRows

DEPTH, WIDTH, EPOCHS = 50, 100, 3


def hidden_layer() -> nn.Sequential:
    """An orthogonal matrix whose rows stay at unit length, and a normalised activation."""
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.orthogonal_(linear.weight)  # 1
    parametrize.register_parametrization(linear, "weight", UnitRows())  # 2
    return nn.Sequential(linear, GPN("selu"))  # 3


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32)
images = (images - images.mean()) / images.std()
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

body = nn.Sequential(*(hidden_layer() for _ in range(DEPTH)))
model = nn.Sequential(nn.Linear(64, WIDTH), body, nn.Linear(WIDTH, 10))

signal = torch.randn(500, WIDTH)
with torch.no_grad():
    print(f"mean squared signal, in and out of {DEPTH} layers: {signal.square().mean():.2f}, ", end="")
    print(f"{body(signal).square().mean():.2f}")

optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.5)
for _ in range(EPOCHS):
    for batch in torch.randperm(1400).split(50):
        loss = nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == labels[test]).double().mean()
print(f"test accuracy after {EPOCHS} epochs: {100 * accuracy:.1f} %")
