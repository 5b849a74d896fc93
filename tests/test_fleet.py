"""The fast path against its oracle: the reference network, autograd and torch's own optimiser, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bsnn_cli.activations import get, normalise
from bsnn_cli.config import AUTO_ROOT, ActivationConfig, ModelConfig
from bsnn_cli.fleet import Fleet, Member
from bsnn_cli.network import Network

INPUTS, CLASSES, BATCH = 7, 3, 6
SHORT_BATCH = 2
STEPS = 5


def make_member(name: str, gpn: bool, seed: int = 0, lr: float = 0.05) -> Member:
    solution = normalise(name) if gpn else None
    a, b = (solution.a, solution.b) if solution is not None else (1.0, 0.0)
    return Member(activation=get(name), a=a, b=b, seed=seed, lr=lr)


def make_fleet(model: ModelConfig, members: list[Member], momentum: float = 0.5) -> Fleet:
    return Fleet(model, members, inputs=INPUTS, classes=CLASSES, momentum=momentum, dtype=torch.float64)


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


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize(("norm", "weights"), [("none", "unit_rows"), ("batch", "unit_rows"), ("none", "free"), ("batch", "free")])
@pytest.mark.parametrize("gpn", [False, True])
@pytest.mark.parametrize("name", AUTO_ROOT)
def test_five_steps_equal_autograd(name: str, gpn: bool, norm: str, weights: str, momentum: float) -> None:
    model = ModelConfig(depth=4, width=5, norm=norm, weights=weights)
    member = make_member(name, gpn)
    data = batches(1)
    network, losses = train_reference(model, name, gpn, member, momentum, [(x[0], y[0]) for x, y in data])
    fleet = make_fleet(model, [member], momentum)
    assert [fleet.step(x, y).item() for x, y in data] == pytest.approx(losses, rel=1e-12)
    assert_same(network, fleet, 0, 1e-12)
    probe = torch.randn(4, INPUTS, dtype=torch.float64)
    torch.testing.assert_close(fleet.logits(probe)[0], network.eval()(probe), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_members_of_a_mixed_fleet_equal_lone_references(norm: str) -> None:
    model = ModelConfig(depth=10, width=6, norm=norm)
    choices = [("selu", True, 0, 0.05), ("selu", False, 1, 0.02), ("tanh", True, 2, 0.1)]
    members = [make_member(*choice) for choice in choices]
    data = batches(3)
    fleet = make_fleet(model, members)
    for x, y in data:
        fleet.step(x, y)
    for k, (name, gpn, _, _) in enumerate(choices):
        network, _ = train_reference(model, name, gpn, members[k], 0.5, [(x[k], y[k]) for x, y in data])
        assert_same(network, fleet, k, 1e-12)


def test_a_diverging_member_keeps_its_weights_and_disturbs_nobody() -> None:
    model = ModelConfig(depth=3, width=5, weights="free", norm="batch")
    calm, wild = make_member("tanh", True), make_member("tanh", True, seed=1, lr=1e200)
    data = batches(3, steps=8)
    fleet, lone = make_fleet(model, [calm, wild, calm]), make_fleet(model, [calm])
    weights_of_the_wild = []
    for x, y in data:
        fleet.step(x, y)
        lone.step(x[:1], y[:1])
        weights_of_the_wild.append(fleet.tensors["hidden.weight"][1].clone())
    assert fleet.alive.tolist() == [True, False, True]
    steps = int(fleet.steps[1])
    assert 0 < steps < len(data)
    assert torch.equal(weights_of_the_wild[-1], weights_of_the_wild[steps - 1])
    assert torch.isfinite(weights_of_the_wild[-1]).all()
    assert fleet.steps.tolist() == [8, steps, 8]
    for name, tensor in lone.member_state(0).items():
        torch.testing.assert_close(fleet.member_state(0)[name], tensor, rtol=1e-12, atol=1e-13)


def test_a_member_that_diverges_at_once_stays_at_its_start() -> None:
    fleet = make_fleet(ModelConfig(depth=3, width=5), [make_member("elu", True)])
    before = {name: tensor.clone() for name, tensor in fleet.member_state(0).items()}
    [(x, y)] = batches(1, steps=1)
    x[0, 0, 0] = torch.inf
    fleet.step(x, y)
    assert not fleet.alive.any()
    assert fleet.steps.item() == 0
    assert all(torch.equal(fleet.member_state(0)[name], before[name]) for name in before.keys() - {"alive"})


def test_going_on_from_saved_states_is_exact() -> None:
    model = ModelConfig(depth=3, width=5, norm="batch")
    members = [make_member("gelu", True), make_member("gelu", False, seed=1)]
    data = batches(2)
    straight, first = make_fleet(model, members), make_fleet(model, members)
    for x, y in data:
        straight.step(x, y)
    for x, y in data[:2]:
        first.step(x, y)
    states = [{name: tensor.clone() for name, tensor in first.member_state(k).items()} for k in range(2)]
    resumed = Fleet(
        model, members, inputs=INPUTS, classes=CLASSES, momentum=0.5, states=states, dtype=torch.float64
    )
    for x, y in data[2:]:
        resumed.step(x, y)
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


def test_equal_seeds_give_every_activation_the_same_start() -> None:
    model = ModelConfig(depth=3, width=5)
    fleet = make_fleet(model, [make_member("relu", False), make_member("selu", True), make_member("selu", True, seed=1)])
    V = fleet.tensors["hidden.weight"]
    assert torch.equal(V[0], V[1])
    assert not torch.equal(V[1], V[2])
    for layer, other in itertools.combinations(range(3), 2):
        assert not torch.equal(V[0, layer], V[0, other])


def test_orthogonality_error_is_of_the_normalised_rows() -> None:
    fleet = make_fleet(ModelConfig(depth=2, width=4), [make_member("tanh", True)])
    fleet.tensors["hidden.weight"].mul_(3)
    for layer in range(2):
        fleet._refresh_norm(layer)
    assert fleet.orthogonality_error().item() < 1e-6
    fleet.tensors["hidden.weight"][0, 1, 0] = fleet.tensors["hidden.weight"][0, 1, 1]  # two equal rows
    fleet._refresh_norm(1)
    W = F.normalize(fleet.tensors["hidden.weight"][0, 1], dim=1)
    expected = (W.T @ W - torch.eye(4, dtype=torch.float64)).abs().max()
    assert fleet.orthogonality_error().item() == pytest.approx(expected.item())
    assert expected > 0.1
