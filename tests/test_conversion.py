"""`normalise`: which activations and weights of a network it changes, to what, and what it leaves and says so."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from bsnn_cli import GPN, UnitRows, normalise
from bsnn_cli.errors import BsnnError, ConfigError


def cnn() -> nn.Sequential:
    """Three convolutions with activations of three kinds, one of them in place, and a head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.GELU("tanh")),
        *(nn.Flatten(), nn.Linear(6 * 4 * 4, 5)),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def left(table: object) -> dict[str, str]:
    """Reasons by module and parameter."""
    rows = table[table["change"] == "left"]  # type: ignore[index]
    return {".".join(filter(None, pair)): reason for *pair, reason in rows[["module", "parameter", "reason"]].values}


def test_a_network_becomes_what_its_parts_say() -> None:
    """The converted network, against one written by hand from the constants and from its weights."""
    net = cnn()
    table = normalise(net)
    assert list(table.columns) == ["module", "kind", "parameter", "change", "reason"]
    assert list(table["module"]) == ["0", "1", "2", "3", "4", "5", "7"]
    assert list(table["change"]) == [
        "delta-semi-orthogonal × 1.63; bias 0",
        "activation → GPN(ReLU, a=1.414, b=0, root=upper)",
        "delta-orthogonal; bias 0",
        "activation → GPN(Tanh, a=1.467, b=0.3885, root=upper)",
        "delta-semi-orthogonal; bias 0",
        "activation → GPN(GELU, a=1.481, b=-0.9094, root=lower)",
        "semi-orthogonal; bias 0",
    ]
    assert table["reason"][0] == "3 → 8 units: squared gradients per unit × 2.67"
    x = torch.randn(2, 3, 4, 4)
    a, b = net[5].a, net[5].b
    h = math.sqrt(2) * F.relu(F.conv2d(x, net[0].weight, padding=1))
    h = net[3].a * torch.tanh(F.conv2d(h, net[2].weight, padding=1)) + net[3].b
    h = a * F.gelu(F.conv2d(h, net[4].weight, padding=1), approximate="tanh") + b
    torch.testing.assert_close(net(x), h.flatten(1) @ net[7].weight.T)


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()),
        *(nn.Mish(), nn.Softplus(), nn.Softsign(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Hardswish()),
        *(nn.Hardtanh(), nn.ReLU6(), nn.Hardsigmoid(), nn.Softshrink(), nn.Tanhshrink(), nn.PReLU()),
        *(nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.Hardswish(inplace=True)),
    ],
    ids=str,
)
def test_every_elementwise_activation_of_pytorch_is_replaced(activation: nn.Module) -> None:
    net = nn.Sequential(nn.Identity(), activation)
    expected = GPN(copy.deepcopy(activation))
    table = normalise(net)
    assert len(table) == 1
    assert table["change"].item().startswith(f"activation → GPN({type(activation).__name__}, a=")
    h = torch.linspace(-4, 4, 50)
    before = h.clone()
    torch.testing.assert_close(net(h), expected(h), rtol=0, atol=0)
    assert torch.equal(h, before)


class Bent(nn.Module):
    """An elementwise module of a user's, without parameters."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.where(h > 0.4, h, 0.3 * h + 0.28)


class Swish(nn.Module):
    """One with a single parameter, as PReLU has."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.sigmoid(self.beta * h)


class NoisyInTraining(nn.Module):
    """Elementwise in evaluation only."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h + 0.1 * torch.randn_like(h)) if self.training else torch.tanh(h)


class Scale(nn.Module):
    """A linear function of one parameter, which is there on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * h


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h)


def test_what_cannot_be_copied_is_left() -> None:
    net = nn.Sequential(Locked(), nn.Tanh())
    assert "cannot pickle" in left(normalise(net))["0"]
    assert isinstance(net[1], GPN)


def test_activations_of_a_user_are_replaced_where_they_can_be() -> None:
    net = nn.Sequential(Bent(), Swish(), Scale(), NoisyInTraining().eval(), GPN("tanh"))
    kept = list(net)
    table = normalise(net)
    assert [type(module) for module in net] == [GPN, GPN, Scale, NoisyInTraining, GPN]
    assert net[4] is kept[4]
    assert net[1].activation is kept[1]
    assert "drift as these are trained" in table["reason"][1]
    reasons = left(table)
    assert reasons["2"].startswith("linear")
    assert "another function in training than in evaluation" in reasons["3"]
    assert reasons["4"] == "is normalised already"


@pytest.mark.parametrize(
    ("module", "words", "matters"),
    [
        (nn.RReLU(), "another function in training", True),
        (nn.GLU(), "GLU", True),
        (nn.Hardshrink(), "Hardshrink", True),
        (nn.Threshold(0.1, 20), "Threshold", True),
        (nn.Softmax(1), "not elementwise", False),
        (nn.Dropout(), "random", False),
        (nn.BatchNorm2d(3), "normalises by itself", False),
        (nn.LayerNorm(3), "normalises by itself", False),
        (nn.MaxPool2d(2), "an average shortens", False),
        (nn.Embedding(3, 4), "embedding", False),
        (nn.LSTMCell(3, 4), "activations inside", True),
        (nn.GRU(3, 4), "activations inside", True),
        (nn.Bilinear(3, 4, 5), "bilinear", True),
        (nn.Conv2d(3, 4, 2), "even size", True),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), "stride", True),
        (nn.LazyLinear(3), "not initialised", True),
        (nn.Linear(3, 3, device="meta"), "meta", True),
        (nn.Linear(3, 3, dtype=torch.complex64), "complex64", True),
    ],
    ids=str,
)
def test_what_is_left_is_told_with_the_reason(module: nn.Module, words: str, matters: bool) -> None:
    before = repr(module)
    net = nn.Sequential(module, nn.Tanh())
    [reason] = left(normalise(net)).values()
    assert words in reason
    assert repr(net[0]) == before
    net = nn.Sequential(module, nn.Tanh())
    if matters:
        with pytest.raises(ConfigError, match=r"^normalise\(strict=True\): would leave 1 .*0.*\(") as told:
            normalise(net, strict=True)
        assert "\n" not in str(told.value)
        assert isinstance(net[1], nn.Tanh)
    else:
        normalise(net, strict=True)


def test_the_slopes_of_a_prelu_have_to_be_equal() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.PReLU(4))
    with torch.no_grad():
        net[2].weight[1] = 0.7
    reasons = left(normalise(net))
    assert list(reasons) == ["2"]
    assert "its 4 slopes differ" in reasons["2"]
    x = torch.randn(2, 3, 5, 5)
    a = 1 / math.sqrt(0.5 * (1 + 0.25**2))
    h = net[0](x)
    torch.testing.assert_close(net[:2](x), a * F.prelu(h, torch.tensor([0.25])) + net[1].b)
    assert net[1].a == pytest.approx(a, rel=1e-9)
    assert net[1].activation.weight.requires_grad


def test_shared_modules_stay_shared_under_whatever_names() -> None:
    act = nn.ReLU(inplace=True)
    net = nn.ModuleDict({"act": act, "body": nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act)})
    table = normalise(net)
    assert [*table["module"]] == ["act", "body.0", "body.2"]
    assert isinstance(net["act"], GPN)
    assert net["act"] is net["body"][1] is net["body"][3]
    assert net["act"].activation is act


def test_training_mode_hooks_and_copies_survive() -> None:
    seen = []
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).eval()
    net[1].register_forward_hook(lambda *_: seen.append(1))
    normalise(net)
    net(torch.randn(2, 3))
    assert seen == [1]
    assert not any(module.training for module in net.modules())
    normalise(net)  # a second time changes nothing but draws the same weights again
    assert isinstance(net[1].activation, nn.Tanh)


def matrices(weight: Tensor, blocks: int) -> Tensor:
    return weight.detach().double().reshape(blocks, weight.shape[0] // blocks, -1)


def gram_error(matrices: Tensor) -> float:
    """The largest entry of MᵀM/s² − I, or of MMᵀ/s² − I where that is the smaller matrix."""
    n_out, n_in = matrices.shape[-2:]
    matrices = matrices / math.sqrt(max(1, n_out / n_in))
    small = matrices.mT @ matrices if n_in <= n_out else matrices @ matrices.mT
    return float((small - torch.eye(min(n_out, n_in), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.Linear(20, 20), {"weight": 1}),
        (nn.Linear(20, 50), {"weight": 1}),
        (nn.Linear(50, 20), {"weight": 1}),
        (nn.Conv2d(8, 12, 1, groups=4), {"weight": 4}),
        (nn.LSTMCell(6, 10), {"weight_ih": 4, "weight_hh": 4}),
        (nn.GRUCell(6, 10), {"weight_ih": 3, "weight_hh": 3}),
        (nn.RNNCell(6, 10), {"weight_ih": 1, "weight_hh": 1}),
        (nn.LSTM(6, 10, 2, proj_size=4), {"weight_ih_l0": 4, "weight_hh_l1": 4, "weight_hr_l1": 1}),
        (nn.GRU(6, 10, bidirectional=True), {"weight_hh_l0_reverse": 3}),
        (nn.MultiheadAttention(12, 3), {"in_proj_weight": 3, "out_proj.weight": 1}),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), {"q_proj_weight": 1, "k_proj_weight": 1}),
        (nn.Conv2d(3, 20, 4, stride=4), {"weight": 1}),
    ],
    ids=str,
)
def test_weights_are_made_of_orthogonal_matrices(layer: nn.Module, names: dict[str, int]) -> None:
    normalise(layer)
    parameters = dict(layer.named_parameters())
    for name, blocks in names.items():
        assert gram_error(matrices(parameters[name], blocks)) < 1e-6  # rounding of float32
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        if "bias" in name:
            assert not parameter.any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(24, 24),
        nn.Conv1d(6, 6, 5, padding=2, padding_mode="circular"),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular", groups=3),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(3, 12, 2, stride=2),
        nn.Conv2d(4, 16, 2, stride=2, groups=2),
        nn.ConvTranspose2d(12, 3, 2, stride=2),
        nn.ConvTranspose2d(16, 4, 2, stride=2, groups=2),
        nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2),
        nn.ConvTranspose1d(6, 6, 1),
    ],
    ids=str,
)
def test_square_layers_keep_lengths_exactly(layer: nn.Module) -> None:
    """Forwards and backwards. Where delta-orthogonal kernels are, padding meets zeros only, and no length is lost."""
    normalise(layer.double())
    dims = {nn.Linear: 0, nn.Conv1d: 1, nn.ConvTranspose1d: 1, nn.Conv3d: 3}.get(type(layer), 2)
    n = layer.weight.shape[1] if dims == 0 else layer.in_channels  # type: ignore[union-attr,index]
    x = torch.randn(2, n, *[8] * dims, dtype=torch.float64, requires_grad=True)  # type: ignore[arg-type]
    y = layer(x)
    g = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(y.square().sum(), x.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(back.square().sum(), g.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "layer", [nn.Linear(300, 100), nn.Linear(100, 300), nn.Conv2d(10, 30, 3), nn.ConvTranspose2d(30, 10, 3)], ids=str
)
def test_other_layers_keep_lengths_per_unit_on_average(layer: nn.Module) -> None:
    """And squared gradients per unit are multiplied by n_out/n_in. Interior of a convolution; 5 % is about 4 σ here."""
    normalise(layer)
    torch.manual_seed(0)
    wide = layer.weight.dim() == 4  # type: ignore[union-attr,operator]
    n_in = layer.in_channels if wide else layer.in_features
    n_out = layer.out_channels if wide else layer.out_features
    x = torch.randn(100, n_in, *[9] * (2 * wide), requires_grad=True)  # type: ignore[arg-type]
    y = layer(x)
    g = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, x, g)
    share = 1.0 if not wide else (81 / 121 if isinstance(layer, nn.ConvTranspose2d) else 49 / 81)
    forwards, backwards = (share, 1.0) if isinstance(layer, nn.ConvTranspose2d) else (1.0, share)
    assert float(y.detach().square().mean()) == pytest.approx(forwards, rel=0.05)
    assert float(back.square().mean()) == pytest.approx(backwards * n_out / n_in, rel=0.05)  # type: ignore[operator]


def test_numbers_depend_on_seed_and_name_alone() -> None:
    first, second = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)), nn.Sequential(nn.Tanh(), nn.Linear(5, 5))
    generator = torch.get_rng_state()
    normalise(first)
    normalise(second)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(first[1].weight, second[1].weight)
    assert not torch.equal(first[0].weight, first[1].weight)
    half = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).bfloat16().requires_grad_(False)
    normalise(half)
    assert torch.equal(half[1].weight, first[1].weight.bfloat16())
    assert not half[1].weight.requires_grad
    normalise(second, seed=1)
    assert not torch.equal(first[1].weight, second[1].weight)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_has_no_part_in_it() -> None:
    net, twin = cnn().cuda(), cnn()
    normalise(net, constraint="unit_rows")
    normalise(twin, constraint="unit_rows")
    assert net[0].weight.is_cuda
    torch.testing.assert_close(net[0].weight.cpu(), twin[0].weight, rtol=1e-6, atol=1e-7)
    assert net[1].a == twin[1].a


@pytest.mark.parametrize("mode", [torch.inference_mode(), torch.device("meta"), torch.no_grad()])
@pytest.mark.parametrize("constraint", ["unit_rows", "orthogonal"])
def test_the_modes_of_the_caller_have_no_part_in_it(mode: AbstractContextManager[None], constraint: str) -> None:
    net, twin = (nn.Sequential(nn.Linear(4, 6), nn.PReLU(3)) for _ in range(2))
    normalise(twin, constraint=constraint)
    with mode:
        normalise(net, constraint=constraint)
    assert torch.equal(net[0].weight, twin[0].weight)
    assert (net[1].a, net[1].b) == (twin[1].a, twin[1].b)
    net(torch.ones(2, 3, 4)).sum().backward()
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(4, 6))
    assert "inference mode" in left(normalise(net))["0.weight"]


def test_groups_and_gates_are_drawn_each_by_itself() -> None:
    layer = nn.Conv2d(6, 6, 1, groups=2)
    normalise(layer)
    one, other = matrices(layer.weight, 2)
    assert not torch.allclose(one, other)


def test_tied_weights_stay_tied_and_embeddings_keep_theirs() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Embedding(9, 6), nn.Linear(6, 9))
    net[1].weight = net[0].weight
    net[3].weight = net[2].weight
    before = net[3].weight.clone()
    table = normalise(net, constraint="unit_rows")
    assert net[1].weight is net[0].weight
    assert gram_error(matrices(net[0].weight, 1)) < 1e-6
    assert torch.equal(net[3].weight, before)
    reasons = dict(zip(table["module"] + table["change"], table["reason"], strict=True))
    assert reasons["1orthogonal; bias 0"] == "shared with 0.weight"
    told = [reason for reason in table["reason"] if "shared with the weight of a module of class Embedding" in reason]
    assert len(told) == 1
    assert sum("would part them" in reason for reason in table["reason"]) == 3


@pytest.mark.parametrize(
    ("wrap", "taken"),
    [
        (parametrizations.weight_norm, True),
        (parametrizations.orthogonal, True),
        (lambda layer: parametrize.register_parametrization(layer, "weight", UnitRows()), True),
        (parametrizations.spectral_norm, True),
        (lambda layer: parametrize.register_parametrization(layer, "weight", nn.Softplus()), False),
        (torch.nn.utils.spectral_norm, False),
        (lambda layer: torch.nn.utils.spectral_norm(layer).register_parameter("bias", None), False),
    ],
)
def test_parametrised_weights_are_assigned_or_left(wrap: Callable[[nn.Module], nn.Module], taken: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    wrap(net[0])
    net(torch.zeros(1, 6))
    before = state(net)
    table = normalise(net)
    assert isinstance(net[1], GPN)
    assert table["kind"][0] == "Linear"
    if taken:
        assert gram_error(matrices(net[0].weight, 1)) < 1e-5
    else:
        assert same(state(net), before)
        assert left(table)["0.weight"]


def test_a_parametrisation_that_makes_another_weight_is_left() -> None:
    """Rows of a tall semi-orthogonal matrix have unit length on average only; UnitRows would make it of each."""
    layer = nn.Linear(4, 9)
    parametrize.register_parametrization(layer, "weight", UnitRows())
    before = state(layer)
    assert "UnitRows makes another weight" in left(normalise(layer))["weight"]
    assert same(state(layer), before)


def with_unit_rows(layer: nn.Module, V: Tensor) -> Tensor:
    """The weight in which all that one output channel is computed from has length 1, channel by channel."""
    W = V.clone()
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        for group in W.chunk(layer.groups):
            for channel in range(group.shape[1]):
                group[:, channel] /= group[:, channel].square().sum().sqrt()
    else:
        for row in W:
            row /= row.square().sum().sqrt()
    return W


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Linear(5, 8), nn.Linear(8, 5), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 2)),
        *(nn.Conv3d(2, 3, (1, 3, 5)), nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2)),
        *(nn.ConvTranspose3d(6, 3, 3, groups=3), nn.ConvTranspose2d(4, 8, 1, groups=4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("weights", [None, "orthogonal"])
def test_unit_rows_are_what_the_layer_uses(layer: nn.Linear | nn.Conv2d, weights: str | None) -> None:
    layer, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    assert "unit rows" in [*normalise(layer, weights=weights, constraint="unit_rows")["change"]]
    sizes = [layer.in_features] if isinstance(layer, nn.Linear) else [layer.in_channels, *[6] * len(layer.kernel_size)]
    x = torch.randn(2, *sizes)
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.01).step()  # away from the start
    with torch.no_grad():
        plain.weight.copy_(with_unit_rows(layer, layer.get_parameter("parametrizations.weight.original").detach()))
        if plain.bias is not None and layer.bias is not None:
            plain.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize(
    ("layer", "blocks"),
    [
        (nn.Linear(6, 6), 1),
        (nn.Linear(6, 9), 1),
        (nn.Linear(9, 6), 1),
        (nn.Conv2d(6, 6, 1, groups=2), 2),
        (nn.Conv2d(4, 8, 1, stride=2, groups=2), 2),
        (nn.Conv2d(3, 12, 2, stride=2), 1),
        (nn.LSTMCell(5, 5), 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("weights", [None, "orthogonal"])
def test_exact_orthogonality_survives_training(layer: nn.Module, blocks: int, weights: str | None) -> None:
    layer = copy.deepcopy(layer)
    name = "weight_hh" if isinstance(layer, nn.LSTMCell) else "weight"
    unconstrained = copy.deepcopy(layer)
    generator = torch.get_rng_state()
    table = normalise(layer, weights=weights, constraint="orthogonal")
    assert torch.equal(torch.get_rng_state(), generator)
    assert "stays orthogonal" in list(table["change"])
    start = getattr(layer, name).detach().clone()
    if weights:
        normalise(unconstrained)
        torch.testing.assert_close(start, getattr(unconstrained, name).detach(), rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    target = torch.randn_like(start)
    for _ in range(5):
        optimizer.zero_grad()
        ((getattr(layer, name) - target) ** 2).sum().backward()
        optimizer.step()
    made = getattr(layer, name).detach()
    assert (made - start).abs().max() > 0.1
    assert gram_error(matrices(made, blocks)) < 5e-6
    if isinstance(layer, nn.Linear):
        x = torch.randn(3, layer.in_features)
        torch.testing.assert_close(layer(x), F.linear(x, made, layer.bias))


@pytest.mark.parametrize(
    ("layer", "constraint", "words"),
    [
        (nn.Conv2d(4, 4, 3), "orthogonal", "does not stay so in training"),
        (nn.Conv2d(4, 4, 2), "orthogonal", "even size"),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), "unit_rows", "several rows in one filter"),
        (nn.LSTM(4, 4), "unit_rows", "past any parametrisation"),
        (nn.Bilinear(3, 4, 5), "unit_rows", "bilinear"),
        (parametrizations.orthogonal(nn.Linear(4, 4)), "unit_rows", "already"),
        (nn.Linear(4, 4).bfloat16(), "orthogonal", "bfloat16"),
        (nn.LazyConv2d(4, 2), "unit_rows", "not initialised"),
        (torch.nn.utils.spectral_norm(nn.Linear(4, 4, bias=False)), "unit_rows", "computed by something else"),
    ],
    ids=str,
)
def test_constraints_that_would_be_wrong_are_refused(layer: nn.Module, constraint: str, words: str) -> None:
    reasons = left(normalise(layer, constraint=constraint))
    assert any(reason.startswith(f"no {constraint}: ") and words in reason for reason in reasons.values())
    with pytest.raises(ConfigError, match=words):
        normalise(layer, constraint=constraint, strict=True)


def test_a_row_of_zeros_has_no_unit_length() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    assert "zeros" in left(normalise(layer, weights=None, constraint="unit_rows"))["weight"]
    normalise(layer, constraint="unit_rows")
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("activation", ["relu", F.gelu, nn.GELU(), nn.ReLU(inplace=True), torch.tanh])
@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_uses_the_new_activation_in_evaluation_too(activation: object, masked: bool) -> None:
    """PyTorch's fused kernel would go on with a ReLU or GELU of its own; compared with a layer built with GPN."""
    options = {"d_model": 12, "nhead": 2, "dim_feedforward": 24, "batch_first": True, "dropout": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options, activation=activation), 2)  # type: ignore[arg-type]
        kind = {"relu": nn.ReLU()}.get(activation, activation) if isinstance(activation, str) else activation
        twin = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options, activation=GPN(kind)), 2)  # type: ignore[arg-type]
    table = normalise(net, weights=None, strict=True)
    assert sum(table["change"].str.startswith("activation →")) == 2
    twin.load_state_dict(net.state_dict())
    x, mask = torch.randn(3, 5, 12), torch.zeros(3, 5, dtype=torch.bool)
    if masked:
        mask[1, 3:] = True
    for mode in (False, True):
        net.train(mode)
        twin.train(mode)
        with torch.no_grad():
            found, expected = (one(x, src_key_padding_mask=mask) for one in (net, twin))
        torch.testing.assert_close(found[~mask], expected[~mask])


class Functional(nn.Module):
    """Calls its activations as functions, one of them in place, one as a method, one in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = Branching()
        self.calls = 0
        self.log: list[Tensor] = []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(x)
        self.seen += 1
        x = F.relu(self.first(x), inplace=True)
        x = F.gelu(torch.tanh(x)).relu_()
        return self.inner(self.second(x)).sigmoid()


class Branching(nn.Module):
    """Cannot be traced: what it does depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if x.sum() > 0 else x


class Gated(nn.Module):
    """A squeeze-and-excitation gate, a SwiGLU, and an activation times a parameter, which is no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.swish, self.bend = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()), nn.SiLU(), nn.Tanh()
        self.first, self.second, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul(self.gate(x.mean(1, keepdim=True)))
        x = self.swish(self.first(x)) * self.second(x)
        return 0.5 * (self.bend(x) * (1 + self.scale))


def test_gates_are_left() -> None:
    net = nn.Sequential(Gated())
    reasons = left(normalise(net, strict=True))
    assert set(reasons) == {"0.gate.1", "0.swish"}
    assert all(reason.startswith("a gate") for reason in reasons.values())
    assert isinstance(net[0].bend, GPN)
    net = torchvision.models.mobilenet_v3_small(num_classes=10)
    table = normalise(net)
    gates = table[table["reason"].str.startswith("a gate")]
    assert set(gates["kind"]) == {"Hardsigmoid"}
    assert len(gates) == 9


def test_functional_activations_are_reported_and_nothing_is_run() -> None:
    net = Functional()
    del net.seen
    net.seen = 0
    before = state(net)
    reasons = left(normalise(net, weights=None))
    assert reasons[""].startswith("calls relu × 2, tanh, gelu, sigmoid in its forward")
    assert reasons["inner"].startswith("functional activations not looked for: forward cannot be traced (TraceError: ")
    assert (net.calls, net.log) == (0, [])
    assert same(state(net), before)
    with pytest.raises(ConfigError, match=r"the module \(Functional\): calls relu × 2"):
        normalise(net, strict=True)
    assert same(state(net), before)


def test_a_forward_that_counts_in_a_buffer_is_not_run() -> None:
    net = Functional()
    reasons = left(normalise(net))
    assert net.seen == 0
    assert "functional activations not looked for: forward cannot be traced" in "".join(reasons.values())


def test_parameters_of_unknown_layers_are_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.shift = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.W + self.shift

    net = nn.Sequential(Own(), nn.ReLU())
    assert left(normalise(net)) == {"0.W": "a parameter of a layer that is not known here"}
    with pytest.raises(ConfigError, match=r"0\.W \(Own\)"):
        normalise(net, strict=True)


def test_a_network_of_torchvision_is_converted_as_a_whole() -> None:
    net = torchvision.models.resnet18(num_classes=10)
    names = set(net.state_dict())
    table = normalise(net, strict=True)
    assert set(net.state_dict()) == names
    assert sum(table["change"].str.startswith("activation")) == 9
    assert sum(table["change"].str.contains("orthogonal")) == 21
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert net.layer1[0].conv1.weight[..., 0, 0].abs().max() == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: normalise(nn.ReLU()), r"normalise\(ReLU\): is itself an activation, .* bsnn_cli.GPN\(module\)"),
        (lambda: normalise(torch.tanh), r"takes an nn.Module"),
        (lambda: normalise(cnn(), root="uper"), r"root=uper: .*did you mean upper"),
        (lambda: normalise(cnn(), depth=0), r"depth=0: must be a whole number"),
        (lambda: normalise(cnn(), weights="gaussian"), r"weights=gaussian: must be orthogonal"),
        (lambda: normalise(cnn(), constraint="unit-rows"), r"constraint=unit-rows: .*did you mean unit_rows"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(BsnnError, match=words) as told:
        call()
    assert "\n" not in str(told.value)
    assert isinstance(told.value, ConfigError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_torchscript_is_refused_or_left() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="compiled TorchScript cannot be changed"):
        normalise(scripted)
    net = nn.Sequential(scripted, nn.Tanh())
    assert "TorchScript" in left(normalise(net))["0"]
    assert isinstance(net[1], GPN)


def test_activations_can_be_tailored_to_a_depth() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    table = normalise(net, depth=20)
    assert "gain=" in table["change"][1]
    assert net[1].tailoring.gain == pytest.approx(GPN("tanh", depth=20).tailoring.gain, rel=1e-6)
