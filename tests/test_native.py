"""The compiled kernels of a CPU, beside PyTorch's operations; `test_fleet` holds both to autograd and dense algebra."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bsnn_cli.gpn.activations import ACTIVATIONS, get, normalise
from bsnn_cli.gpn.kernel_form import Family
from bsnn_cli.gpn.tailored import tailored
from bsnn_cli.networks import native, workers
from bsnn_cli.networks.building import reference_trainer
from bsnn_cli.networks.c_engine import CEngine
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.choices import TAILORED_BY
from bsnn_cli.settings.config import ModelConfig
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS
from tests.test_fleet import CLASSES, INPUTS, make_fleet, make_member

pytestmark = pytest.mark.skipif(shutil.which(native.compiler()) is None, reason="no C compiler on this machine")

COVERED = sorted((name for name in ACTIVATIONS if get(name).kernel is not None), key=lambda name: get(name).kernel[0])
MIXED = [
    make_member(name, gpn, seed=seed) for seed, (name, gpn) in enumerate(itertools.product(COVERED, (True, False)))
]
"""All named activations that there is code for."""

MODELS = list(itertools.product(("none", "batch"), ("unit_rows", "free", "orthogonal")))


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores share out small networks too."""
    monkeypatch.setattr(workers, "SHARED_WEIGHTS", 0)


def steps(fleet: Fleet, size: int, count: int = 3) -> Tensor:
    """Train on noise; losses of each step and member."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(count):
        x = torch.randn(len(fleet.members), size, INPUTS, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (len(fleet.members), size), generator=generator)
        losses.append(fleet.step(x.to(fleet.dtype), y))
    return torch.stack(losses)


def assert_close(ours: Fleet, theirs: Fleet, tolerance: float) -> None:
    for name, expected in theirs.tensors.items():
        difference = (ours.tensors[name].double() - expected.double()).abs().max()
        assert difference <= tolerance * expected.double().abs().max().clamp(min=1e-3), f"{name}: {difference:.1e}"


@pytest.mark.parametrize(("norm", "weights"), MODELS)
@pytest.mark.parametrize(("width", "batch"), [(3, 2), (64, 64), (65, 7), (100, 130), (131, 300)])
def test_steps_are_those_of_a_fleet(norm: str, weights: str, width: int, batch: int) -> None:
    """Widths and batches that fill panels and blocks, and that do not; a member alone on its core, and one shared."""
    model = ModelConfig(depth=3, width=width, norm=norm, weights=weights)
    members = MIXED[:3]
    with intra_op_threads(2):
        ours, theirs = (make_fleet(model, members, engine=engine) for engine in (CEngine, TorchEngine))
    torch.testing.assert_close(steps(ours, batch), steps(theirs, batch), rtol=1e-11, atol=1e-12)
    assert_close(ours, theirs, 1e-10)
    w = ours._signals_of(batch)
    gradients = torch.linalg.matrix_norm(w.d.mT @ w.x[:-1])
    assert (gradients <= w.bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_activation_has_its_code(norm: str) -> None:
    model = ModelConfig(depth=3, width=20, norm=norm)
    ours, theirs = (make_fleet(model, MIXED, engine=engine) for engine in (CEngine, TorchEngine))
    torch.testing.assert_close(steps(ours, 16), steps(theirs, 16), rtol=1e-10, atol=1e-12)
    assert_close(ours, theirs, 1e-9)


EXACT_SLOPES = {
    "tanh": lambda h: torch.cosh(h) ** -2,
    "sigmoid": lambda h: torch.sigmoid(h) * torch.sigmoid(-h),
    "mish": lambda h: torch.tanh(softplus(h)) + h * torch.sigmoid(h) * torch.cosh(softplus(h)) ** -2,
}
"""Formulas for slopes where PyTorch subtracts numbers that are nearly equal, such as 1 − φ²."""


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_and_slopes_are_exact_everywhere(name: str, dtype: torch.dtype) -> None:
    """Preactivations from 1e-30 to 90 of both signs, and 0. The network has one layer, which passes them on."""
    member = Member(activation=make_member(name, False).activation, a=1, b=0, seed=0, lr=0)
    magnitudes = torch.logspace(-30, 1.954, 2000, dtype=torch.float64)
    h = torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes]).to(dtype).view(1, -1, 1)
    fleet = make_fleet(ModelConfig(depth=1, width=1, weights="free"), [member], engine=CEngine, dtype=dtype)
    fleet.tensors["hidden.weight"].fill_(1)
    w = fleet._signals_of(h.shape[1])
    w.x[0].copy_(h)
    fleet.engine.forward(w)
    fleet.engine.backward(w, torch.ones_like(h))
    exact, rounding = h.double(), torch.finfo(dtype).eps
    value, slope = member.activation.phi(exact), member.activation.derivative(exact)
    if name in EXACT_SLOPES:
        slope = EXACT_SLOPES[name](exact)
    assert torch.equal(w.h[0], h)
    assert member.activation.kernel is not None
    family, p, *_ = member.activation.kernel
    # The rounding of ph is one of σ(ph), and the slopes of swish and Mish pass through 0.
    digits = 4 * rounding * (1 + (p * exact).abs() if family is Family.SWISH else 1)
    smallest = 1e-36  # less than that has not all its digits in single precision
    size = slope.abs().where(exact.abs() > 5, 1) if family in (Family.SWISH, Family.MISH) else slope.abs()
    assert ((w.x[1] - value).abs() <= digits * value.abs() + smallest).all()
    assert ((w.d[0] - slope).abs() <= digits * size + smallest).all()


@pytest.mark.parametrize(("norm", "weights"), [("none", "unit_rows"), ("batch", "unit_rows"), ("none", "orthogonal")])
@pytest.mark.parametrize("members", [1, 3])
def test_no_digit_depends_on_the_number_of_threads(norm: str, weights: str, members: int) -> None:
    model = ModelConfig(depth=6, width=150, norm=norm, weights=weights)
    fleets = []
    for threads in (1, 2, 3):
        with intra_op_threads(threads):
            fleets.append(make_fleet(model, MIXED[:members], engine=CEngine, dtype=torch.float32))
    first, *others = ({"loss": steps(fleet, 32)} | fleet.tensors for fleet in fleets)
    for other, (name, tensor) in itertools.product(others, first.items()):
        assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nobody_waits_for_a_core_that_is_taken_away(norm: str) -> None:
    """One that has claimed a panel of every layer and never comes back; in the end it does, and changes nothing."""
    model = ModelConfig(depth=5, width=200, norm=norm)
    with intra_op_threads(2):
        fleet = make_fleet(model, MIXED[:1], engine=CEngine)
    engine = fleet.engine
    assert isinstance(engine, CEngine)
    w = fleet._signals_of(10)
    w.x[0].normal_()
    g = torch.randn_like(w.x[0])
    engine.forward(w)
    engine.backward(w, g)
    expected = [tensor.clone() for tensor in (w.x, w.h, w.d, w.g)]
    for tensor in (w.x[1:], w.h, w.d, w.g):
        tensor.zero_()
    memory = w.h.new_empty(engine._size("size_of_memory", engine._size("stride_of_signals", 10)))
    for code, layers in ((engine._code.forward, model.depth), (engine._code.backward, model.depth + 1)):
        claims = torch.zeros_like(engine._claims).view(model.depth + 1, -1)[:layers]
        claims[:, 1] = 1
        for part in (0, 1):
            code(
                ctypes.byref(engine._describe(w)[0]), ctypes.c_int64(part), ctypes.c_int64(2),
                ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(claims.data_ptr()),
            )  # fmt: skip
            assert (claims == 2).all()
    for tensor, value in zip((w.x, w.h, w.d, w.g), expected, strict=True):
        assert torch.equal(tensor, value)


def test_a_dead_member_stays_as_it_is() -> None:
    fleet = make_fleet(ModelConfig(depth=3, width=70), MIXED[:3], engine=CEngine)
    fleet.alive[1] = False
    before = {name: tensor.clone() for name, tensor in fleet.member_state(1).items()}
    start = fleet.tensors["hidden.weight"].clone()
    steps(fleet, 16)
    assert all(torch.equal(fleet.member_state(1)[name], tensor) for name, tensor in before.items())
    assert not torch.equal(fleet.tensors["hidden.weight"][0], start[0])


@pytest.mark.parametrize(("norm", "weights"), MODELS)
def test_single_precision_is_as_exact_as_the_library(norm: str, weights: str) -> None:
    model = ModelConfig(depth=10, width=100, norm=norm, weights=weights)
    # Where a derivative jumps, the last digit of a preactivation near 0 may decide on its sign.
    smooth = [member for member in MIXED if member.activation.name not in ("relu", "lrelu", "selu")]
    states = [make_fleet(model, [member]).member_state(0) for member in smooth]
    double, single, ours = (
        make_fleet(
            model,
            smooth,
            engine=engine,
            dtype=dtype,
            states=[
                {name: one.to(dtype) if one.is_floating_point() else one for name, one in s.items()} for s in states
            ],
        )
        for engine, dtype in (
            (TorchEngine, torch.float64),
            (TorchEngine, torch.float32),
            (CEngine, torch.float32),
        )
    )
    for fleet in (double, single, ours):
        steps(fleet, 64)
    for name in ("hidden.weight", "momentum.hidden.weight", "input.weight", "output.weight"):
        expected = double.tensors[name]
        errors = [(fleet.tensors[name].double() - expected).norm() for fleet in (single, ours)]
        assert 0 < errors[1] < 2 * errors[0] + 1e-7 * expected.norm(), name


@pytest.mark.filterwarnings("ignore:activation .*tailored by its")
@pytest.mark.parametrize("name", [name for name in COVERED if name in TAILORED_BY])
@pytest.mark.parametrize("parameter", ["gain", "share"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_depth_aware_activations_have_their_code(name: str, parameter: str, norm: str) -> None:
    if parameter == "gain" and NAMED_ACTIVATIONS[name].corner:
        pytest.skip("no gain flattens a corner")
    activation = tailored(get(name), 0.3, 200, parameter)
    solution = normalise(activation)
    members = [Member(activation=activation, a=solution.a, b=solution.b, seed=seed, lr=0.05) for seed in range(2)]
    model = ModelConfig(depth=4, width=20, norm=norm)
    ours, theirs = (make_fleet(model, members, engine=engine) for engine in (None, TorchEngine))
    assert isinstance(ours.engine, CEngine)
    torch.testing.assert_close(steps(ours, 16), steps(theirs, 16), rtol=1e-10, atol=1e-12)
    assert_close(ours, theirs, 1e-9)


def test_what_there_is_no_code_for_is_left_to_pytorch() -> None:
    members = [make_member("gelu_exact", True), make_member("tanh", True)]
    fleet = make_fleet(ModelConfig(depth=2, width=5), members, engine=None)
    assert isinstance(fleet.engine, TorchEngine)
    assert fleet.slow_because == "the fast kernels have no code for the activation gelu_exact"
    namesake = dataclasses.replace(get("gelu"), phi=torch.tanh, kernel=None)
    fleet = make_fleet(ModelConfig(depth=2, width=5), [dataclasses.replace(members[1], activation=namesake)])
    assert isinstance(fleet.engine, TorchEngine)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one; what is loaded already is forgotten."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


@pytest.mark.parametrize("compiler", ["there-is-no-such-command", "false", sys.executable + " -c raise(SystemExit(3))"])
def test_without_a_compiler_there_is_a_reason_and_a_fleet(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    fleet = make_fleet(ModelConfig(depth=2, width=5), MIXED[:1], engine=None)
    assert isinstance(fleet.engine, TorchEngine)
    assert str(fleet.slow_because).startswith("the C kernels cannot be compiled (")
    assert steps(fleet, 4).isfinite().all()
    assert not list(cache.iterdir())


def test_what_has_been_compiled_is_used_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    [made] = cache.iterdir()
    monkeypatch.setattr(subprocess, "run", None)
    native.library.cache_clear()
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    monkeypatch.setattr(native, "processor", lambda: "another one")
    native.library.cache_clear()
    with pytest.raises(TypeError):
        native.library(torch.float32)
    assert list(cache.iterdir()) == [made]


def test_a_damaged_file_is_compiled_again(cache: Path) -> None:
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    [made] = cache.iterdir()
    made.unlink()  # not truncated: it is loaded here
    made.touch()
    native.library.cache_clear()
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    assert made.stat().st_size > 0


def test_a_column_that_is_no_number_is_seen() -> None:
    fleet = make_fleet(ModelConfig(depth=2, width=9, weights="orthogonal"), MIXED[:1], engine=CEngine)
    steps(fleet, 4, count=1)
    fleet.tensors["momentum.hidden.weight"][0, 1, 3, 2] = torch.nan
    w = fleet._signals_of(4)
    assert isinstance(fleet.engine, CEngine)
    assert fleet.engine.gradient_of_orthogonal(w, 0, slice(0, 2)).isnan().tolist() == [False, True]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    (cache.parent / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(cache.parent / "temporary"))
    assert isinstance(native.library(torch.float32), ctypes.CDLL)
    assert not list((cache.parent / "temporary").iterdir())


def test_a_fleet_of_few_weights_is_left_to_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_WEIGHTS", 500)
    counts = []
    with intra_op_threads(2):
        for width in (10, 20):
            fleet = make_fleet(ModelConfig(depth=2, width=width), MIXED[:1], engine=CEngine)
            assert isinstance(fleet.engine, CEngine)
            counts.append(fleet.engine.workers.count)
    assert counts == [1, 2]


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize(("norm", "weights"), MODELS)
def test_an_evaluation_is_that_of_a_fleet(norm: str, weights: str, depth: int) -> None:
    """More images than a core takes at once, after steps that have changed statistics and lengths of rows."""
    model = ModelConfig(depth=depth, width=70, norm=norm, weights=weights)
    inputs = torch.randn(601, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with intra_op_threads(2):
        ours, theirs = (make_fleet(model, MIXED[:3], engine=engine) for engine in (CEngine, TorchEngine))
        for fleet in (ours, theirs):
            steps(fleet, 16)
        torch.testing.assert_close(ours.logits(inputs), theirs.logits(inputs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("images", [1, 2, 7])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_cores_share_an_evaluation(images: int, norm: str) -> None:
    inputs = torch.randn(images, INPUTS, generator=torch.Generator().manual_seed(0))
    logits, errors = [], []
    for threads in (1, 2):
        with intra_op_threads(threads):
            fleet = make_fleet(ModelConfig(depth=3, width=9, norm=norm), MIXED[:3], engine=CEngine, dtype=torch.float32)
            assert (fleet.threads, fleet.engine.workers.count) == (1, threads)
            logits.append(fleet.logits(inputs))
            errors.append(fleet.orthogonality_error())
            assert torch.get_num_threads() == threads
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*errors, rtol=1e-6, atol=1e-7)


def test_small_networks_are_left_to_one_thread_by_every_way_of_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_WEIGHTS", 500)
    threads = []
    with intra_op_threads(2):
        for width in (10, 20):
            model = ModelConfig(depth=2, width=width)
            reference = reference_trainer(model, MIXED[:1], inputs=INPUTS, classes=CLASSES)
            threads.append((make_fleet(model, MIXED[:1], engine=TorchEngine).threads, reference.threads))
    assert threads == [(1, 1), (2, 2)]
