"""How far a deep network is from an isometry: `python isometry.py [layers] [units]`.

GPN keeps the length of a gradient on average over directions: the squared singular values of the Jacobian from input to
output have mean 1, but for what a finite width makes of one input. How far apart they are is another question. For wide
layers of orthogonal weights and independent slopes their variance, over the square of their mean, is L(E[f'⁴] − 1)
(Pennington, Schoenholz and Ganguli 2018); an isometry would have 0.
"""

import sys

import torch
from torch import Tensor, nn

from bsnn_cli import GPN

DEPTH, WIDTH = (int(word) for word in [*sys.argv[1:], "50", "200"][:2])


def slopes(f: nn.Module, h: Tensor) -> Tensor:
    """f'(h)."""
    h = h.detach().requires_grad_()
    return torch.autograd.grad(f(h).sum(), h)[0]


def fourth_moment(f: nn.Module) -> float:
    """E[f'(h)⁴] for h ~ N(0, 1), by the midpoint rule."""
    h = torch.linspace(-10, 10, 200_000, dtype=torch.float64)
    density = torch.exp(-h * h / 2)
    return float((slopes(f, h) ** 4 * density).sum() / density.sum())


def squared_singular_values(f: nn.Module, matrices: list[Tensor]) -> Tensor:
    """Of the Jacobian at one Gaussian input, (n,)."""
    x, jacobian = torch.randn(WIDTH, dtype=torch.float64), torch.eye(WIDTH, dtype=torch.float64)
    for W in matrices:
        h = W @ x
        x, jacobian = f(h).detach(), slopes(f, h)[:, None] * (W @ jacobian)
    return torch.linalg.svdvals(jacobian) ** 2


torch.manual_seed(0)
matrices = [nn.init.orthogonal_(torch.empty(WIDTH, WIDTH, dtype=torch.float64)) for _ in range(DEPTH)]
print(f"squared singular values of the Jacobian, {DEPTH} layers of {WIDTH} units")
print(f"{'':18}{'mean':>6}{'largest / mean':>16}{'variance / mean²':>18}{'predicted':>11}")
for name in ("tanh", "lrelu", "elu", "selu", "gelu"):
    for label, f in ((f"{name} GPN", GPN(name)), (f"{name} depth-aware", GPN(name, depth=DEPTH))):
        values = squared_singular_values(f, matrices)
        predicted = DEPTH * (fourth_moment(f) - 1)
        mean = values.mean()
        print(f"{label:18}{mean:6.2f}{values.max() / mean:16.1f}{values.var() / mean**2:18.1f}{predicted:11.1f}")
