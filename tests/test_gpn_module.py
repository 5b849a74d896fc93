"""`GPN`, the normalised activation as a module: its values, dtypes, copies, and what it can be built from."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsnn_cli.gpn.activations import ACTIVATIONS, get
from bsnn_cli.gpn.module import GPN

NAMES = list(ACTIVATIONS)


class Swish(nn.Module):
    """With a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.sigmoid(self.beta * h)


@pytest.mark.parametrize(
    "module", [nn.SiLU(), nn.ReLU(inplace=True), nn.PReLU(), nn.Hardtanh(), nn.Softshrink(), nn.Hardsigmoid(), Swish()]
)
def test_any_elementwise_module_can_be_normalised(module: nn.Module) -> None:
    gpn = GPN(module).double()
    h = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    f = gpn(h.clone())
    (slope,) = torch.autograd.grad(f.sum(), h)
    assert float((f.detach() ** 2).mean()) == pytest.approx(1, abs=0.02)
    assert float((slope**2).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_comes_back_as_accurate_as_it_can(name: str, dtype: torch.dtype) -> None:
    gpn = GPN(name).to(dtype)
    h = torch.linspace(-6, 6, 301).to(dtype)
    f = gpn(h)
    exact = GPN(name)(h.double())
    info = torch.finfo(dtype)
    assert f.dtype == dtype
    assert ((f.double() - exact).abs() <= info.tiny + 2 * info.eps * (exact.abs() + gpn.a * h.abs() + abs(gpn.b))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_after_the_function(dtype: torch.dtype) -> None:
    gpn = GPN("relu", root="lower")
    h = torch.linspace(0.1, 6, 501).to(dtype)  # here φ is exact
    exact = gpn(h.double())
    assert ((gpn(h).double() - exact).abs() <= 0.502 * torch.finfo(dtype).eps * exact.abs()).all()


def test_constants_survive_a_round_trip_through_half_precision() -> None:
    gpn = GPN(nn.PReLU(init=0.3))
    before = gpn.a, gpn.b
    gpn.half()
    assert gpn(torch.ones(2, dtype=torch.half)).dtype == torch.half
    assert (gpn.double().a, gpn.b) == before
    assert "a=1.354" in repr(gpn)


def test_constants_are_of_the_parameters_at_construction() -> None:
    module = nn.PReLU(init=0.5)
    gpn = GPN(module)
    assert gpn.a == pytest.approx(1 / math.sqrt(0.5 * (1 + 0.25)), rel=1e-7)
    assert gpn.activation is module
    assert list(gpn.state_dict()) == ["activation.weight"]
    assert module.weight.dtype == torch.float32
    gpn(torch.linspace(-1, 1, 5)).sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("source", [*NAMES, nn.SiLU(), torch.tanh])
def test_modules_can_be_pickled_and_copied(source: str | nn.Module) -> None:
    gpn = GPN(source)
    h = torch.linspace(-2, 2, 9)
    for twin in (pickle.loads(pickle.dumps(gpn)), copy.deepcopy(gpn)):
        assert torch.equal(twin(h), gpn(h))
        assert repr(twin) == repr(gpn)


def test_modules_and_derivatives_compile_into_one_graph() -> None:
    modules = nn.ModuleList(GPN(name) for name in NAMES)

    def everything(h: Tensor) -> list[Tensor]:
        derivatives = [get(name).derivative(h.detach()) for name in NAMES]
        return [gpn(h) for gpn in modules] + derivatives

    h = torch.linspace(-3, 3, 12).view(3, 4).requires_grad_()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), everything(h), rtol=0, atol=0)
    gradients = [torch.autograd.grad(sum(f(h)[: len(NAMES)]).sum(), h)[0] for f in (compiled, everything)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_representation_shows_name_constants_and_root() -> None:
    assert repr(GPN("gelu")) == "GPN(gelu, a=1.491459227, b=-0.9096528019, root=lower)"
    assert "SiLU, a=1.623320258, b=0.0828853948, root=upper" in repr(GPN(nn.SiLU(), root="upper"))


def test_the_device_follows_the_input() -> None:
    assert GPN("mish").to("meta")(torch.empty(2, 3, device="meta")).device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_the_module_gives_the_same_numbers_on_a_gpu(name: str) -> None:
    h = torch.linspace(-12, 12, 481, dtype=torch.float64)
    torch.testing.assert_close(GPN(name).cuda()(h.cuda()).cpu(), GPN(name)(h), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("module", "plain", "share"), [(nn.ReLU, F.relu, True), (nn.SELU, F.selu, True), (nn.ELU, F.elu, False)]
)
def test_modules_that_work_in_place_are_as_good(
    module: type[nn.Module], plain: Callable[[Tensor], Tensor], share: bool
) -> None:
    found, expected = GPN(module(inplace=True), depth=20, separation=0.7), GPN(plain, depth=20, separation=0.7)
    assert found.tailoring.gain == pytest.approx(expected.tailoring.gain, rel=1e-12)
    assert found.tailoring.share == pytest.approx(expected.tailoring.share, rel=1e-12)
    assert (found.tailoring.share > 0) == share
    h = torch.linspace(-3, 3, 7)
    before = h.clone()
    torch.testing.assert_close(found(h), expected(h))
    torch.testing.assert_close(GPN(module(inplace=True))(h), GPN(plain)(h))
    assert torch.equal(h, before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_are_refused_in_one_sentence(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"GPN\(tanh\): takes tensors of a floating dtype, not torch\."):
        GPN("tanh")(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "tanh", "silu"])
def test_tailored_functions_have_the_digits_of_half_precision(name: str) -> None:
    """A small gain leaves little of φ beside a constant: in bfloat16 nothing of it would be left."""
    gpn = GPN(name, depth=200)
    h = torch.linspace(-4, 4, 1001).to(torch.bfloat16)
    exact = gpn(h.double())
    assert ((gpn(h).double() - exact).abs() <= 0.502 * torch.finfo(torch.bfloat16).eps * exact.abs() + 1e-5).all()
