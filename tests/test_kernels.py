"""The kernels of a fleet on a GPU: interpreted where there is none, compiled where there is one."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset
from bsnn_cli.gpn.activations import get, normalise
from bsnn_cli.gpn.kernel_form import ON_GPU
from bsnn_cli.gpn.tailored import tailored
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member, kernel_forms
from bsnn_cli.networks.rule_engine import RuleEngine
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.settings.config import ModelConfig
from tests.test_captured import CASES, graphs, make, make_on_gpu, noise, on_gpu, orders, train
from tests.test_fleet import make_member
from tests.test_native import COVERED
from tests.test_optimiser import OPTIMISERS_TRIED, THREE, is_noise

pytest.importorskip("triton", reason="Triton is not to be had on this system")

from bsnn_cli.networks import kernels
from bsnn_cli.networks.triton_engine import TritonEngine

COVERED_ON_GPU = [name for name in COVERED if get(name).kernel.family in ON_GPU]

MEMBERS = [
    make_member(name, gpn, seed, lr=0.1 / (1 + seed))
    for seed, (name, gpn) in enumerate((name, gpn) for name in COVERED_ON_GPU for gpn in (True, False))
]
"""All activations that there is code for."""


SMOOTH = [
    make_member(name, gpn, seed, lr=0.02)
    for seed in range(2)
    for name in ("tanh", "elu", "gelu")
    for gpn in (False, True)
]
"""Twelve without a jump in φ'. Rounding to TF32 moves some h across a jump, and a gradient then by several percent."""


@pytest.fixture
def data() -> Dataset:
    return noise()


def numpy_function(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the interpreter lacks of the GPU's mathematical library."""
    from triton.language import tensor
    from triton.runtime.interpreter import TensorHandle

    return lambda x: tensor(TensorHandle(function(x.handle.data), x.handle.dtype), x.type)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The kernels as NumPy executes them."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("here the kernels themselves are tested")
    functions = types.SimpleNamespace(tanh=numpy_function(np.tanh), expm1=numpy_function(np.expm1))
    monkeypatch.setattr(kernels, "libdevice", functions)
    return kernels


def with_kernels(model: ModelConfig, members: list[Member], **options: Any) -> Fleet:
    """Return a fleet on the CPU that computes as one on a GPU does, by interpreted kernels."""
    engine = functools.partial(TritonEngine, exact=True)
    return make(model, members, dtype=torch.float32, engine=engine, capture=True, **options)


def largest_difference(one: Fleet, other: Fleet) -> float:
    """Over all tensors, relative to the largest entry of each."""
    differences = []
    for name, tensor in one.tensors.items():
        if tensor.is_floating_point() and not name.startswith("orthogonality"):
            expected = tensor.cpu().double()
            difference = (other.tensors[name].cpu().double() - expected).abs().max()
            differences.append(float(difference / expected.abs().max().clamp(min=1e-3)))
    return max(differences)


def trained(fleet: Fleet, data: Dataset, batches: Sequence[Tensor]) -> Fleet:
    for _ in fleet.updates(data, batches):
        pass
    return fleet


def assert_as_exact_as_the_library(ours: Fleet, single: Fleet, double: Fleet, luck: float = 4) -> None:
    """Kernels may differ from float64 as much as single precision differs from it otherwise, but for luck."""
    assert isinstance(ours.engine, TritonEngine), "the kernels were given up"
    difference = largest_difference(double, ours)
    assert 0 < difference < luck * largest_difference(double, single) + 1e-6


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("norm", "weights"), CASES)
def test_steps_are_those_of_a_fleet(
    norm: str,
    weights: str,
    data: Dataset,
) -> None:
    """A whole batch and a short one, blocks that do not divide the width, and what is measured afterwards."""
    model = ModelConfig(depth=2, width=20, norm=norm, weights=weights)
    members = [MEMBERS[0], MEMBERS[3], MEMBERS[10], MEMBERS[12]]
    batches = orders(4, 0)[-2:]
    ours = trained(with_kernels(model, members), data, batches)
    double = trained(make(model, members), data, batches)
    assert_as_exact_as_the_library(ours, trained(make(model, members, dtype=torch.float32), data, batches), double)
    images = data.standardise(data.test.images, torch.float64)
    error = (ours.logits(images.float()) - double.logits(images)).abs().max() / double.logits(images).abs().max()
    assert error < (1e-2 if norm == "batch" else 1e-5), "rows have not been measured for an evaluation"
    torch.testing.assert_close(
        ours.orthogonality_error(), double.orthogonality_error().float(), rtol=1e-2, atol=2e-6, msg=str
    )


@pytest.mark.usefixtures("interpreted")
def test_every_activation_has_its_code(data: Dataset) -> None:
    model, batches = ModelConfig(depth=2, width=16), orders(len(MEMBERS), 0)[:1]
    ours = trained(with_kernels(model, MEMBERS), data, batches)
    single = trained(make(model, MEMBERS, dtype=torch.float32), data, batches)
    assert_as_exact_as_the_library(ours, single, trained(make(model, MEMBERS), data, batches))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("blocks", [(16, False), (32, False), (64, True)])
def test_a_product_may_be_divided_in_several_ways(
    blocks: tuple[int, bool],
    data: Dataset,
) -> None:
    model, batches = ModelConfig(depth=2, width=70), orders(1, 0)[:1]
    ours = with_kernels(model, MEMBERS[:1])
    assert isinstance(ours.engine, TritonEngine)
    ours.engine.kernels.blocks_forward, ours.engine.kernels.blocks_backward = (
        kernels.Blocks(blocks[0]),
        kernels.Blocks(*blocks),
    )
    trained(ours, data, batches)
    single = trained(make(model, MEMBERS[:1], dtype=torch.float32), data, batches)
    assert_as_exact_as_the_library(ours, single, trained(make(model, MEMBERS[:1]), data, batches))


@pytest.mark.usefixtures("interpreted")
def test_a_dead_member_stays_as_it_is(data: Dataset) -> None:
    model = ModelConfig(depth=2, width=20)
    members = [make_member("tanh", True), make_member("elu", True, seed=1)]
    fleet = with_kernels(model, members)
    fleet.tensors["output.weight"][1] = torch.nan
    before = {name: tensor.clone() for name, tensor in fleet.member_state(1).items()}
    trained(fleet, data, orders(2, 0)[:2])
    assert fleet.alive.tolist() == [True, False]
    for name in ("hidden.weight", "momentum.hidden.weight", "steps"):
        assert torch.equal(fleet.member_state(1)[name], before[name])
    lone = trained(with_kernels(model, members[:1]), data, [batch[:1] for batch in orders(2, 0)[:2]])
    for name, tensor in lone.member_state(0).items():
        torch.testing.assert_close(fleet.member_state(0)[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def product(module: types.ModuleType, x: Tensor, V: Tensor, exact: bool) -> Tensor:
    """xVᵀ by the kernels, of (K, B, n) and (K, n, n)."""
    own = module.Kernels([make_member("identity", False)] * len(x), unit_rows=False, exact=exact, like=V)
    h, above, one = torch.empty_like(x), torch.empty_like(x), torch.ones_like(x[:, :1])
    own.forward(x, V, one, one, h, above, None)
    return h


def errors(module: types.ModuleType, device: str, exact: bool) -> tuple[float, float]:
    """Relative error of products of width 300, and by how much they are too long or too short."""
    generator = torch.Generator().manual_seed(0)
    x, V = torch.randn(2, 64, 300, generator=generator), torch.randn(2, 300, 300, generator=generator)
    h = product(module, x.to(device), V.to(device), exact).cpu().double()
    expected = x.double() @ V.double().mT
    along = (h * expected).sum() / expected.square().sum() - 1
    return float((h - expected).norm() / expected.norm()), abs(float(along))


def test_products_have_the_digits_that_were_asked_for(interpreted: types.ModuleType) -> None:
    """Those of TF32 are rounded: cut off, 400 of them, up and down, would shorten signals by a quarter."""
    error, bias = errors(interpreted, "cpu", exact=True)
    assert error < 3e-7
    error, bias = errors(interpreted, "cpu", exact=False)
    assert 1e-4 < error < 4e-4
    assert bias < 2e-5


@pytest.mark.parametrize("kernel", ["forward", "backward", "update"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_where_a_kernel_cannot_be_made_the_fleet_goes_on_without_them(
    norm: str, kernel: str, data: Dataset, interpreted: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a short batch after steps that have left it to kernels to measure the rows of V."""
    model, members = ModelConfig(depth=2, width=20, norm=norm), MEMBERS[:2]
    plain, ours = make(model, members, dtype=torch.float32), with_kernels(model, members)
    whole, short = orders(2, 0)[:1], orders(2, 0)[-1:]
    trained(ours, data, whole)
    assert isinstance(ours.engine, TritonEngine)
    assert ours.captured is not None

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(interpreted.Kernels, kernel, failing)
    ours.captured.graphs[6] = "of steps by the kernels"  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="no compiler here"):
        trained(ours, data, short)
    assert isinstance(ours.engine, TorchEngine)
    assert not graphs(ours)
    trained(ours, data, whole)
    for batches in (whole, short, whole):
        trained(plain, data, batches)
    assert largest_difference(plain, ours) < (1e-3 if norm == "batch" else 2e-6)


@pytest.mark.usefixtures("interpreted")
def test_a_batch_may_be_too_large() -> None:
    ours = with_kernels(ModelConfig(depth=2, width=20), MEMBERS[:1])
    with pytest.warns(UserWarning, match="batches of up to 128, and this one has 129"):
        ours.step(torch.zeros(1, 129, 7), torch.zeros(1, 129, dtype=torch.int64))
    assert isinstance(ours.engine, TorchEngine)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["tanh", "lrelu", "elu", "selu", "gelu", "silu"])
def test_depth_aware_activations_have_their_code(name: str, data: Dataset) -> None:
    activation = tailored(get(name), 0.3, 200)
    solution = normalise(activation)
    members = [Member(activation=activation, a=solution.a, b=solution.b, seed=0, lr=0.05)]
    model, batches = ModelConfig(depth=2, width=16), orders(1, 0)[:1]
    single, double = (
        trained(make(model, members, dtype=dtype), data, batches) for dtype in (torch.float32, torch.float64)
    )
    assert_as_exact_as_the_library(trained(with_kernels(model, members), data, batches), single, double)


def test_what_there_is_no_code_for_is_refused() -> None:
    assert len(kernel_forms(MEMBERS)) == len(MEMBERS)
    with pytest.raises(ValueError, match="no code for gelu_exact"):
        kernel_forms([*MEMBERS, make_member("gelu_exact", True)])


def test_a_gpu_has_no_code_for_some_activations_that_a_cpu_has_it_for() -> None:
    with pytest.raises(ValueError, match="no code for mish"):
        with_kernels(ModelConfig(depth=2, width=20), [make_member("mish", True)])


@on_gpu
@pytest.mark.parametrize(
    ("norm", "weights", "width"),
    [*((norm, weights, 500 if norm == "none" else 40) for norm, weights in CASES), ("none", "unit_rows", 100)],
)
def test_steps_on_a_gpu_are_those_of_a_fleet(norm: str, weights: str, width: int, data: Dataset) -> None:
    """Of widths at which products are divided in all ways, and in both kinds of steps: launched and replayed."""
    members = [
        Member(activation=one.activation, a=one.a, b=one.b, seed=one.seed, lr=1e-3)
        for one in MEMBERS[: 2 if width == 100 else 12]
    ]
    model = ModelConfig(depth=4, width=width, norm=norm, weights=weights)
    double, single = (make(model, members, dtype=dtype) for dtype in (torch.float64, torch.float32))
    ours = make_on_gpu(model, members, dtype=torch.float32)
    for fleet in (double, single, ours):
        train(fleet, data, 3)
    assert graphs(ours) == {6}
    assert_as_exact_as_the_library(ours, single, double, luck=10)  # 12 steps


@on_gpu
@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("batch", "norm", "exact"), [(64, "none", True), (64, "batch", True), (128, "none", False)])
def test_steps_of_the_papers_size_on_a_gpu(batch: int, norm: str, exact: bool) -> None:
    """Twelve networks of 500 units, batches of 64 and more: other divisions of products than small batches have."""
    model, members = ModelConfig(depth=3, width=500, norm=norm), MEMBERS[:12] if exact else SMOOTH
    torch.set_float32_matmul_precision("highest" if exact else "high")
    double, single = (make(model, members, dtype=dtype) for dtype in (torch.float64, torch.float32))
    ours = make_on_gpu(model, members, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.randn(12, batch, 7, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (12, batch), generator=generator)
        double.step(x, y)
        single.step(x.float(), y)
        ours.step(x.float().cuda(), y.cuda())
    if exact:
        assert_as_exact_as_the_library(ours, single, double)
    else:
        assert 1e-5 < largest_difference(double, ours) < 2e-3


@pytest.fixture
def precision() -> Iterator[None]:
    """Put the precision of products back to what it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@on_gpu
def test_products_on_a_gpu_are_more_exact_than_those_of_its_library() -> None:
    generator = torch.Generator().manual_seed(0)
    x, V = torch.randn(2, 64, 300, generator=generator), torch.randn(2, 300, 300, generator=generator)
    expected = x.double() @ V.double().mT
    library = float(((x.cuda() @ V.cuda().mT).cpu().double() - expected).norm() / expected.norm())
    error, bias = errors(kernels, "cuda", exact=True)
    assert error < library
    assert bias < 3e-7
    error, bias = errors(kernels, "cuda", exact=False)
    assert 1e-4 < error < 4e-4
    assert bias < 2e-5


@on_gpu
def test_what_no_kernel_covers_is_trained_by_the_library(data: Dataset) -> None:
    members = [make_member("mish", True), make_member("tanh", True, seed=1)]
    model = ModelConfig(depth=4, width=100)
    plain, ours = make(model, members), make_on_gpu(model, members, dtype=torch.float32)
    assert isinstance(ours.engine, TorchEngine)
    train(ours, data, 3)
    train(plain, data, 3)
    assert largest_difference(plain, ours) < 1e-4


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("weights", "norm", "name"),
    [
        ("unit_rows", "none", "sgd, cosine"),
        ("free", "batch", "adamw, cosine"),
        ("free", "none", "sgd, step"),
        ("orthogonal", "batch", "nesterov, step"),
    ],
)
def test_kernels_of_a_gpu_train_as_the_library_does(weights: str, norm: str, name: str) -> None:
    """As NumPy executes them: schedule, decay and limits around them, whole batches and short ones."""
    model, data, optimiser = ModelConfig(depth=2, width=20, weights=weights, norm=norm), noise(), OPTIMISERS_TRIED[name]
    ours = with_kernels(model, THREE, optimiser=optimiser)
    double = make(model, THREE, optimiser=optimiser)
    inner = ours.engine.inner if isinstance(ours.engine, RuleEngine) else ours.engine
    assert isinstance(inner, TritonEngine)
    for one in (ours, double):
        train(one, data, epochs=1)
    for key, tensor in double.tensors.items():
        if tensor.is_floating_point() and not key.startswith("orthogonality") and not is_noise(key, double):
            error = (ours.tensors[key].double() - tensor).abs().max() / tensor.abs().max().clamp(min=1)
            assert error < (1e-3 if norm == "batch" else 1e-5), f"{key}: {error:.1e}"


@on_gpu
@pytest.mark.parametrize("name", OPTIMISERS_TRIED)
@pytest.mark.parametrize("weights", ["unit_rows", "free", "orthogonal"])
def test_compiled_kernels_of_a_gpu_train_as_a_cpu_does(weights: str, name: str) -> None:
    """In single precision, with 1e-4 for its rounding; with AdamW, small gradients make steps as large as others do."""
    model, optimiser = ModelConfig(depth=3, width=40, weights=weights), OPTIMISERS_TRIED[name]
    plain = make(model, THREE, optimiser=optimiser)
    ours = make_on_gpu(model, THREE, optimiser=optimiser, dtype=torch.float32)
    inner = ours.engine.inner if isinstance(ours.engine, RuleEngine) else ours.engine
    assert isinstance(inner, TritonEngine)
    torch.testing.assert_close(train(ours, noise(), 3).double(), train(plain, noise(), 3), rtol=1e-4, atol=1e-4)
