"""The benchmark compares like with like, and writes down what it measured. Nothing here looks at a time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bsnn_cli import baselines, bench
from bsnn_cli.activations import get, normalise
from bsnn_cli.config import ActivationConfig, BenchConfig, DatasetConfig, ModelConfig
from bsnn_cli.fleet import Fleet, Member
from bsnn_cli.network import Phi
from tests.conftest import run_bsnn

COLUMNS = {
    *("implementation", "networks", "depth", "width", "batch_size", "norm", "weights", "device", "step_ms"),
    *("network_steps_per_s", "ratio_to_plain", "ratio_to_floor", "peak_memory_mb"),
}


def linears(network: nn.Sequential) -> list[nn.Linear]:
    return [module for module in network if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("weights", ["unit_rows", "free"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_plain_network_makes_the_same_steps(norm: str, weights: str) -> None:
    model = ModelConfig(depth=3, width=8, norm=norm, weights=weights)
    solution = normalise("selu")
    member = Member(activation=get("selu"), a=solution.a, b=solution.b, seed=0, lr=0.05)
    fleet = Fleet(model, [member], inputs=6, classes=4, momentum=0.5, dtype=torch.float64)
    plain = baselines.plain_network(model, Phi("selu", solution.a, solution.b), 6, 4, weights).double()
    bottom, *hidden, top = linears(plain)
    state = fleet.member_state(0)
    with torch.no_grad():
        for linear, name in ((bottom, "input"), (top, "output")):
            linear.weight.copy_(state[f"{name}.weight"])
            linear.bias.copy_(state[f"{name}.bias"])
        for linear, V in zip(hidden, state["hidden.weight"], strict=True):
            free = linear.parametrizations["weight"].original1 if weights == "unit_rows" else linear.weight
            free.copy_(V)
    step = baselines.plain_step(plain, lr=0.05, momentum=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = torch.randn(1, 5, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (1, 5), generator=generator)
        assert fleet.step(x, y).item() == pytest.approx(step(x[0], y[0]).item(), rel=1e-10)


@pytest.mark.parametrize("name", baselines.ORTHOGONAL_MAPS)
def test_pytorchs_own_parametrisation_trains_and_stays_orthogonal(name: str) -> None:
    network = baselines.plain_network(ModelConfig(depth=2, width=6), Phi("tanh"), 4, 3, name)
    before = linears(network)[1].weight.detach().clone()
    step = baselines.plain_step(network, lr=0.1, momentum=0.5)
    for _ in range(3):
        step(torch.randn(5, 4), torch.randint(3, (5,)))
    W = linears(network)[1].weight.detach()
    assert not torch.allclose(W, before, atol=1e-4)
    torch.testing.assert_close(W.T @ W, torch.eye(6), rtol=0, atol=1e-5)


def tiny(tmp_path: Path, **options: object) -> BenchConfig:
    return BenchConfig(
        dataset=DatasetConfig(kind="digits", root=str(tmp_path)),
        model=ModelConfig(depth=2, width=10),
        rounds=2,
        device="cpu",
        output_root=str(tmp_path),
        **options,
    )


def test_every_implementation_is_timed_beside_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 1.0)  # a process for each
    monkeypatch.setattr(bench, "GROWTH", {"depth": (1, 2), "width": (5, 10)})
    monkeypatch.setattr(bench, "FLEETS", {"cpu": (1, 3)})
    text = bench.run(tiny(tmp_path, growth=True, networks=[1, 2]))
    table = pd.read_csv(tmp_path / "bench" / "bench.csv")
    assert set(table.columns) >= COLUMNS
    assert {"plain", "plain_fused", "plain_dataloader", "bsnn", "floor"} < set(table.implementation)
    assert table.implementation.str.startswith("torch_").sum() == 1
    kinds = table[table.implementation == "bsnn"][["networks", "depth", "width", "norm", "weights"]].agg(tuple, axis=1)
    wanted = {(1, 2, 10, "none", "unit_rows"), (2, 2, 10, "none", "unit_rows"), (1, 2, 10, "batch", "unit_rows")}
    wanted |= {(1, 2, 10, "none", "orthogonal"), (1, 1, 10, "none", "unit_rows"), (1, 2, 5, "none", "unit_rows")}
    assert set(kinds) == wanted | {(3, 2, 10, "none", "unit_rows")}
    assert (table.loc[table.implementation == "floor", "ratio_to_floor"] == 1).all()
    assert (table.loc[table.implementation == "plain", "ratio_to_plain"] == 1).all()
    assert (table.step_ms_low <= table.step_ms).all()
    assert (table.network_steps_per_s * table.step_ms / 1e3).to_numpy() == pytest.approx(table.networks.to_numpy())
    assert (table.table_hours * table.network_steps_per_s * 3600).to_numpy() == pytest.approx(3_002_400)
    assert text == (tmp_path / "bench" / "bench.md").read_text()
    for name in ("depth", "width", "networks"):
        assert f"Time of a step grows like {name}^" in text


def test_compiling_is_asked_for(tmp_path: Path) -> None:
    dataset = bench.data.load(DatasetConfig(kind="digits"))
    for wanted in (False, True):
        first = next(bench.cases(tiny(tmp_path, compile=wanted), dataset))
        assert ("plain_compiled" in [spec.implementation for spec in first]) == wanted


@pytest.mark.parametrize(
    ("implementation", "networks"), [("plain", 1), ("plain_dataloader", 1), ("plain_fused", 1), ("bsnn", 2)]
)
def test_every_step_trains_on_a_batch(implementation: str, networks: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, activation=ActivationConfig(name="tanh"))
    config.optim.lr = 0.1
    spec = bench.Spec(implementation, networks, config.model)
    step = bench.build(spec, config, bench.data.load(config.dataset))
    losses = [torch.as_tensor(step()) for _ in range(200)]
    assert isinstance(losses[0], Tensor)
    assert losses[0].numel() == networks
    assert torch.stack(losses[-20:]).mean() < 0.6 * torch.stack(losses[:5]).mean()


def test_batches_cover_an_epoch_without_repetition() -> None:
    order = bench.batches(23, 2, 5, torch.device("cpu"))
    epoch = torch.cat(list(itertools.islice(order, 4)), dim=1)
    assert epoch.shape == (2, 20)
    assert all(len(set(row.tolist())) == 20 for row in epoch)
    assert next(order).shape == (2, 5)


def test_the_floor_is_every_product_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = bench.build_floor(bench.Spec("floor", 2, ModelConfig(depth=3, width=4)), 5, torch.device("cpu"))
    made = []
    bmm, baddbmm_ = torch.bmm, Tensor.baddbmm_

    def note(product: object, *args: Tensor, **options: object) -> object:
        made.append(args[-2].data_ptr() if product is baddbmm_ else args[-1].data_ptr())
        return product(*args, **options)

    monkeypatch.setattr(torch, "bmm", lambda *args, **options: note(bmm, *args, **options))
    monkeypatch.setattr(Tensor, "baddbmm_", lambda *args, **options: note(baddbmm_, *args, **options))
    step()
    assert len(made) == 9
    assert [len(set(made[i : i + 3])) for i in (0, 3, 6)] == [3, 3, 3]  # distinct matrices


def test_the_command_times_what_is_there_and_fetches_nothing(tmp_path: Path) -> None:
    result = run_bsnn("bench", "quick=true", "rounds=1", "model.depth=20", "model.width=200", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mnist is not in data; timing with digits" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    table = pd.read_csv(tmp_path / "outputs" / "bench" / "bench.csv").set_index("implementation")
    assert list(table.index) == ["plain", "bsnn", "floor"]
    weights_and_momentum = 2 * 20 * 200 * 200 * 4 / 1e6
    assert (table.peak_memory_mb > 0.5 * weights_and_momentum).all()
    assert (table.peak_memory_mb < 200).all()
    assert "| bsnn" in result.stdout
