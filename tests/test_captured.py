"""The fast path of a GPU: on a CPU everything but the capture, on a GPU that too."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bsnn_cli.datasets.data import Dataset, Split
from bsnn_cli.gpn.activations import ACTIVATIONS
from bsnn_cli.networks import captured, orthogonal, torch_engine
from bsnn_cli.networks.captured import DelayedRead
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.settings.config import ModelConfig
from tests.test_fleet import make_member

SAMPLES, BATCH, SHAPE = 22, 6, (1, 1, 7)
"""Three whole batches in an epoch and one of four."""

CASES = [(norm, weights) for norm in ("none", "batch") for weights in ("unit_rows", "free", "orthogonal")]
MIXED = [
    make_member("selu", True, lr=0.05),
    make_member("selu", False, seed=1, lr=0.02),
    make_member("tanh", True, seed=2, lr=0.1),
]


def noise() -> Dataset:
    """A few small images of three classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 7), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(3, (SAMPLES,), generator=generator))
    return Dataset(
        name="noise",
        class_names=("a", "b", "c"),
        shape=SHAPE,
        train=split,
        test=split,
        validation=None,
        mean=torch.full((7,), 128.0),
        std=torch.full((7,), 70.0),
        scaling="standardize",
    )


@pytest.fixture
def data() -> Dataset:
    return noise()


def make(model: ModelConfig, members: list[Member], **options: Any) -> Fleet:
    """Return a fleet of PyTorch's operations on a CPU, in double precision unless the options say otherwise."""
    given = {"dtype": torch.float64, "engine": TorchEngine} | options
    return Fleet(model, members, inputs=7, classes=3, **given)


def make_as_on_gpu(model: ModelConfig, members: list[Member], **options: Any) -> Fleet:
    """Return a fleet on a CPU that computes as one on a GPU does, but for the compiler and the capture."""
    return make(model, members, **({"engine": partial(TorchEngine, on_gpu=True), "capture": True} | options))


def make_on_gpu(model: ModelConfig, members: list[Member], **options: Any) -> Fleet:
    return make(model, members, **({"device": "cuda", "engine": None} | options))


def graphs(fleet: Fleet) -> set[int]:
    """Return the batch sizes that a fleet has captured."""
    assert fleet.captured is not None
    return set(fleet.captured.graphs)


def orders(members: int, epoch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(epoch)
    order = torch.stack([torch.randperm(SAMPLES, generator=generator) for _ in range(members)])
    return torch.split(order, BATCH, dim=1)


def train(fleet: Fleet, data: Dataset, epochs: int = 3) -> Tensor:
    """Losses (steps, K) of some epochs."""
    device = fleet.device
    data = data.to(device)
    losses = [
        loss.cpu().clone()
        for epoch in range(epochs)
        for loss in fleet.updates(data, [batch.to(device) for batch in orders(len(fleet.members), epoch)])
    ]
    return torch.stack(losses)


def assert_same(one: Fleet, other: Fleet, tolerance: float) -> None:
    for name, tensor in one.tensors.items():
        if name.startswith("orthogonality"):
            continue  # bounds are of rounding
        torch.testing.assert_close(other.tensors[name].cpu(), tensor.cpu(), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(("norm", "weights"), CASES)
def test_its_steps_are_those_of_a_fleet(
    norm: str, weights: str, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With chunks that do not divide the depth, a short last batch, and an epoch's order of its own."""
    monkeypatch.setattr(torch_engine, "MATRICES", 2)
    model = ModelConfig(depth=5, width=6, norm=norm, weights=weights)
    plain, ours = make(model, MIXED), make_as_on_gpu(model, MIXED)
    torch.testing.assert_close(train(ours, data), train(plain, data), rtol=1e-12, atol=1e-12)
    assert_same(plain, ours, 1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_same_as_on_a_cpu(name: str, data: Dataset) -> None:
    model = ModelConfig(depth=3, width=6)
    members = [make_member(name, True), make_member(name, False)]
    plain, ours = make(model, members), make_as_on_gpu(model, members)
    torch.testing.assert_close(train(ours, data, 1), train(plain, data, 1), rtol=1e-12, atol=1e-12)


def test_every_step_ends_in_its_retraction_where_the_limit_is_none(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "LIMIT", 0)
    model = ModelConfig(depth=4, width=6, weights="orthogonal")
    plain, ours = make(model, MIXED), make_as_on_gpu(model, MIXED)
    torch.testing.assert_close(train(ours, data), train(plain, data), rtol=1e-12, atol=1e-12)
    assert_same(plain, ours, 1e-12)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_each_held_step_is_made_once(
    capture: bool, on_gpu: bool, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever operations compute it, and whether or not the steps are of the kind that is captured."""
    monkeypatch.setattr(orthogonal, "LIMIT", 0)
    model = ModelConfig(depth=3, width=6, weights="orthogonal")
    plain = make(model, MIXED)
    ours = make(model, MIXED, engine=partial(TorchEngine, on_gpu=on_gpu), capture=capture)
    torch.testing.assert_close(train(ours, data, 1), train(plain, data, 1), rtol=1e-12, atol=1e-12)
    assert_same(plain, ours, 1e-12)


def test_orthogonality_holds_at_every_step_of_a_high_learning_rate(data: Dataset) -> None:
    model = ModelConfig(depth=6, width=30, weights="orthogonal")
    fleet = make_as_on_gpu(model, [make_member("selu", True, lr=0.1)], dtype=torch.float32)
    for _ in fleet.updates(data, orders(1, 0)):
        W = fleet.tensors["hidden.weight"].double()
        assert (W.mT @ W - torch.eye(30, dtype=torch.float64)).abs().max() <= 1e-5
    assert fleet.orthogonality_error().item() <= 1e-5


@pytest.mark.parametrize("weights", ["free", "orthogonal"])
def test_a_dead_member_stays_as_it_is_and_disturbs_nobody(weights: str, data: Dataset) -> None:
    """Its momentum is not a number from then on; a factor of 0 would not keep that out of its weights."""
    model = ModelConfig(depth=3, width=6, weights=weights)
    calm, wild = make_member("tanh", True, lr=0.01), make_member("tanh", True, seed=1, lr=1e200)
    if weights == "orthogonal":  # nothing grows there
        wild = Member(activation=wild.activation, a=float("inf"), b=0.0, seed=1, lr=0.1)
    fleet, lone = make_as_on_gpu(model, [calm, wild]), make_as_on_gpu(model, [calm])
    before = fleet.tensors["hidden.weight"][1].clone()
    for epoch in range(2):
        batches = orders(2, epoch)
        for _ in zip(fleet.updates(data, batches), lone.updates(data, [batch[:1] for batch in batches]), strict=True):
            pass
    assert fleet.alive.tolist() == [True, False]
    after = fleet.tensors["hidden.weight"][1]
    assert after.isfinite().all()
    assert fleet.steps[1] < fleet.steps[0] == 8
    assert torch.equal(after, before) == (fleet.steps[1] == 0)
    assert fleet.anyone_alive()
    for name, tensor in lone.member_state(0).items():
        torch.testing.assert_close(fleet.member_state(0)[name], tensor, rtol=1e-12, atol=1e-13)


def test_going_on_in_the_middle_of_an_epoch_takes_the_same_samples(data: Dataset) -> None:
    model = ModelConfig(depth=3, width=6, norm="batch")
    straight, first = make_as_on_gpu(model, MIXED), make_as_on_gpu(model, MIXED)
    train(straight, data, 2)
    train(first, data, 1)
    for loss, _ in zip(first.updates(data, orders(3, 1)), range(2), strict=False):
        assert loss.isfinite().all()
        if first.steps[0] == 6:
            break
    states = [{name: tensor.clone() for name, tensor in first.member_state(k).items()} for k in range(3)]
    resumed = make_as_on_gpu(model, MIXED, states=states)
    for _ in resumed.updates(data, orders(3, 1)[2:]):
        pass
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


class FakeEvent:
    """An event that notes what is asked of it."""

    def __init__(self, log: list[tuple[str, int]], number: int) -> None:
        self.log, self.number = log, number
        log.append(("record", number))

    def synchronize(self) -> None:
        self.log.append(("wait", self.number))


def test_flags_are_read_some_steps_late_and_only_after_their_event(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    numbers = itertools.count()
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda like, **_: empty_like(like))  # pinning needs a GPU
    delayed = DelayedRead(torch.tensor([0]), 2, lambda: FakeEvent(log, next(numbers)))
    seen = [delayed.push(torch.tensor([step])) for step in range(5)]
    assert [None if value is None else value.item() for value in seen] == [None, None, 0, 1, 2]
    assert log == [
        ("record", 0),
        ("record", 1),
        *[entry for step in (0, 1, 2) for entry in (("wait", step), ("record", step + 2))],
    ]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_compiled_functions_are_traced_whole_and_once_for_all_layers(norm: str, data: Dataset) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = ModelConfig(depth=4, width=6, norm=norm)
    engine = partial(TorchEngine, on_gpu=True, compile_options={"backend": "aot_eager"})
    plain, ours = make(model, MIXED), make_as_on_gpu(model, MIXED, engine=engine)
    torch.testing.assert_close(train(ours, data, 1), train(plain, data, 1), rtol=1e-12, atol=1e-12)
    assert_same(plain, ours, 1e-12)
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 5
    )  # forward and backward for two batch sizes, update


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(data: Dataset) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    model = ModelConfig(depth=3, width=6)
    engine = partial(TorchEngine, on_gpu=True, compile_options={"backend": broken})
    plain, ours = make(model, MIXED), make_as_on_gpu(model, MIXED, engine=engine)
    with pytest.warns(UserWarning, match=r"(forward|backward|update) is not compiled .*no compiler here") as warned:
        losses = train(ours, data, 1)
    assert len(warned) == 3
    torch.testing.assert_close(losses, train(plain, data, 1), rtol=1e-12, atol=1e-12)


def on_gpu(test: Any) -> Any:
    """Marks a test that needs a GPU, and what it does there is what its name says of one."""
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


@on_gpu
@pytest.mark.parametrize(("norm", "weights"), CASES)
def test_a_graph_gives_the_numbers_of_a_cpu(norm: str, weights: str, data: Dataset) -> None:
    """Five epochs: the first three whole batches and short ones are steps of single kernels, the others replays."""
    model = ModelConfig(depth=5, width=8, norm=norm, weights=weights)
    plain, ours = make(model, MIXED), make_on_gpu(model, MIXED)
    torch.testing.assert_close(train(ours, data, 5), train(plain, data, 5), rtol=1e-10, atol=1e-10)
    assert_same(plain, ours, 1e-10)
    assert graphs(ours) == {6, 4}


@on_gpu
def test_a_graph_at_full_width_agrees_with_single_kernels(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(depth=30, width=500)
    calm = [make_member(name, True, seed, lr=1e-3) for seed, name in enumerate(("selu", "selu", "tanh"))]
    ours = make_on_gpu(model, calm, dtype=torch.float32)
    losses = train(ours, data, 5)
    monkeypatch.setattr(captured, "WARM_UP", 10**9)
    single = make_on_gpu(model, calm, dtype=torch.float32)
    torch.testing.assert_close(train(single, data, 5), losses, rtol=1e-5, atol=1e-6)
    assert not graphs(single)


@on_gpu
def test_members_of_a_captured_fleet_equal_lone_runs(data: Dataset) -> None:
    model = ModelConfig(depth=10, width=8)
    fleet = make_on_gpu(model, MIXED)
    train(fleet, data, 5)
    moved = data.to("cuda")
    for k, member in enumerate(MIXED):
        lone = make_on_gpu(model, [member])
        for epoch in range(5):
            for _ in lone.updates(moved, [batch[k : k + 1].cuda() for batch in orders(3, epoch)]):
                pass
        for name, tensor in lone.member_state(0).items():
            torch.testing.assert_close(fleet.member_state(k)[name], tensor, rtol=1e-10, atol=1e-11, msg=name)


@on_gpu
def test_a_member_dies_inside_a_graph(data: Dataset) -> None:
    model = ModelConfig(depth=3, width=8, weights="free")
    calm, wild = make_member("tanh", True, lr=0.01), make_member("tanh", True, seed=1, lr=0.01)
    fleet = make_on_gpu(model, [calm, wild])
    train(fleet, data, 4)
    fleet.tensors["output.weight"][1] *= 1e200  # as seen from the graph, in the middle of a training
    before = fleet.tensors["hidden.weight"][1].clone()
    steps = fleet.steps.tolist()
    train(fleet, data, 2)
    assert fleet.alive.tolist() == [True, False]
    assert fleet.steps.tolist() == [steps[0] + 8, steps[1]]
    assert torch.equal(fleet.tensors["hidden.weight"][1], before)
    assert fleet.anyone_alive()
    fleet.tensors["output.weight"][0] *= 1e200
    train(fleet, data, 3)
    assert not fleet.anyone_alive()


@on_gpu
def test_a_captured_fleet_stays_orthogonal_at_a_high_learning_rate(data: Dataset) -> None:
    model = ModelConfig(depth=12, width=60, weights="orthogonal")
    fleet = make_on_gpu(model, [make_member("selu", True, lr=0.1)], dtype=torch.float32)
    moved = data.to("cuda")
    for epoch in range(6):
        for _ in fleet.updates(moved, [batch.cuda() for batch in orders(1, epoch)]):
            W = fleet.tensors["hidden.weight"].double()
            assert (W.mT @ W - torch.eye(60, dtype=torch.float64, device="cuda")).abs().max() <= 1e-5
    assert fleet.orthogonality_error().item() <= 1e-5
    assert fleet.alive.all()


@on_gpu
@pytest.mark.parametrize("weights", ["unit_rows", "orthogonal"])
def test_going_on_on_a_gpu_is_exact_to_the_byte(weights: str, data: Dataset) -> None:
    model = ModelConfig(depth=5, width=40, norm="batch", weights=weights)
    options: dict[str, Any] = {"dtype": torch.float32}
    straight, first = (make_on_gpu(model, MIXED, **options) for _ in range(2))
    train(straight, data, 5)
    moved = data.to("cuda")
    for epoch, count in enumerate((4, 4, 4, 2)):
        for _ in first.updates(moved, [batch.cuda() for batch in orders(3, epoch)[:count]]):
            pass
    states = [{name: tensor.clone() for name, tensor in first.member_state(k).items()} for k in range(3)]
    resumed = make_on_gpu(model, MIXED, states=states, **options)
    for epoch, start in ((3, 2), (4, 0)):
        for _ in resumed.updates(moved, [batch.cuda() for batch in orders(3, epoch)[start:]]):
            pass
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


@on_gpu
def test_tf32_rounds_differently_and_trains(data: Dataset) -> None:
    model = ModelConfig(depth=5, width=64)
    members = [make_member("selu", True, lr=0.01)]
    before = torch.get_float32_matmul_precision()
    losses = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            losses[precision] = train(make_on_gpu(model, members, dtype=torch.float32), data, 8)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(losses["high"], losses["highest"])
    for each in losses.values():
        assert each[-4:].mean() < each[:4].mean()


@on_gpu
def test_where_there_is_no_compiler_a_graph_is_captured_of_the_functions_as_they_are(data: Dataset) -> None:
    model = ModelConfig(depth=5, width=8)
    engine = partial(TorchEngine, compile_options={"disable": True})
    plain, ours = make(model, MIXED), make_on_gpu(model, MIXED, engine=engine)
    torch.testing.assert_close(train(ours, data, 5), train(plain, data, 5), rtol=1e-10, atol=1e-10)
    assert graphs(ours) == {6, 4}


@on_gpu
def test_what_cannot_be_captured_goes_on_kernel_by_kernel(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(depth=3, width=8)
    plain, ours = make(model, MIXED), make_on_gpu(model, MIXED)
    step = Fleet.step

    def looking(self: Fleet, inputs: Tensor, labels: Tensor) -> Tensor:
        loss = step(self, inputs, labels)
        self.alive.tolist()  # waits for the device, which a capture forbids
        return loss

    monkeypatch.setattr(Fleet, "step", looking)
    with pytest.warns(UserWarning, match="no CUDA graph"):
        losses = train(ours, data, 5)
    torch.testing.assert_close(losses, train(plain, data, 5), rtol=1e-10, atol=1e-10)


@on_gpu
def test_a_fleet_that_did_not_fit_leaves_the_memory_free(data: Dataset) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    fleet = make_on_gpu(ModelConfig(depth=5, width=100), MIXED, dtype=torch.float32)
    train(fleet, data, 5)
    assert torch.cuda.memory_allocated() > before
    del fleet
    assert torch.cuda.memory_allocated() <= before + 2**25  # but for the workspaces of libraries
