"""`GPN` under what PyTorch does to modules: compilation, export, autocast, vmap, derivatives of all orders."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.errors import ActivationError
from bsnn_cli.gpn.module import GPN


def bent(h: Tensor) -> Tensor:
    return torch.where(h > 0.4, h, 0.3 * h + 0.28)


FORMS: dict[str, Callable[[], GPN]] = {
    "named": lambda: GPN("tanh"),
    "named with a kink": lambda: GPN("lrelu"),
    "named, its gradient written by hand": lambda: GPN("gelu"),
    "lower root": lambda: GPN("relu", root="lower"),
    "module": lambda: GPN(nn.SiLU()),
    "module that works in place": lambda: GPN(nn.ReLU(inplace=True)),
    "module with a parameter": lambda: GPN(nn.PReLU(init=0.3)),
    "function": lambda: GPN(F.softplus),
    "function of a user's": lambda: GPN(bent),
    "tailored by a gain": lambda: GPN("tanh", depth=20),
    "tailored by a share": lambda: GPN("lrelu", depth=20),
    "tailored function": lambda: GPN(torch.tanh, depth=20),
}
CURVED = (
    "named",
    "named, its gradient written by hand",
    "module",
    "function",
    "tailored by a gain",
    "tailored function",
)

# What torch does when a forward derivative is first asked for.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

make = functools.cache(lambda form: FORMS[form]())


@pytest.fixture(params=FORMS)
def gpn(request: pytest.FixtureRequest) -> GPN:
    return make(request.param)


@pytest.fixture(autouse=True)
def compiled_afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def h_of(dtype: torch.dtype = torch.float32) -> Tensor:
    """Twelve places on both sides of all kinks, none at one."""
    return torch.linspace(-3, 3, 12, dtype=dtype).view(3, 4)


def outcome(f: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and gradients of their sum of squares."""
    h = h.clone().requires_grad_()
    value = f(h)
    (gradient,) = torch.autograd.grad(value.float().square().sum(), h)
    return value.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph_with_the_same_numbers(gpn: GPN, dtype: torch.dtype) -> None:
    compiled = torch.compile(gpn, fullgraph=True, backend="aot_eager")
    gpn = gpn if dtype == torch.float32 or not [*gpn.parameters()] else gpn.to(dtype)
    expected = outcome(gpn, h_of(dtype))
    for found, wanted in zip(outcome(compiled, h_of(dtype)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    gpn.float()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiles_by_inductor() -> None:
    """The default backend makes code of its own, with other rounding: a few units in the last place of float32."""
    gpn = make("tailored by a gain")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(gpn, fullgraph=True)(h_of()), gpn(h_of()), rtol=1e-5, atol=1e-6)


def test_exports_for_any_batch(gpn: GPN) -> None:
    program = torch.export.export(gpn, (h_of(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    h = torch.linspace(-2, 2, 20).view(5, 4)
    torch.testing.assert_close(program.module()(h), gpn(h), rtol=0, atol=0)


def test_autocast_gives_what_half_precision_gives(gpn: GPN) -> None:
    """Behind a linear layer, which autocast computes in bfloat16: the activation then works in bfloat16 as well."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        h = linear(h_of())
        f = gpn(h)
    assert h.dtype == f.dtype == torch.bfloat16
    torch.testing.assert_close(f.float(), gpn(h.float()), rtol=8e-3, atol=8e-3 * (gpn.a + abs(gpn.b)))  # 2⁻⁷ of φ and f
    f.float().sum().backward()
    assert linear.weight.grad is not None


def test_vmap_maps_it_like_a_batch(gpn: GPN) -> None:
    mapped = torch.func.vmap(gpn, in_dims=1, out_dims=1)
    for found, wanted in zip(outcome(mapped, h_of()), outcome(gpn, h_of()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    slopes = torch.func.vmap(torch.func.grad(lambda entry: gpn(entry[None])[0]))(h_of().flatten())
    torch.testing.assert_close(slopes, torch.func.grad(lambda h: gpn(h).sum())(h_of().flatten()))


def test_forward_and_reverse_derivatives_agree_with_differences(gpn: GPN) -> None:
    gpn = gpn.double()
    h, v = h_of(torch.float64), torch.randn(3, 4, dtype=torch.float64)
    value, tangent = torch.func.jvp(gpn, (h,), (v,))
    torch.testing.assert_close(value, gpn(h), rtol=0, atol=0)
    difference = (gpn(h + 1e-6 * v) - gpn(h - 1e-6 * v)) / 2e-6  # a third derivative times 1e-12, rounding 1e-16/1e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=1e-8)
    (pulled,) = torch.func.vjp(gpn, h)[1](v)
    torch.testing.assert_close(pulled, tangent, rtol=1e-12, atol=1e-12)  # the Jacobian is diagonal
    gpn.float()


@pytest.mark.parametrize("form", CURVED)
def test_second_derivatives_by_all_routes(form: str) -> None:
    """Double backward and forward over reverse, against a difference of slopes."""
    gpn = make(form).double()
    h = h_of(torch.float64)
    slope = torch.func.grad(lambda h: gpn(h).sum())
    difference = (slope(h + 1e-6) - slope(h - 1e-6)) / 2e-6
    assert difference.abs().max() > 1e-3
    leaf = h.clone().requires_grad_()
    (first,) = torch.autograd.grad(gpn(leaf).sum(), leaf, create_graph=True)
    (double_backward,) = torch.autograd.grad(first.sum(), leaf)
    forward_over_reverse = torch.func.jvp(slope, (h,), (torch.ones_like(h),))[1]
    for found in (double_backward, forward_over_reverse):
        torch.testing.assert_close(found, difference, rtol=1e-6, atol=1e-8)
    gpn.float()


def test_learnable_parameters_train_while_the_constants_stay() -> None:
    """Said in the docstring of `GPN`: a and b are of the parameters at construction, and drift apart from them."""
    gpn = GPN(nn.PReLU(init=0.25))
    a, b = gpn.a, gpn.b
    assert a == pytest.approx(math.sqrt(2 / (1 + 0.25**2)), rel=1e-9)
    optimizer = torch.optim.SGD(gpn.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        gpn(h_of()).square().sum().backward()
        optimizer.step()
    slope = gpn.activation.weight.item()  # type: ignore[union-attr]
    assert slope != 0.25
    assert (gpn.a, gpn.b) == (a, b)
    torch.testing.assert_close(gpn(h_of()), a * F.prelu(h_of(), torch.tensor([slope])) + b)


class SeldomRandom(nn.Module):
    """Drops one unit in a hundred."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h) * (torch.rand_like(h) > 0.01)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (nn.Dropout(0.5), "not random"),
        (nn.Dropout(0.01), "not random"),
        (SeldomRandom(), "not random"),
        (nn.RReLU(), "not random"),
        (nn.Softmax(0), "elementwise"),
        (nn.Softmax(-1), "elementwise"),
        (nn.GLU(), "shape"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (lambda h: h - h.mean(), "elementwise"),
        (lambda h: h.flip(0), "elementwise"),
        (lambda h: h.cumsum(0), "elementwise"),
        (nn.PReLU(4), "PReLU"),
        (torch.sign, "derivative is 0"),
        (torch.round, "derivative is 0"),
    ],
)
def test_what_is_random_or_not_elementwise_is_refused_with_the_reason(activation: nn.Module, words: str) -> None:
    for _ in range(5):  # not by luck
        with pytest.raises(ActivationError, match=words) as told:
            GPN(activation)
        assert "\n" not in str(told.value)
