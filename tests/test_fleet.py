"""The fast path against its oracle: the reference network, autograd and torch's own optimiser, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli.datasets.data import load
from bsnn_cli.gpn.activations import get, normalise
from bsnn_cli.networks import orthogonal, workers
from bsnn_cli.networks.engine import EngineFactory
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.network import Network
from bsnn_cli.networks.optimiser import Optimiser
from bsnn_cli.networks.torch_engine import TorchEngine
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.choices import AUTO_ROOT, PAPER_ACTIVATIONS
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig

INPUTS, CLASSES, BATCH = 7, 3, 6
SHORT_BATCH = 2
STEPS = 5


def make_member(name: str, gpn: bool, seed: int = 0, lr: float = 0.05) -> Member:
    solution = normalise(name) if gpn else None
    a, b = (solution.a, solution.b) if solution is not None else (1.0, 0.0)
    return Member(activation=get(name), a=a, b=b, seed=seed, lr=lr)


def make_fleet(
    model: ModelConfig,
    members: Sequence[Member],
    momentum: float = 0.5,
    engine: EngineFactory | None = TorchEngine,
    dtype: torch.dtype = torch.float64,
    states: list[dict[str, Tensor]] | None = None,
) -> Fleet:
    return Fleet(
        model,
        members,
        inputs=INPUTS,
        classes=CLASSES,
        optimiser=Optimiser(momentum=momentum),
        dtype=dtype,
        states=states,
        engine=engine,
    )


each_engine = pytest.mark.parametrize("engine", [TorchEngine, None])
"""PyTorch's operations, and the engine that is chosen: C kernels, where they cover the activations."""


def batches(members: int, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Batches for each member and step; the last one of the first epoch, and of all, is short."""
    generator = torch.Generator().manual_seed(1)
    sizes = [BATCH if step not in (2, steps - 1) else SHORT_BATCH for step in range(steps)]
    return [
        (
            torch.randn(members, size, INPUTS, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (members, size), generator=generator),
        )
        for size in sizes
    ]


def train_reference(
    model: ModelConfig, name: str, gpn: bool, member: Member, momentum: float, data: list[tuple[Tensor, Tensor]]
) -> tuple[Network, list[float]]:
    network = Network(model, ActivationConfig(name=name, gpn=gpn), INPUTS, CLASSES, member.seed).double()
    network.load(make_fleet(model, [member]).member_state(0))  # the start in full float64
    optimiser = torch.optim.SGD(network.parameters(), lr=member.lr, momentum=momentum)
    losses = []
    for inputs, labels in data:
        optimiser.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return network, losses


def assert_same(network: Network, fleet: Fleet, k: int, tolerance: float) -> None:
    state = fleet.member_state(k)
    for name, reference in network.state().items():
        expected = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
        error = (state[name] - expected).norm() / expected.norm().clamp(min=1)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@each_engine
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize(
    ("norm", "weights"), [("none", "unit_rows"), ("batch", "unit_rows"), ("none", "free"), ("batch", "free")]
)
@pytest.mark.parametrize("gpn", [False, True])
@pytest.mark.parametrize("name", AUTO_ROOT)
def test_five_steps_equal_autograd(
    name: str, gpn: bool, norm: str, weights: str, momentum: float, engine: EngineFactory | None
) -> None:
    model = ModelConfig(depth=4, width=5, norm=norm, weights=weights)
    member = make_member(name, gpn)
    data = batches(1)
    network, losses = train_reference(model, name, gpn, member, momentum, [(x[0], y[0]) for x, y in data])
    fleet = make_fleet(model, [member], momentum, engine)
    assert [fleet.step(x, y).item() for x, y in data] == pytest.approx(losses, rel=1e-12)
    assert_same(network, fleet, 0, 1e-12)
    probe = torch.randn(4, INPUTS, dtype=torch.float64)
    torch.testing.assert_close(fleet.logits(probe)[0], network.eval()(probe), rtol=1e-11, atol=1e-12)


@each_engine
def test_the_golden_trajectory(engine: EngineFactory | None) -> None:
    """Losses of eight steps in float32. A change that moves them beyond rounding raises `records.NUMERICS_VERSION`."""
    model = ModelConfig(depth=10, width=20)
    member = make_member("tanh", True, lr=0.02)
    fleet = make_fleet(model, [member], engine=engine, dtype=torch.float32)
    losses = [fleet.step(x.float(), y).item() for x, y in batches(1, steps=8)]
    golden = [0.957126, 1.251351, 1.223829, 0.928167, 1.397512, 1.282933, 1.240566, 1.001284]
    assert losses == pytest.approx(golden, abs=5e-6)


def train_densely(
    model: ModelConfig, name: str, gpn: bool, member: Member, data: list[tuple[Tensor, Tensor]], *, polar: bool
) -> tuple[Network, list[float]]:
    """The orthogonal constraint by n×n algebra, in float64: project the whole gradient; `polar` retracts every step."""
    network = Network(model, ActivationConfig(name=name, gpn=gpn), INPUTS, CLASSES, member.seed).double()
    network.load(make_fleet(model, [member]).member_state(0))
    hidden = {id(layer.linear.weight) for layer in network.hidden}
    momenta = {parameter: torch.zeros_like(parameter) for parameter in network.parameters()}
    losses = []
    for inputs, labels in data:
        loss = F.cross_entropy(network(inputs), labels)
        gradients = torch.autograd.grad(loss, list(momenta))
        losses.append(loss.item())
        with torch.no_grad():
            for (W, M), G in zip(momenta.items(), gradients, strict=True):
                M.mul_(0.5).add_((G - W @ G.T @ W) / 2 if id(W) in hidden else G)
                W.sub_(member.lr * M)
                if polar and id(W) in hidden:
                    W.copy_(torch.from_numpy(scipy.linalg.polar(W.numpy())[0]))
    return network, losses


@each_engine
@pytest.mark.parametrize("limit", [0, math.inf])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("gpn", [False, True])
@pytest.mark.parametrize("name", AUTO_ROOT)
def test_five_orthogonal_steps_equal_dense_algebra(
    name: str, gpn: bool, norm: str, limit: float, monkeypatch: pytest.MonkeyPatch, engine: EngineFactory | None
) -> None:
    """With a limit of 0 every step ends in its polar factor, with an infinite one none does."""
    monkeypatch.setattr(orthogonal, "LIMIT", limit)
    model = ModelConfig(depth=4, width=5, norm=norm, weights="orthogonal")
    member = make_member(name, gpn)
    data = batches(1)
    network, losses = train_densely(model, name, gpn, member, [(x[0], y[0]) for x, y in data], polar=limit == 0)
    fleet = make_fleet(model, [member], engine=engine)
    assert [fleet.step(x, y).item() for x, y in data] == pytest.approx(losses, rel=1e-12)
    assert_same(network, fleet, 0, 1e-12)
    probe = torch.randn(4, INPUTS, dtype=torch.float64)
    torch.testing.assert_close(fleet.logits(probe)[0], network.eval()(probe), rtol=1e-11, atol=1e-12)


@each_engine
@pytest.mark.parametrize("limit", [0, math.inf])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_members_of_an_orthogonal_fleet_equal_dense_algebra(
    norm: str, limit: float, monkeypatch: pytest.MonkeyPatch, engine: EngineFactory | None
) -> None:
    monkeypatch.setattr(orthogonal, "LIMIT", limit)
    model = ModelConfig(depth=6, width=6, norm=norm, weights="orthogonal")
    choices = [("selu", True, 0, 0.05), ("selu", False, 1, 0.02), ("tanh", True, 2, 0.1)]
    members = [make_member(*choice) for choice in choices]
    data = batches(3)
    fleet = make_fleet(model, members, engine=engine)
    for x, y in data:
        fleet.step(x, y)
    for k, (name, gpn, _, _) in enumerate(choices):
        own = [(x[k], y[k]) for x, y in data]
        network, _ = train_densely(model, name, gpn, members[k], own, polar=limit == 0)
        assert_same(network, fleet, k, 1e-12)


def measured(fleet: Fleet) -> Tensor:
    """Largest |WᵀW − I| of each member and layer (K, L), in float64 and without the program."""
    W = fleet.tensors["hidden.weight"].double()
    return (W.mT @ W - torch.eye(W.shape[-1], dtype=torch.float64)).abs().amax((-2, -1))


def orthogonal_fleet(
    lr: float, members: int = 1, dtype: torch.dtype = torch.float32, engine: EngineFactory | None = TorchEngine
) -> Fleet:
    model = ModelConfig(depth=12, width=60, weights="orthogonal", input_init="norm_preserving")
    choices = [make_member("selu", True, seed=seed, lr=lr / 100**seed) for seed in range(members)]
    return make_fleet(model, choices, engine=engine, dtype=dtype)


@each_engine
def test_orthogonality_holds_at_every_step_of_a_high_learning_rate(
    monkeypatch: pytest.MonkeyPatch, engine: EngineFactory | None
) -> None:
    """By the retraction: without it, it does not."""
    fleet = orthogonal_fleet(lr=0.1, engine=engine)
    for x, y in batches(1, steps=20):
        fleet.step(x.float(), y)
        assert measured(fleet).max() <= 1e-5
    assert fleet.alive.all()
    assert fleet.orthogonality_error().item() <= 1e-5
    monkeypatch.setattr(orthogonal, "LIMIT", math.inf)
    unretracted = orthogonal_fleet(lr=0.1, engine=engine)
    for x, y in batches(1, steps=20):
        unretracted.step(x.float(), y)
    assert measured(unretracted).max() > 1e-5


@each_engine
def test_drift_is_reported_from_before_the_retraction(engine: EngineFactory | None) -> None:
    """Three learning rates in one fleet: retracted every step, now and then, and never."""
    fleet = orthogonal_fleet(lr=0.1, members=3, engine=engine)
    history = [measured(fleet)]
    for x, y in batches(3, steps=120):
        fleet.step(x.float(), y)
        history.append(measured(fleet))
    errors = torch.stack(history)
    assert errors.max() <= 1e-5
    fallen = (errors[1:] < 0.5 * errors[:-1]) & (errors[:-1] > 3e-6)
    assert fallen[:, 1].any()  # after a drift
    assert not fallen[:, 2].any()
    largest = errors.amax((0, 2)).float()
    assert largest[1] > 3e-6
    for W in fleet.tensors["hidden.weight"].flatten(0, 1):
        orthogonal.retract(W)  # what the weights are now hides nothing of what they were
    torch.testing.assert_close(fleet.orthogonality_error()[:2], largest[:2], rtol=0.25, atol=5e-7)
    torch.testing.assert_close(fleet.orthogonality_error(), measured(fleet).amax(1).float(), rtol=0, atol=5e-7)


def test_the_bound_of_the_drift_holds_and_is_no_exaggeration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "LIMIT", math.inf)
    fleet = orthogonal_fleet(lr=0.003, members=2, dtype=torch.float64)
    for W in fleet.tensors["hidden.weight"].flatten(0, 1):
        orthogonal.retract(W)  # the start is one of float32
    bound = fleet.tensors["orthogonality.bound"].zero_()
    for x, y in batches(2, steps=20):
        fleet.step(x, y)
        error = measured(fleet)
        assert (error <= 1.05 * bound + 1e-15).all()
    assert (bound < 10 * error).all()


@each_engine
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_members_of_a_mixed_fleet_equal_lone_runs_also_beside_one_that_diverges(
    norm: str, engine: EngineFactory | None
) -> None:
    """Each activation of the paper, GPN and plain, with seeds and learning rates of their own; one is far too fast."""
    model = ModelConfig(depth=5, width=6, norm=norm)
    choices = enumerate(itertools.product(PAPER_ACTIVATIONS, (True, False)))
    members = [make_member(name, gpn, seed, lr=0.1 / 1.2**seed) for seed, (name, gpn) in choices]
    wild = 7
    members.insert(wild, make_member("elu", True, seed=20, lr=1e150))
    data = batches(len(members), steps=20)
    fleet, losses, weights_of_the_wild = make_fleet(model, members, engine=engine), [], []
    for x, y in data:
        losses.append(fleet.step(x, y))
        weights_of_the_wild.append(fleet.tensors["hidden.weight"][wild].clone())
    assert [k for k, alive in enumerate(fleet.alive.tolist()) if not alive] == [wild]
    steps = int(fleet.steps[wild])
    assert 0 < steps < len(data)
    assert torch.equal(weights_of_the_wild[-1], weights_of_the_wild[steps - 1])
    assert torch.isfinite(weights_of_the_wild[-1]).all()
    for k, member in enumerate(members):
        lone, own = make_fleet(model, [member], engine=engine), slice(k, k + 1)
        expected = [lone.step(x[own], y[own]) for x, y in data]
        torch.testing.assert_close(
            torch.stack(losses)[:, own], torch.stack(expected), rtol=1e-10, atol=0, equal_nan=True
        )
        state = fleet.member_state(k)
        for name, tensor in lone.member_state(0).items():
            if (k, norm, name) == (wild, "batch", "input.bias"):
                continue  # what a bias adds, batch normalisation takes away: its gradient is rounding, here times 1e150
            error = (state[name].double() - tensor.double()).abs().max() / tensor.double().abs().max().clamp(min=1e-3)
            assert error <= 1e-10, f"{name} of member {k}: relative error {error:.1e}"


@pytest.mark.parametrize("weights", ["unit_rows", "orthogonal"])
def test_a_gradient_may_be_long_if_the_step_is_not(weights: str) -> None:
    """The square of 3e19 is not finite in single precision. Orthogonal matrices have use for that of the momentum."""
    members = [make_member("tanh", True, lr=lr) for lr in (1e-4, 1.0)]
    model = ModelConfig(depth=3, width=5, weights=weights)
    fleet = Fleet(model, members, inputs=INPUTS, classes=CLASSES)
    w = fleet._signals_of(BATCH)
    w.loss.zero_()
    w.bound.fill_(3e19)
    assert fleet._finite(w, {"input.bias": torch.ones(2, 5)}).tolist() == [weights == "unit_rows", False]
    w.bound.fill_(3e18)
    assert fleet._finite(w, {"input.bias": torch.ones(2, 5)}).tolist() == [True, True]
    assert not fleet._finite(w, {"input.bias": torch.full((2, 5), 3e38)}).any()


@each_engine
def test_a_member_that_diverges_at_once_stays_at_its_start(engine: EngineFactory | None) -> None:
    fleet = make_fleet(ModelConfig(depth=3, width=5), [make_member("elu", True)], engine=engine)
    before = {name: tensor.clone() for name, tensor in fleet.member_state(0).items()}
    [(x, y)] = batches(1, steps=1)
    x[0, 0, 0] = torch.inf
    fleet.step(x, y)
    assert not fleet.alive.any()
    assert fleet.steps.item() == 0
    assert all(torch.equal(fleet.member_state(0)[name], before[name]) for name in before.keys() - {"alive"})


@each_engine
@pytest.mark.parametrize("weights", ["unit_rows", "orthogonal"])
def test_going_on_from_saved_states_is_exact(weights: str, engine: EngineFactory | None) -> None:
    model = ModelConfig(depth=3, width=5, norm="batch", weights=weights)
    members = [make_member("gelu", True), make_member("gelu", False, seed=1, lr=1e-3)]
    data = batches(2)
    straight, first = (make_fleet(model, members, engine=engine) for _ in range(2))
    for x, y in data:
        straight.step(x, y)
    for x, y in data[:2]:
        first.step(x, y)
    states = [{name: tensor.clone() for name, tensor in first.member_state(k).items()} for k in range(2)]
    resumed = make_fleet(model, members, engine=engine, states=states)
    for x, y in data[2:]:
        resumed.step(x, y)
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


@pytest.mark.parametrize(("norm", "weights"), [("none", "unit_rows"), ("batch", "unit_rows"), ("none", "orthogonal")])
def test_the_bound_of_a_gradient_is_no_shorter_and_not_much_longer(norm: str, weights: str) -> None:
    model = ModelConfig(depth=6, width=8, norm=norm, weights=weights)
    fleet = make_fleet(model, [make_member("gelu", True), make_member("gelu", False, seed=1)])
    for x, y in batches(2):
        fleet.step(x, y)
    w = fleet._signals_of(SHORT_BATCH)
    gradients = torch.linalg.matrix_norm(w.d.mT @ w.x[:-1])
    assert (gradients <= w.bound * (1 + 1e-12)).all()
    assert (w.bound <= 3 * gradients).all()


@pytest.mark.parametrize(("engine", "within"), [(None, 1), (TorchEngine, 3)])
def test_torch_s_own_threads_leave_the_cores_to_the_kernels(
    engine: EngineFactory | None, within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = Fleet.step

    def watched(self: Fleet, inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return step(self, inputs, labels)

    monkeypatch.setattr(Fleet, "step", watched)
    monkeypatch.setattr(workers, "SHARED_WEIGHTS", 0)  # a small network is left to one thread in any case
    data = load(DatasetConfig(kind="digits"))
    with intra_op_threads(3):
        member = make_member("tanh", True)
        sizes = {"inputs": data.inputs, "classes": data.classes}
        fleet = Fleet(ModelConfig(depth=1, width=20), [member], **sizes, engine=engine)
        for _ in fleet.updates(data, [torch.arange(6).unsqueeze(0)] * 2):
            assert torch.get_num_threads() == 3
    assert seen == [within] * 2


@each_engine
def test_a_resumed_run_retracts_at_the_same_steps(engine: EngineFactory | None) -> None:
    data = batches(2, steps=60)
    straight, first = (orthogonal_fleet(lr=0.003, members=2, engine=engine) for _ in range(2))
    for x, y in data:
        straight.step(x.float(), y)
    for x, y in data[:25]:
        first.step(x.float(), y)
    states = [{name: tensor.clone() for name, tensor in first.member_state(k).items()} for k in range(2)]
    resumed = make_fleet(first.model, first.members, engine=engine, states=states, dtype=torch.float32)
    for x, y in data[25:]:
        resumed.step(x.float(), y)
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


def test_equal_seeds_give_every_activation_the_same_start() -> None:
    model = ModelConfig(depth=3, width=5)
    fleet = make_fleet(
        model, [make_member("relu", False), make_member("selu", True), make_member("selu", True, seed=1)]
    )
    V = fleet.tensors["hidden.weight"]
    assert torch.equal(V[0], V[1])
    assert not torch.equal(V[1], V[2])
    for layer, other in itertools.combinations(range(3), 2):
        assert not torch.equal(V[0, layer], V[0, other])


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gains_start_at_one_or_uniformly_and_leave_all_else_as_it_is(norm: str) -> None:
    depth, width = 4, 200
    ones, uniform = (
        Network(
            ModelConfig(depth=depth, width=width, norm=norm, norm_init=start), ActivationConfig(), 7, 3, seed=2
        ).state()
        for start in ("ones", "uniform")
    )
    gains = torch.stack(list(uniform["norm.weight"]))
    assert (torch.stack(list(ones["norm.weight"])) == 1).all()
    assert ((gains >= 0) & (gains < 1)).all()
    # Means of 800 draws from U(0, 1) have a standard deviation of 0.010, their largest distance to quantiles of 0.04.
    assert gains.mean() == pytest.approx(0.5, abs=0.04)
    assert gains.std() == pytest.approx(12**-0.5, abs=0.03)
    assert len({tuple(layer.tolist()) for layer in gains}) == depth
    for name in ones.keys() - {"norm.weight"}:
        for first, second in zip(ones[name], uniform[name], strict=True):
            assert torch.equal(first, second), name
