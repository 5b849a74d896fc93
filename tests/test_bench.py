"""The benchmark compares like with like, and writes down what it measured. Nothing here looks at a time."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bsnn_cli.errors import ConfigError
from bsnn_cli.gpn.activations import get, normalise
from bsnn_cli.networks import native
from bsnn_cli.networks.fleet import Fleet
from bsnn_cli.networks.members import Member
from bsnn_cli.networks.network import Phi
from bsnn_cli.networks.workers import intra_op_threads
from bsnn_cli.settings.config import ActivationConfig, BenchConfig, DatasetConfig, ModelConfig
from bsnn_cli.timing import baselines, bench, bench_table, contestants, limits
from tests.conftest import run_bsnn

COLUMNS = {
    *(
        "comparison",
        "ratio_to_best",
        "implementation",
        "networks",
        "depth",
        "width",
        "batch_size",
        "norm",
        "weights",
        "device",
        "step_ms",
    ),
    *("network_steps_per_s", "ratio_to_plain", "ratio_to_products", "limit_ms", "ratio_to_limit", "peak_memory_mb"),
}


def linears(network: nn.Sequential) -> list[nn.Linear]:
    return [module for module in network if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("weights", ["unit_rows", "free"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_plain_network_makes_the_same_steps(norm: str, weights: str) -> None:
    model = ModelConfig(depth=3, width=8, norm=norm, weights=weights)
    solution = normalise("selu")
    member = Member(activation=get("selu"), a=solution.a, b=solution.b, seed=0, lr=0.05)
    fleet = Fleet(model, [member], inputs=6, classes=4, dtype=torch.float64)
    plain = baselines.plain_network(model, Phi(get("selu"), solution.a, solution.b), 6, 4, weights).double()
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
    network = baselines.plain_network(ModelConfig(depth=2, width=6), Phi(get("tanh")), 4, 3, name)
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


def test_every_implementation_is_timed_beside_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "peak_memory", lambda *_: 1.0)  # a process for each
    monkeypatch.setattr(bench, "GROWTH", {"depth": (1, 2), "width": (5, 10)})
    monkeypatch.setattr(bench, "FLEETS", {"cpu": (1, 3)})
    text = bench.run(tiny(tmp_path, growth=True, networks=[1, 2]))
    table = pd.read_csv(tmp_path / "bench" / "bench.csv")
    assert set(table.columns) >= COLUMNS
    named = {"plain", "plain_fused", "plain_dataloader", "bsnn", "products", "arithmetic", "traffic"}
    assert named < set(table.implementation)
    assert table.implementation.str.startswith("torch_").sum() == 1
    kinds = table[table.implementation == "bsnn"][["networks", "depth", "width", "norm", "weights"]].agg(tuple, axis=1)
    wanted = {(1, 2, 10, "none", "unit_rows"), (2, 2, 10, "none", "unit_rows"), (1, 2, 10, "batch", "unit_rows")}
    wanted |= {(1, 2, 10, "none", "orthogonal"), (1, 1, 10, "none", "unit_rows"), (1, 2, 5, "none", "unit_rows")}
    assert set(kinds) == wanted | {(3, 2, 10, "none", "unit_rows")}
    assert (table.loc[table.implementation == "products", "ratio_to_products"] == 1).all()
    assert (table.loc[table.implementation.isin(["arithmetic", "traffic"]), "ratio_to_limit"] <= 1).all()
    assert table.loc[table.implementation == "bsnn", "limit_ms"].notna().all()
    assert (table.loc[table.implementation == "plain", "ratio_to_plain"] == 1).all()
    assert (table.step_ms_low <= table.step_ms).all()
    assert (table.network_steps_per_s * table.step_ms / 1e3).to_numpy() == pytest.approx(table.networks.to_numpy())
    assert (table.table_hours * table.network_steps_per_s * 3600).to_numpy() == pytest.approx(3_002_400)
    assert text == (tmp_path / "bench" / "bench.md").read_text()
    for name, (one, other) in {"depth (layers)": (1, 2), "width (units)": (5, 10), "networks at once": (1, 3)}.items():
        header = rf"\| {re.escape(name)} +\| +{one} \| +{other} \| exponent \|"
        assert re.search(rf"Milliseconds of a step against {re.escape(name)}\*\*\n\n{header}", text)


def test_ratios_are_of_speed_to_plain_and_the_best_and_of_time_to_products_and_the_limit() -> None:
    model, exact = (ModelConfig(depth=2, width=10, weights=weights) for weights in ("unit_rows", "orthogonal"))
    names = ("plain", "plain_compiled", "bsnn", "products", "arithmetic", "traffic")
    specs = [contestants.Spec(name, 1, model) for name in names] + [contestants.Spec("bsnn", 4, model)]
    specs += [contestants.Spec(name, 1, exact) for name in ("bsnn", "arithmetic")]
    times = np.array([[12.0, 8, 4, 3, 1, 2, 16, 9, 3], [120, 80, 40, 30, 20, 10, 160, 90, 30]])
    times = np.concatenate([times, times[:1]])
    ours, fleet, orthogonal = (bench.measures(i, specs, times) for i in (2, 6, 7))
    assert ours["ratio_to_plain"] == fleet["ratio_to_plain"] == 3
    assert ours["ratio_to_best"] == fleet["ratio_to_best"] == 2
    assert (ours["ratio_to_limit"], ours["limit_ms"]) == (2, 2e3)  # the slower one of each round counts
    assert ours["ratio_to_products"] == pytest.approx(4 / 3)
    assert (orthogonal["ratio_to_limit"], orthogonal["ratio_to_products"]) == (3, None)
    assert fleet["ratio_to_limit"] is None  # none of its size was timed
    assert fleet["network_steps_per_s"] == 4 / 16
    assert bench.measures(0, specs[:1], times[:, :1])["ratio_to_best"] == 1


def test_the_limits_are_all_operations_and_all_bytes_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, device = ModelConfig(depth=3, width=200), torch.device("cpu")
    code = native.library(torch.float32)
    calls: dict[str, list[tuple[int, ...]]] = {"arithmetic": [], "traffic": []}
    fake = SimpleNamespace(operations_of_round=code.operations_of_round)
    fake.arithmetic = lambda rounds, _: calls["arithmetic"].append(rounds.value)
    fake.traffic = lambda _, count, write: calls["traffic"].append((count.value, write.value))
    monkeypatch.setattr(native, "library", lambda _: fake)
    with intra_op_threads(2):
        limits.arithmetic(2, model, 10, device)()
        limits.traffic(2, model, device)()
    assert sum(calls["arithmetic"]) * code.operations_of_round() == pytest.approx(3 * 3 * 2 * 2 * 10 * 200**2, rel=1e-3)
    weights = 2 * 3 * 200**2
    assert [sum(n for n, write in calls["traffic"] if write == kind) for kind in (0, 1)] == [2 * weights, 2 * weights]


@pytest.mark.parametrize(("precision", "times"), [("highest", 3), ("high", 1)])
def test_the_arithmetic_of_a_gpu_is_one_product_on_its_tensor_cores(
    precision: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on the CPU: in fp32 three times as many operations, as each product is made of three."""
    monkeypatch.setattr(limits, "SIDE", 100)
    before, made, mm = torch.get_float32_matmul_precision(), [], torch.mm

    def note(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        made.append((2 * left.numel() * right.shape[1], torch.get_float32_matmul_precision()))
        return mm(left, right, out=out)

    monkeypatch.setattr(torch, "mm", note)
    try:
        torch.set_float32_matmul_precision(precision)
        limits._large_product(1_000_000, torch.device("cpu"))()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert made == [(times * 1_000_000, "high")]


def test_the_limit_kernels_do_what_they_are_timed_for() -> None:
    code = native.library(torch.float32)
    values = torch.full((code.operations_of_round(),), 3.0)
    code.arithmetic(ctypes.c_int64(2), ctypes.c_void_p(values.data_ptr()))
    changed = values != 3
    assert 2 * changed.sum() == code.operations_of_round()  # a product and a sum of each
    assert (values[changed] == 1.5).all()  # 3 → 2 → 1.5
    code.traffic.restype = ctypes.c_float
    many = torch.arange(640, dtype=torch.float32)
    arguments = ctypes.c_void_p(many.data_ptr()), ctypes.c_int64(640)
    assert code.traffic(*arguments, ctypes.c_int64(0)) == many.sum()
    code.traffic(*arguments, ctypes.c_int64(1))
    assert torch.equal(many, 1 - torch.arange(640, dtype=torch.float32))


def test_without_a_compiler_there_is_no_limit_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda _: "the C kernels cannot be compiled (no)")
    bench.run(tiny(tmp_path, quick=True))
    table = pd.read_csv(tmp_path / "bench" / "bench.csv").set_index("implementation")
    assert list(table.index) == ["plain", "bsnn", "products"]
    assert table.limit_ms.isna().all()


@pytest.mark.parametrize(
    "options", [{"weights": "orthogonal"}, {"weights": "weight_norm"}, {"norm": "layer"}, {"residual": True}]
)
def test_only_what_has_a_plain_counterpart_is_compared(options: dict[str, object], tmp_path: Path) -> None:
    config = tiny(tmp_path)
    config.model = ModelConfig(depth=2, width=10, **options)
    with pytest.raises(ConfigError, match="model: "):
        bench.run(config)


def test_compiling_is_asked_for(tmp_path: Path) -> None:
    dataset = bench.present(DatasetConfig(kind="digits"))
    for wanted in (False, True):
        _, first = next(bench.comparisons(tiny(tmp_path, compile=wanted), dataset))
        assert ("plain_compiled" in [spec.implementation for spec in first]) == wanted


@pytest.mark.parametrize("implementation", ["plain", "plain_dataloader", "plain_fused", "bsnn"])
def test_every_step_trains_on_a_batch(implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    cross_entropy = torch.nn.functional.cross_entropy
    if implementation != "bsnn":
        monkeypatch.setattr(
            torch.nn.functional, "cross_entropy", lambda *of: losses.append(cross_entropy(*of)) or losses[-1]
        )
    config = tiny(tmp_path, activation=ActivationConfig(name="tanh"))
    config.optim.lr = 0.1
    spec = contestants.Spec(implementation, 2 if implementation == "bsnn" else 1, config.model)
    step = contestants.build(spec, config, bench.present(config.dataset))
    if implementation == "bsnn":
        losses = [step() for _ in range(200)]
        assert losses[0].shape == (2,)
    else:
        for _ in range(200):
            step()
    losses = torch.stack(losses).detach()
    assert len(losses) == 200
    assert losses[-20:].mean() < 0.6 * losses[:5].mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_limit_is_the_larger_of_arithmetic_and_bytes(tmp_path: Path) -> None:
    config = tiny(tmp_path, networks=[1, 3])
    config.device = "cuda"
    bench.run(config)
    table = pd.read_csv(tmp_path / "bench" / "bench.csv").set_index("implementation")
    assert {"products", "arithmetic", "traffic", "bsnn", "plain"} < set(table.index)
    assert (table.loc[["arithmetic", "traffic"], "ratio_to_limit"] <= 1).all()
    assert (table.peak_memory_mb > 0).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_on_a_gpu_write_in_memory_of_their_own() -> None:
    """A graph does not keep what it works on: all others would be timed, and be wrong, on what it leaves in theirs."""
    device, model = torch.device("cuda"), ModelConfig(depth=3, width=100)
    step = limits.products(2, model, 5, device)
    others = [torch.zeros(2, 3, 100, 100, device=device) for _ in range(4)]
    others += [torch.zeros(3, 2, 5, 100, device=device) for _ in range(4)]
    step()
    torch.cuda.synchronize()
    assert not any(other.any() for other in others)


def test_a_file_of_an_earlier_version_with_rows_of_lightning_is_still_told() -> None:
    recorded = Path(__file__).parents[1] / "docs" / "results" / "bench"
    text = bench_table.describe(pd.read_csv(recorded / "bench.csv"), "MNIST", torch.device("cpu"))
    assert "| Lightning " in text
    table = text[text.index("**") :]
    written = (recorded / "bench.md").read_text()
    assert table == written[written.index("**") :]


def test_batches_cover_an_epoch_without_repetition() -> None:
    order = contestants.batches(23, 2, 5, torch.device("cpu"))
    epoch = torch.cat(list(itertools.islice(order, 4)), dim=1)
    assert epoch.shape == (2, 20)
    assert all(len(set(row.tolist())) == 20 for row in epoch)
    assert next(order).shape == (2, 5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_products_are_all_of_a_step(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARALLEL_WIDTH", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(limits, "timed", lambda *_: np.array([[2.0, 1.0] if shared else [1.0, 2.0]]))
    step = limits.products(2, ModelConfig(depth=3, width=4), 5, torch.device("cpu"))
    made = []
    bmm, baddbmm_ = torch.bmm, Tensor.baddbmm_

    def note(product: object, *args: Tensor, **options: object) -> object:
        made.append(args[-2].data_ptr() if product is baddbmm_ else args[-1].data_ptr())
        return product(*args, **options)

    monkeypatch.setattr(torch, "bmm", lambda *args, **options: note(bmm, *args, **options))
    monkeypatch.setattr(Tensor, "baddbmm_", lambda *args, **options: note(baddbmm_, *args, **options))
    step()
    assert sorted(Counter(made).values()) == ([1] * 3 + [4] * 3 if shared else [1] * 3 + [2] * 3)


def test_the_command_times_what_is_there_and_fetches_nothing(tmp_path: Path) -> None:
    result = run_bsnn("bench", "quick=true", "rounds=1", "model.depth=20", "model.width=200", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mnist is not in data; timing with digits" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    table = pd.read_csv(tmp_path / "outputs" / "bench" / "bench.csv").set_index("implementation")
    assert list(table.index) == ["plain", "bsnn", "products", "arithmetic", "traffic"]
    weights_and_momentum = 2 * 20 * 200 * 200 * 4 / 1e6
    assert (table.peak_memory_mb.drop("arithmetic") > 0.5 * weights_and_momentum).all()
    assert (table.peak_memory_mb < 200).all()
    assert "| bsnn" in result.stdout
