"""Signals in any module: against autograd by hand, against `propagate`, and with the module left as it was."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from bsnn_cli import GPN, UnitRows, coordinate_check, measure, verdict
from bsnn_cli.common.random_streams import stream
from bsnn_cli.errors import ConfigError
from bsnn_cli.measuring import propagation
from bsnn_cli.measuring.propagation import Layers, gaussian_passage
from bsnn_cli.measuring.records import OUTPUT, LayerRecord, summarise
from bsnn_cli.measuring.verdict import judge
from bsnn_cli.networks.network import Network
from bsnn_cli.settings.config import ActivationConfig, ModelConfig

B = 6
CPU = torch.device("cpu")
OF_LAYER = ("forward_norm", "one_minus_cosine", "gradient_norm")
OF_ACTIVATION = (
    "backward_norm",
    "preactivation_mean",
    "preactivation_variance",
    "derivative_mean",
    "derivative_std",
    "pseudo_linearity",
    "saturated",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp(depth: int = 3, act: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(8, 8), act())])


class Block(nn.Module):
    """A residual block whose activation is called twice, in place or not."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.second(self.act(self.norm(self.first(x)))))
        return out


def cnn(inplace: bool = False) -> nn.Sequential:
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(nn.Conv2d(2, 4, 1), Block(inplace), Block(inplace), head)


IMAGES = (B, 2, 4, 4)
TRANSFORMER = (B, 5, 8)


def transformer(dropout: float = 0.0) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True, activation=nn.GELU())


# the numbers


def by_hand(module: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """(name, module, input with its gradient) of each call of a module without children, or attention; float64."""
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(child: nn.Module, given: tuple[Tensor, ...]) -> None:
            given[0].retain_grad()
            calls.append((name, child, given[0]))

        return hook

    module = copy.deepcopy(module)
    attention = [child for child in module.modules() if isinstance(child, nn.MultiheadAttention)]
    for name, child in module.named_modules():
        if child in attention or not any(child.children()):
            child.register_forward_pre_hook(keep(name))
    out = module(x.clone().requires_grad_() * 1)
    out.backward(torch.randn(out.shape, generator=stream(0, "top gradient")).to(out))
    return calls


@pytest.mark.parametrize(
    ("build", "shape"), [(mlp, (B, 8)), (cnn, IMAGES), (transformer, TRANSFORMER)], ids=["mlp", "cnn", "transformer"]
)
@pytest.mark.parametrize("training", [True, False])
def test_rows_equal_autograd_by_hand(build: Callable[[], nn.Module], shape: tuple[int, ...], training: bool) -> None:
    """In float64, where both sum in other orders: 1e-12."""
    module, x = build().double().train(training), torch.randn(shape, dtype=torch.float64)
    frame = measure(module, x)
    calls = by_hand(module, x)
    assert list(frame["module"]) == [name for name, _, _ in calls] + [OUTPUT]
    assert list(frame["layer"]) == list(range(1, len(calls) + 2))
    for (_, row), (_, child, given) in zip(frame.iterrows(), calls, strict=False):
        assert given.grad is not None
        values, exactly = given.detach().flatten(1), lambda value: pytest.approx(value, rel=1e-12)
        assert row["kind"] == type(child).__name__
        assert row["forward_norm"] == exactly(float((values**2).mean()))
        assert row["backward_norm"] == exactly(float((given.grad**2).mean()))
        cosines = F.cosine_similarity(values[:, None], values[None], dim=2)
        assert row["one_minus_cosine"] == exactly(1 - float((cosines.sum() - B) / (B * (B - 1))))
        weights = [p for name, p in child.named_parameters() if "bias" not in name]
        assert row["weights"] == sum(weight.numel() for weight in weights if weight.dim() > 1)
        if weights:
            squares = sum(float((weight.grad**2).sum()) for weight in weights if weight.grad is not None)
            assert row["gradient_norm"] == exactly(math.sqrt(squares) / B)
        else:
            assert math.isnan(row["gradient_norm"])
        if isinstance(child, (nn.Tanh, nn.ReLU, nn.GELU)):
            h = given.detach().clone().requires_grad_()
            child.forward(h).sum().backward()
            assert h.grad is not None
            assert row["preactivation_mean"] == exactly(float(given.detach().mean()))
            assert row["preactivation_variance"] == exactly(float(given.detach().var(correction=0)))
            assert row["derivative_mean"] == exactly(float(h.grad.mean()))
            assert row["derivative_std"] == exactly(float(h.grad.std(correction=0)))
            largest = 1 if not isinstance(child, nn.GELU) else 1.1289
            assert row["saturated"] == float((h.grad.abs() < 0.01 * largest).double().mean())
            r = [
                np.corrcoef(a, b)[0, 1]
                for a, b in zip(values.T, child.forward(values).T, strict=True)
                if a.std() * b.std()
            ]
            assert row["pseudo_linearity"] == exactly(float(np.mean(np.square(r))))
        else:
            assert math.isnan(row["derivative_mean"])
    out = (module if training else module.eval())(x).detach()
    assert frame["forward_norm"].iloc[-1] == pytest.approx(float((out**2).mean()), rel=1e-12)


MODELS = {
    "gpn": (ModelConfig(), True),
    "plain": (ModelConfig(weights="free"), False),
    "weight norm": (ModelConfig(weights="weight_norm", init="he_normal"), True),
    "spectral norm": (ModelConfig(weights="spectral_norm", init="glorot_uniform"), False),
    "residual": (ModelConfig(residual=True, norm="layer"), True),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_the_built_in_network_measures_as_propagate_does_bit_for_bit(case: str, name: str) -> None:
    model, gpn = MODELS[case]
    model.depth, model.width = 5, 20
    activation = ActivationConfig(name=name, gpn=gpn)
    passage = gaussian_passage(B, (20, 20), 3, CPU, torch.float32)
    layers = Layers(model, activation, 3, None, CPU, torch.float32)
    rows = propagation.measure(layers, activation, passage, [5], lambda: None).layers
    hidden = nn.Sequential(*Network(model, activation, 4, 3, 3).hidden)
    for layer in hidden:
        layer.linear.eval()
    frame = measure(hidden, passage.x, seed=3)
    linear, nonlinear = frame[frame["kind"] == "Linear"], frame[frame["kind"] == ("GPN" if gpn else "Phi")]
    for record, (_, first), (_, second) in zip(rows[:-1], linear.iterrows(), nonlinear.iterrows(), strict=True):
        assert [first[key] for key in OF_LAYER] == [getattr(record, key) for key in OF_LAYER]
        assert [second[key] for key in OF_ACTIVATION] == [getattr(record, key) for key in OF_ACTIVATION]
    end: LayerRecord = rows[-1]
    assert list(frame.iloc[-1][["forward_norm", "one_minus_cosine"]]) == [end.forward_norm, end.one_minus_cosine]
    summary = {key: value if math.isfinite(value) else None for key, value in vars(summarise(rows)).items()}
    assert verdict(frame) == judge(summary | {"depth": 5})


def test_batch_norm_measures_as_propagate_does_to_float32_rounding() -> None:
    """PyTorch normalises a batch by another kernel where gradients are wanted; 200 roundings of 6e-8 are allowed."""
    model, activation = ModelConfig(depth=5, width=20, norm="batch"), ActivationConfig(name="tanh")
    passage = gaussian_passage(B, (20, 20), 3, CPU, torch.float32)
    layers = Layers(model, activation, 3, None, CPU, torch.float32)
    rows = propagation.measure(layers, activation, passage, [5], lambda: None).layers
    frame = measure(nn.Sequential(*Network(model, activation, 4, 3, 3).hidden), passage.x, seed=3)
    linear, nonlinear = frame[frame["kind"] == "Linear"], frame[frame["kind"] == "GPN"]
    for record, (_, first), (_, second) in zip(rows[:-1], linear.iterrows(), nonlinear.iterrows(), strict=True):
        assert [first[key] for key in OF_LAYER] == pytest.approx([getattr(record, key) for key in OF_LAYER], rel=1.2e-5)
        assert second["backward_norm"] == pytest.approx(record.backward_norm, rel=1.2e-5)


def test_a_loss_gives_each_sample_its_own_gradient() -> None:
    module, x, labels = nn.Sequential(mlp(), nn.Linear(8, 3)).double(), torch.randn(B, 8).double(), torch.arange(B) % 3
    mean = measure(module, x, lambda out: F.cross_entropy(out, labels))
    single = measure(module, x, lambda out: F.cross_entropy(out, labels, reduction="none"))
    pd.testing.assert_frame_equal(mean, single, rtol=1e-12)
    inputs = x.clone().requires_grad_()
    F.cross_entropy(module(inputs), labels).backward()
    assert inputs.grad is not None
    assert mean["backward_norm"].iloc[0] == pytest.approx(float(((B * inputs.grad) ** 2).mean()), rel=1e-12)
    assert mean["gradient_norm"].iloc[0] == pytest.approx(float(module[0][0].weight.grad.norm()), rel=1e-12)


def test_a_shared_layer_has_a_gradient_for_each_of_its_calls() -> None:
    layer, x = nn.Linear(8, 8).double(), torch.randn(B, 8).double()
    twice, twin = nn.Sequential(layer, nn.Tanh(), layer), nn.Sequential(layer, nn.Tanh(), copy.deepcopy(layer))
    shared, apart = measure(twice, x), measure(twin, x)
    assert list(shared["module"]) == ["0", "1", "0", OUTPUT]
    assert list(shared["call"]) == [0, 0, 1, 0]
    np.testing.assert_array_equal(shared["gradient_norm"], apart["gradient_norm"])
    assert shared["gradient_norm"][0] != shared["gradient_norm"][2]


def test_in_place_activations_measure_as_others_do() -> None:
    plain, x = cnn(), torch.randn(IMAGES)
    changing = cnn(inplace=True)
    changing.load_state_dict(plain.state_dict())
    pd.testing.assert_frame_equal(measure(plain, x), measure(changing, x), rtol=0, atol=0)


class OnView(nn.Module):
    """Changes a view in place, and goes on with the tensor behind it or with the view."""

    def __init__(self, act: nn.Module, behind: bool) -> None:
        super().__init__()
        self.first, self.act, self.last, self.behind = nn.Conv2d(2, 4, 1), act, nn.Linear(64, 3), behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.behind and self.act.inplace:
            self.act(x.flatten(1))
        else:
            x = self.act(x.flatten(1))
        out: Tensor = self.last(x.flatten(1))
        return out


@pytest.mark.parametrize("behind", [True, False])
def test_a_view_may_be_changed_in_place(behind: bool) -> None:
    plain, changing, x = OnView(nn.ReLU(), behind), OnView(nn.ReLU(inplace=True), behind), torch.randn(IMAGES)
    changing.load_state_dict(plain.state_dict())
    pd.testing.assert_frame_equal(measure(plain, x), measure(changing, x), rtol=0, atol=0)


def test_the_weight_of_a_parametrised_layer_is_the_one_that_is_used() -> None:
    x = torch.randn(B, 8).double()
    layer = nn.Linear(8, 8).double()
    with torch.no_grad():
        layer.weight /= layer.weight.norm(dim=1, keepdim=True)
    free = measure(nn.Sequential(layer), x)
    unit = copy.deepcopy(layer)
    with torch.no_grad():
        unit.weight *= 3
    parametrize.register_parametrization(unit, "weight", UnitRows())
    parametrised = measure(nn.Sequential(unit), x)
    pd.testing.assert_frame_equal(parametrised, free, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hooked = nn.utils.weight_norm(copy.deepcopy(layer))
    older = measure(nn.Sequential(hooked), x)
    pd.testing.assert_frame_equal(older, free, rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm_in_training_mode_is_iterated_once(training: bool) -> None:
    module = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh()).train(training)
    x, twin = torch.randn(B, 8), copy.deepcopy(module)
    assert measure(module, x)["forward_norm"].iloc[-1] == pytest.approx(float((twin(x).detach() ** 2).mean()), rel=1e-5)


class Nested(nn.Module):
    """Returns tensors in a tuple in a dict, of which integers and those without a graph take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        first = self.first(x)
        return {"both": (first, scale * self.second(x)), "label": first.argmax(1), "seen": first.detach()}


def test_every_output_has_a_gradient() -> None:
    module, x = Nested().double(), torch.randn(B, 8).double()
    frame = measure(module, {"x": x, "scale": 2.0})
    generator = stream(0, "top gradient")
    first, second = (torch.randn(B, size, generator=generator).double() for size in (4, 3))
    assert list(frame["gradient_norm"][:2]) == pytest.approx(
        [float((first.T @ x).norm()) / B, 2 * float((second.T @ x).norm()) / B], rel=1e-12
    )
    assert frame["forward_norm"].iloc[-1] == pytest.approx(float((module.first(x).detach() ** 2).mean()), rel=1e-12)


def test_samples_may_be_counted_by_another_dimension() -> None:
    module, x = nn.LSTM(8, 4).double(), torch.randn(7, B, 8).double()
    frame = measure(module, x, batch_dim=1)
    values = x.transpose(0, 1).flatten(1)
    cosines = F.cosine_similarity(values[:, None], values[None], dim=2)
    assert frame["one_minus_cosine"][0] == pytest.approx(1 - float(cosines.sum() - B) / (B * (B - 1)), rel=1e-12)
    x.requires_grad_()
    out, (h, c) = module(x)
    generator = stream(0, "top gradient")
    tops = [torch.randn(value.shape, generator=generator).double() for value in (out, h, c)]
    torch.autograd.backward([out, h, c], tops)
    squares = sum(float((p.grad**2).sum()) for name, p in module.named_parameters() if "weight" in name)
    assert frame["gradient_norm"][0] == pytest.approx(math.sqrt(squares) / B, rel=1e-12)


# what is measured


class Recurrent(nn.Module):
    """Two cells, one of them called for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(5, 8), nn.LSTMCell(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        state = None
        for step in self.embed(tokens).unbind(1):
            state = self.cell(step, state)
        assert state is not None
        out: Tensor = state[0]
        return out


class Direct(nn.Module):
    """Computes with the weights of a child that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.child.weight))


class Checkpointed(nn.Module):
    """Computes its layers again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.net, x, use_reentrant=False)
        return out


def test_tokens_have_no_norm_and_cells_are_counted() -> None:
    frame = measure(Recurrent(), torch.randint(5, (B, 3)))
    assert list(frame["module"]) == ["embed", "cell", "cell", "cell", OUTPUT]
    assert list(frame["call"]) == [0, 0, 1, 2, 0]
    assert frame.loc[0, ["forward_norm", "one_minus_cosine", "backward_norm"]].isna().all()
    assert (frame["gradient_norm"][:4] > 0).all()


def test_a_module_that_calls_none_of_its_children_is_a_layer() -> None:
    module, x = Direct().double(), torch.randn(B, 8).double()
    frame = measure(nn.Sequential(module, nn.Linear(8, 2).double()), x)
    assert list(frame["module"]) == ["0", "1", OUTPUT]
    by_function = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2)).double()
    by_function[0].weight, by_function[2] = module.child.weight, nn.Linear(8, 2).double()
    torch.manual_seed(0)
    assert frame["gradient_norm"][0] > 0
    assert frame["weights"][0] == 64


def test_recomputed_layers_are_measured_once() -> None:
    module, x = Checkpointed(), torch.randn(B, 8)
    plain = measure(module.net, x)
    frame = measure(module, x)
    assert list(frame["module"]) == [*(f"net.{name}" for name in plain["module"][:-1]), OUTPUT]
    np.testing.assert_array_equal(frame["gradient_norm"], plain["gradient_norm"])


class Catches(nn.Module):
    """Tries one layer, and takes another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        try:
            out: Tensor = self.first(x)
        except RuntimeError:
            out = self.second(x)
        return out


def test_a_call_that_fails_and_is_caught_is_none() -> None:
    assert list(measure(Catches(), torch.randn(B, 8))["module"]) == ["second", OUTPUT]


def test_tied_weights_have_a_gradient_in_each_layer() -> None:
    embed, head = nn.Embedding(5, 8).double(), nn.Linear(8, 5, bias=False).double()
    apart, tokens = nn.Sequential(embed, head), torch.randint(5, (B, 3))
    with torch.no_grad():
        head.weight.copy_(embed.weight)
    tied = copy.deepcopy(apart)
    tied[1].weight = tied[0].weight
    pd.testing.assert_frame_equal(measure(tied, tokens), measure(apart, tokens), rtol=1e-12)


def test_frozen_weights_have_gradients_too() -> None:
    module, x = cnn(), torch.randn(IMAGES)
    trained = measure(module, x)
    pd.testing.assert_frame_equal(measure(module.requires_grad_(False), x), trained, rtol=0, atol=0)
    assert not any(p.requires_grad for p in module.parameters())


def test_dropout_is_a_function_of_the_seed_and_no_activation() -> None:
    module, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Softmax(1), nn.Identity()), torch.randn(B, 8)
    first, again, other = measure(module, x), measure(module, x), measure(module, x, seed=1)
    pd.testing.assert_frame_equal(first, again, rtol=0, atol=0)
    assert first["forward_norm"][2] != other["forward_norm"][2]
    assert first["derivative_mean"].isna().all()
    assert measure(module.eval(), x)["derivative_mean"].isna().all()
    assert first["forward_norm"][2] != measure(module, x)["forward_norm"][2]


ACTIVATIONS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "ReLU6": (nn.ReLU6(), lambda h: ((h > 0) & (h < 6)).double()),
    "PReLU": (nn.PReLU(8, init=0.5), lambda h: torch.where(h > 0, h / h, 0.5)),
    "RReLU": (nn.RReLU(0.2, 0.4).eval(), lambda h: torch.where(h > 0, h / h, 0.3)),
    "ELU in place": (nn.ELU(inplace=True), lambda h: torch.where(h > 0, h / h, h.exp())),
    "GPN": (GPN("tanh"), lambda h: GPN("tanh").a / torch.cosh(h) ** 2),
    "GPN of a module": (GPN(nn.Tanh()), lambda h: GPN("tanh").a / torch.cosh(h) ** 2),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_of_every_activation(name: str) -> None:
    act, slope = ACTIVATIONS[name]
    x = 3 * torch.randn(B, 8).double()
    row = measure(copy.deepcopy(act).double(), x.clone()).iloc[0]
    assert row["derivative_mean"] == pytest.approx(float(slope(x).mean()), rel=1e-10)
    assert row["kind"] == name.split()[0]


class Own(nn.Module):
    """An activation that nobody knows."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.sin(h) + h


def test_an_activation_of_one_s_own_is_recognised() -> None:
    x = torch.randn(B, 8)
    assert measure(mlp(1, Own), x)["derivative_mean"][1] == pytest.approx(
        float((torch.cos(mlp_of_one(x)) + 1).mean()), rel=1e-6
    )


def mlp_of_one(x: Tensor) -> Tensor:
    """The preactivations of `mlp(1)`, which the fixture's seed makes."""
    torch.manual_seed(0)
    _ = torch.randn(B, 8)
    with torch.no_grad():
        out: Tensor = mlp(1)[0](x)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_near_full(dtype: torch.dtype) -> None:
    module, x = mlp(), torch.randn(B, 8)
    full, half = measure(module, x), measure(copy.deepcopy(module).to(dtype), x.to(dtype))
    with torch.autocast("cpu", dtype):
        cast = measure(module, x)
    for frame in (half, cast):
        for key in ("forward_norm", "backward_norm", "gradient_norm", "derivative_mean"):
            assert frame[key].dropna().to_numpy() == pytest.approx(full[key].dropna().to_numpy(), rel=0.05), key
    assert (half["forward_norm"] != full["forward_norm"]).any()


def test_of_a_compiled_module_the_original_is_measured() -> None:
    module, x = mlp(), torch.randn(B, 8)
    plain = measure(module, x)
    outer, inner = torch.compile(module, backend="eager"), nn.Sequential(torch.compile(mlp(), backend="eager"))
    pd.testing.assert_frame_equal(measure(outer, x), plain, rtol=0, atol=0)
    outer(x)
    pd.testing.assert_frame_equal(measure(outer, x), plain, rtol=0, atol=0)
    assert list(measure(inner, x)["module"])[:2] == ["0.0", "0.1"]
    compiled = mlp()
    compiled.load_state_dict(module.state_dict())
    compiled.compile(backend="eager")
    compiled(x)
    pd.testing.assert_frame_equal(measure(compiled, x), plain, rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("build", "shape"), [(cnn, IMAGES), (transformer, TRANSFORMER)])
def test_a_module_on_a_gpu_measures_as_on_a_cpu(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    module, x = build().double(), torch.randn(shape, dtype=torch.float64)
    on_cpu, state = measure(module, x), torch.cuda.get_rng_state()
    pd.testing.assert_frame_equal(measure(module.cuda(), x.cuda()), on_cpu, rtol=1e-9)
    assert torch.equal(torch.cuda.get_rng_state(), state)


# what is left behind


class Changing(nn.Module):
    """Changes all it can in its forward pass: a weight, buffers, attributes, randomness, what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.net = nn.Embedding(5, 8, max_norm=0.1), nn.BatchNorm1d(8), mlp()
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.cache, self.fails = 0, {"last": 1}, False

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        self.made = x.shape
        self.cache["last"] = self.calls
        self.steps = self.steps + 1
        self.net[0].weight.data.mul_(1.5)
        self.train()
        x.mul_(2).add_(random.random() + np.random.rand())
        out: Tensor = self.net(self.norm(F.dropout(x + self.embed(tokens).sum(1))))
        if self.fails:
            raise ValueError("on purpose")
        return out


def state(module: nn.Module) -> list[object]:
    """Everything about a module and the generators, tensors as bytes."""

    def plain(value: object) -> object:
        if isinstance(value, Tensor):
            grad = None if value.grad is None else plain(value.grad)
            return value.detach().contiguous().numpy().tobytes(), id(value), value.requires_grad, grad
        if isinstance(value, dict):
            return [(key, plain(item)) for key, item in value.items()]
        return value

    children = [(name, type(child), plain(vars(child))) for name, child in module.named_modules()]
    return [children, torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails: bool) -> None:
    module, tokens, x = Changing().eval(), torch.randint(5, (B, 3)), torch.randn(B, 8)
    module.net[2].weight.grad = torch.ones(8, 8)
    module.net[4].weight.requires_grad_(False)
    parametrizations.spectral_norm(module.net[4])
    module.net[0].register_forward_hook(lambda *_: None)
    module.fails = fails
    before, given = state(module), x.clone()
    if fails:
        with pytest.raises(ConfigError, match=r"the forward pass fails: Changing \(ValueError: on purpose\)"):
            measure(module, (tokens, x))
    else:
        measure(module, (tokens, x))
    assert state(module) == before
    assert torch.equal(x, given)
    assert x.grad is None
    assert not x.requires_grad


def test_it_works_where_gradients_are_off() -> None:
    module, x = mlp(), torch.randn(B, 8)
    plain = measure(module, x)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            pd.testing.assert_frame_equal(measure(module, x), plain, rtol=0, atol=0)


# what is refused, or warned of


class Fails(nn.Module):
    """Has a layer deep inside that does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(9, 8)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Labels(nn.Module):
    """Returns integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.script(mlp())
    return module


X = torch.randn(B, 8, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[], object], object, dict[str, Any], str]] = {
    "function": (lambda: torch.tanh, X, {}, "takes an nn.Module, not builtin_function_or_method"),
    "script": (lambda: nn.Sequential(scripted()), X, {}, "0 is a TorchScript module"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), X, {}, "0.weight has no shape yet"),
    "parallel": (lambda: nn.DataParallel(mlp()), X, {}, "wrapped for several devices (DataParallel)"),
    "meta": (lambda: mlp().to("meta"), X, {}, "0.weight has no values"),
    "integers": (Labels, X, {}, "Labels returns no tensor of a floating dtype, but torch.int64"),
    "failing": (Fails, X, {}, "the forward pass fails: Fails, in net.1.0 (RuntimeError"),
    "shape": (mlp, torch.randn(B, 9), {}, "the forward pass fails: Sequential, in 0 (RuntimeError"),
    "no tensor": (mlp, 3, {}, "inputs has no tensor, but is int"),
    "no batch": (mlp, torch.randn(0, 8), {}, "has no samples along batch_dim=0"),
    "dimension": (mlp, X, {"batch_dim": 2}, "has no samples along batch_dim=2"),
    "arguments": (mlp, (X, X), {}, "the forward pass fails: Sequential (TypeError"),
    "failing loss": (mlp, X, {"loss": lambda out: out.nonsense}, "the loss fails (AttributeError"),
    "shape of loss": (mlp, X, {"loss": lambda out: out}, "the loss returns a tensor of shape (6, 8)"),
    "number": (mlp, X, {"loss": lambda out: 1.0}, "the loss returns float"),  # noqa: ARG005
    "constant loss": (mlp, X, {"loss": lambda out: out.detach().mean()}, "the loss has no gradient"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(case: str) -> None:
    build, inputs, options, words = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        measure(build(), inputs, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert str(caught.value).startswith("measure: ")
    assert "\n" not in str(caught.value)


class Cut(nn.Module):
    """Cuts the graph between its layers."""

    def __init__(self, without: bool) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.without = without

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x.clone())
        with torch.set_grad_enabled(not self.without):
            middle = self.first(x.clone())
        out: Tensor = self.second(middle.detach())
        return out


@pytest.mark.parametrize("without", [True, False])
def test_a_broken_graph_is_warned_of(without: bool) -> None:
    with pytest.warns(UserWarning, match="no gradient comes back to unused, first, second"):
        frame = measure(Cut(without), torch.randn(B, 8))
    assert list(frame["module"]) == ["unused", "first", "second", OUTPUT]
    assert frame["backward_norm"][0] == 0
    assert math.isnan(frame["backward_norm"][2])
    assert list(frame["gradient_norm"][:2]) == [0, 0]
    assert frame["gradient_norm"][2] > 0


def test_a_module_without_parameters_is_measured() -> None:
    frame = measure(nn.ReLU(), torch.randn(B, 8))
    assert list(frame["kind"]) == ["ReLU", "ReLU"]
    assert verdict(frame)[1] == "no gradients of weights, as there are none"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: nn.Softplus(), ["signal keeps its length", "inputs become alike"]),
        (lambda: nn.Sigmoid(), ["gradients vanish"]),
        (lambda: GPN("tanh"), ["signal keeps its length", "gradients keep their size"]),
    ],
)
def test_the_verdict_names_what_happens(act: Callable[[], nn.Module], words: list[str]) -> None:
    module = nn.Sequential(*[layer for _ in range(30) for layer in (nn.Linear(100, 100, bias=False), act())])
    for layer in module[::2]:
        nn.init.orthogonal_(layer.weight)
    text = "; ".join(verdict(measure(module, torch.randn(20, 100))))
    assert all(word in text for word in words), text


# against the width


def perceptron(width: int, scale: float = 1.0) -> nn.Module:
    net = nn.Sequential(nn.Linear(10, width, bias=False), nn.Linear(width, width, bias=False), nn.Linear(width, 1))
    for layer in net:
        nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.in_features))
    return net


def test_a_coordinate_check_finds_the_powers_of_the_width() -> None:
    """Lengths per unit keep; the gradient per unit is that of one output over n units; weights of size 1 grow by n."""
    x = torch.randn(50, 10)
    table = coordinate_check(perceptron, (32, 64, 128, 256), x, seeds=range(4))
    assert list(table["module"]) == ["0", "1", "2", OUTPUT]
    np.testing.assert_allclose(table["forward_norm"][:3], 0, atol=0.1)
    np.testing.assert_allclose(table["backward_norm"][1:3], -1, atol=0.15)
    large = coordinate_check(lambda width: perceptron(width, math.sqrt(width)), (32, 64, 128, 256), x, seeds=range(4))
    np.testing.assert_allclose(large["forward_norm"][:3], [0, 1, 2], atol=0.15)


def test_a_coordinate_check_needs_the_same_layers_at_two_widths() -> None:
    x = torch.randn(5, 10)
    with pytest.raises(ConfigError, match="needs at least two widths"):
        coordinate_check(perceptron, (32, 32), x)
    with pytest.raises(ConfigError, match="at width 3 other layers are called than at 2"):
        coordinate_check(lambda width: nn.Sequential(*[nn.Linear(10, 10)] * width), (2, 3), x)
    table = coordinate_check(lambda width: (nn.Linear(width, width), torch.randn(B, width)), (16, 32))
    assert table["gradient_norm"][0] == pytest.approx(1, abs=0.3)
