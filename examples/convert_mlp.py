"""What happens to the signals of a trained MLP when its activations become GPN: `python convert_mlp.py`.

The MLP is ordinary: twelve layers of Tanh, trained by Adam. Its weights stay, each `nn.Tanh` is replaced. GPN promises
that lengths stay 1 where weights are orthogonal, so the conversion is shown once with the trained weights as they are
and once with each hidden matrix replaced by the orthogonal one next to it.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from bsnn_cli import GPN

DEPTH, WIDTH = 12, 100


def converted(model: nn.Sequential) -> nn.Sequential:
    """A copy with every Tanh, wherever it stands, in its normalised form."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Tanh):
                setattr(parent, name, GPN(child))
    return model


@torch.no_grad()
def orthogonalised(model: nn.Sequential) -> nn.Sequential:
    """A copy whose hidden matrices are the orthogonal factors of their polar decompositions, without biases."""
    model = copy.deepcopy(model)
    for layer in model[2:-1]:
        if isinstance(layer, nn.Linear):
            left, _, right = torch.linalg.svd(layer.weight)
            layer.weight.copy_(left @ right)
            layer.bias.zero_()
    return model


def signals(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> str:
    """Squared length per unit before the last layer; largest over smallest gradient norm of the hidden matrices."""
    x = model[:-1](images)
    model.zero_grad()
    nn.functional.cross_entropy(model[-1](x), labels).backward()
    norms = [layer.weight.grad.norm() for layer in model[2:-1] if isinstance(layer, nn.Linear)]
    return f"‖x‖²/n = {x.square().mean():.2f}, gradient norm ratio {max(norms) / min(norms):.1f}"


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32)
images = (images - images.mean()) / images.std()
labels = torch.tensor(digits.target)

layers: list[nn.Module] = [nn.Linear(64, WIDTH), nn.Tanh()]
for _ in range(DEPTH - 1):
    layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(8):
    for batch in torch.randperm(1400).split(50):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).double().mean()
print(f"test accuracy as trained: {100 * accuracy:.1f} %")
print("trained weights, Tanh:               ", signals(model, images, labels))
print("trained weights, Tanh-GPN:           ", signals(converted(model), images, labels))
print("nearest orthogonal weights, Tanh:    ", signals(orthogonalised(model), images, labels))
print("nearest orthogonal weights, Tanh-GPN:", signals(orthogonalised(converted(model)), images, labels))
