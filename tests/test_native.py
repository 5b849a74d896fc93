"""The compiled kernels of a CPU, beside PyTorch's operations; `test_fleet` holds both to autograd and dense algebra."""

from __future__ import annotations

import ctypes
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

from bsnn_cli.networks import compiled, native
from bsnn_cli.networks.compiled import CompiledFleet
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import FAMILIES, Family, Member
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ModelConfig
from tests.test_fleet import CLASSES, INPUTS, make_fleet, make_member

pytestmark = pytest.mark.skipif(shutil.which(native.compiler()) is None, reason="no C compiler on this machine")

MIXED = [
    make_member(name, gpn, seed=seed) for seed, (name, gpn) in enumerate(itertools.product(FAMILIES, (True, False)))
]
"""All activations that there is code for."""

MODELS = list(itertools.product(("none", "batch"), ("unit_rows", "free", "orthogonal")))


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores share out small networks too."""
    monkeypatch.setattr(compiled, "SHARED_WEIGHTS", 0)


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
        ours, theirs = (make_fleet(model, members, kind=kind) for kind in (CompiledFleet, Fleet))
    torch.testing.assert_close(steps(ours, batch), steps(theirs, batch), rtol=1e-11, atol=1e-12)
    assert_close(ours, theirs, 1e-10)
    w, _ = ours._signals_of(batch)
    gradients = torch.linalg.matrix_norm(w.d.mT @ w.x[:-1])
    assert (gradients <= w.bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_activation_has_its_code(norm: str) -> None:
    model = ModelConfig(depth=3, width=20, norm=norm)
    ours, theirs = (make_fleet(model, MIXED, kind=kind) for kind in (CompiledFleet, Fleet))
    torch.testing.assert_close(steps(ours, 16), steps(theirs, 16), rtol=1e-10, atol=1e-12)
    assert_close(ours, theirs, 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_and_slopes_are_exact_everywhere(name: str, dtype: torch.dtype) -> None:
    """Preactivations from 1e-30 to 90 of both signs, and 0. The network has one layer, which passes them on."""
    member = Member(activation=make_member(name, False).activation, a=1, b=0, seed=0, lr=0)
    magnitudes = torch.logspace(-30, 1.954, 2000, dtype=torch.float64)
    h = torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes]).to(dtype).view(1, -1, 1)
    fleet = make_fleet(ModelConfig(depth=1, width=1, weights="free"), [member], kind=CompiledFleet, dtype=dtype)
    assert isinstance(fleet, CompiledFleet)
    assert fleet._native is not None
    fleet.tensors["hidden.weight"].fill_(1)
    w, _ = fleet._signals_of(h.shape[1])
    w.x[0].copy_(h)
    fleet._native.rise(w)
    fleet._native.fall(w, torch.ones_like(h))
    exact, rounding = h.double(), torch.finfo(dtype).eps
    value, slope = member.activation.phi(exact), member.activation.derivative(exact)
    if name == "tanh":
        slope = torch.cosh(exact) ** -2  # where 1 − φ² has no digits left
    assert torch.equal(w.h[0], h)
    family, p, _ = FAMILIES[name]
    # The rounding of ph is one of σ(ph), and the slope of a swish passes through 0.
    digits = 4 * rounding * (1 + (p * exact).abs() if family is Family.SWISH else 1)
    smallest = 1e-36  # less than that has not all its digits in single precision
    size = slope.abs().where(exact.abs() > 5, 1) if family is Family.SWISH else slope.abs()
    assert ((w.x[1] - value).abs() <= digits * value.abs() + smallest).all()
    assert ((w.d[0] - slope).abs() <= digits * size + smallest).all()


@pytest.mark.parametrize(("norm", "weights"), [("none", "unit_rows"), ("batch", "unit_rows"), ("none", "orthogonal")])
@pytest.mark.parametrize("members", [1, 3])
def test_no_digit_depends_on_the_number_of_threads(norm: str, weights: str, members: int) -> None:
    model = ModelConfig(depth=6, width=150, norm=norm, weights=weights)
    fleets = []
    for threads in (1, 2, 3):
        with intra_op_threads(threads):
            fleets.append(make_fleet(model, MIXED[:members], kind=CompiledFleet, dtype=torch.float32))
    first, *others = ({"loss": steps(fleet, 32)} | fleet.tensors for fleet in fleets)
    for other, (name, tensor) in itertools.product(others, first.items()):
        assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nobody_waits_for_a_core_that_is_taken_away(norm: str) -> None:
    """One that has claimed a panel of every layer and never comes back; in the end it does, and changes nothing."""
    model = ModelConfig(depth=5, width=200, norm=norm)
    with intra_op_threads(2):
        fleet = make_fleet(model, MIXED[:1], kind=CompiledFleet)
    assert isinstance(fleet, CompiledFleet)
    kernels = fleet._native
    assert kernels is not None
    w, _ = fleet._signals_of(10)
    w.x[0].normal_()
    g = torch.randn_like(w.x[0])
    kernels.rise(w)
    kernels.fall(w, g)
    expected = [tensor.clone() for tensor in (w.x, w.h, w.d, w.g)]
    for tensor in (w.x[1:], w.h, w.d, w.g):
        tensor.zero_()
    memory = w.h.new_empty(kernels._room("room", 10))
    for code in (kernels._code.rise, kernels._code.fall):
        claims = torch.zeros_like(kernels._claims)
        claims.view(model.depth + 1, -1)[:, 1] = 1
        for part in (0, 1):
            code(
                ctypes.byref(kernels._of(w)[0]), ctypes.c_int64(part), ctypes.c_int64(2),
                ctypes.c_void_p(memory.data_ptr()), ctypes.c_void_p(claims.data_ptr()),
            )  # fmt: skip
            assert (claims == 2).all()
    for tensor, value in zip((w.x, w.h, w.d, w.g), expected, strict=True):
        assert torch.equal(tensor, value)


def test_a_dead_member_stays_as_it_is() -> None:
    fleet = make_fleet(ModelConfig(depth=3, width=70), MIXED[:3], kind=CompiledFleet)
    fleet.alive[1] = False
    before = {name: tensor.clone() for name, tensor in fleet.member_state(1).items()}
    start = fleet.tensors["hidden.weight"].clone()
    steps(fleet, 16)
    assert all(torch.equal(fleet.member_state(1)[name], tensor) for name, tensor in before.items())
    assert not torch.equal(fleet.tensors["hidden.weight"][0], start[0])


@pytest.mark.parametrize(("norm", "weights"), MODELS)
def test_single_precision_is_as_exact_as_the_library(norm: str, weights: str) -> None:
    model = ModelConfig(depth=10, width=100, norm=norm, weights=weights)
    smooth = [member for member in MIXED if member.activation.name not in ("relu", "lrelu")]
    states = [make_fleet(model, [member]).member_state(0) for member in smooth]
    double, single, ours = (
        make_fleet(
            model,
            smooth,
            kind=kind,
            dtype=dtype,
            states=[
                {name: one.to(dtype) if one.is_floating_point() else one for name, one in s.items()} for s in states
            ],
        )
        for kind, dtype in ((Fleet, torch.float64), (Fleet, torch.float32), (CompiledFleet, torch.float32))
    )
    for fleet in (double, single, ours):
        steps(fleet, 64)
    for name in ("hidden.weight", "momentum.hidden.weight", "input.weight", "output.weight"):
        expected = double.tensors[name]
        errors = [(fleet.tensors[name].double() - expected).norm() for fleet in (single, ours)]
        assert 0 < errors[1] < 2 * errors[0] + 1e-7 * expected.norm(), name


def test_what_there_is_no_code_for_is_left_to_pytorch() -> None:
    fleet = make_fleet(ModelConfig(depth=2, width=5), [make_member("mish", True)], kind=CompiledFleet)
    assert isinstance(fleet, CompiledFleet)
    assert fleet._native is None
    expected = make_fleet(ModelConfig(depth=2, width=5), [make_member("mish", True)])
    assert torch.equal(steps(fleet, 4), steps(expected, 4))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one; what is loaded already is forgotten."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


@pytest.mark.parametrize("compiler", ["there-is-no-such-command", "false", sys.executable + " -c raise(SystemExit(3))"])
def test_without_a_compiler_there_is_a_warning_and_a_fleet(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match="which is slower"):
        fleet = make_fleet(ModelConfig(depth=2, width=5), MIXED[:1], kind=CompiledFleet)
    make_fleet(ModelConfig(depth=2, width=5), MIXED[:1], kind=CompiledFleet)  # warned once
    assert torch.equal(steps(fleet, 4), steps(make_fleet(ModelConfig(depth=2, width=5), MIXED[:1]), 4))
    assert not list(cache.iterdir())


def test_what_has_been_compiled_is_used_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library(torch.float32) is not None
    [made] = cache.iterdir()
    monkeypatch.setattr(subprocess, "run", None)
    native.library.cache_clear()
    assert native.library(torch.float32) is not None
    monkeypatch.setattr(native, "processor", lambda: "another one")
    native.library.cache_clear()
    with pytest.raises(TypeError):
        native.library(torch.float32)
    assert list(cache.iterdir()) == [made]


def test_a_damaged_file_is_compiled_again(cache: Path) -> None:
    assert native.library(torch.float32) is not None
    [made] = cache.iterdir()
    made.unlink()  # not truncated: it is loaded here
    made.touch()
    native.library.cache_clear()
    assert native.library(torch.float32) is not None
    assert made.stat().st_size > 0


def test_a_column_that_is_no_number_is_seen() -> None:
    fleet = make_fleet(ModelConfig(depth=2, width=9, weights="orthogonal"), MIXED[:1], kind=CompiledFleet)
    assert isinstance(fleet, CompiledFleet)
    assert fleet._native is not None
    steps(fleet, 4, count=1)
    fleet.tensors["momentum.hidden.weight"][0, 1, 3, 2] = torch.nan
    w, _ = fleet._signals_of(4)
    assert fleet._native.turn(w, 0, slice(0, 2), 0.5).isnan().tolist() == [False, True]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert native.library(torch.float32) is not None
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    (cache.parent / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(cache.parent / "temporary"))
    assert native.library(torch.float32) is not None
    assert not list((cache.parent / "temporary").iterdir())


def test_a_fleet_of_few_weights_is_left_to_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SHARED_WEIGHTS", 500)
    counts = []
    with intra_op_threads(2):
        for width in (10, 20):
            fleet = make_fleet(ModelConfig(depth=2, width=width), MIXED[:1], kind=CompiledFleet)
            assert isinstance(fleet, CompiledFleet)
            counts.append(fleet._workers.count)
            assert fleet._threads == 1
    assert counts == [1, 2]
