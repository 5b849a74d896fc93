"""The named activations φ: their values are torch's, their hand-derived derivatives are autograd's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from bsnn_cli.gpn.activations import ACTIVATIONS, get
from bsnn_cli.settings.choices import PAPER_ACTIVATIONS
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS

NAMES = list(ACTIVATIONS)


def pair_of(name: str, h: Tensor) -> tuple[Tensor, Tensor]:
    return get(name).phi(h), get(name).derivative(h)


def test_the_paper_s_activations_come_first() -> None:
    assert tuple(NAMES[:6]) == PAPER_ACTIVATIONS == ("tanh", "relu", "lrelu", "elu", "selu", "gelu")


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_how_it_is_tailored_or_why_not(name: str) -> None:
    entry = NAMED_ACTIVATIONS[name]
    assert (entry.tailored_by in ("gain", "share")) == (entry.untailored == "")


TORCH_FUNCTIONS = {
    "tanh": torch.tanh,
    "relu": nn.functional.relu,
    "lrelu": lambda h: nn.functional.leaky_relu(h, 0.01),
    "elu": lambda h: nn.functional.elu(h, alpha=1),
    "selu": nn.functional.selu,
    "gelu": lambda h: nn.functional.silu(1.702 * h) / 1.702,
    "gelu_exact": lambda h: nn.functional.gelu(h, approximate="none"),
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
    "softplus": lambda h: torch.logaddexp(h, torch.zeros_like(h)),
    "sigmoid": nn.functional.sigmoid,
    "identity": nn.Identity(),
}


def wide_grid(dtype: torch.dtype) -> Tensor:
    """Ordinary places, both sides of 0 down to the smallest numbers, and far out."""
    small = torch.tensor([0.0, 1e-30, 1e-12, 1e-7, 1e-4, 1e-2], dtype=dtype)
    far = torch.tensor([15.0, 19.9, 20.1, 39.9, 40.1, 88.0, 89.0, 104.0, 709.0, 710.0, 1e3, 1e4], dtype=dtype)
    positive = torch.cat((small, torch.linspace(0.05, 12, 240, dtype=dtype), far))
    return torch.cat((-positive.flip(0), positive))


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_those_of_torch(name: str) -> None:
    h = wide_grid(torch.float64)
    torch.testing.assert_close(get(name).phi(h), TORCH_FUNCTIONS[name](h), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_hand_derived_derivatives_are_those_of_autograd(name: str) -> None:
    h = wide_grid(torch.float64).requires_grad_()
    expected = get(name).phi(h)
    (slope,) = torch.autograd.grad(expected.sum(), h)
    value, derivative = pair_of(name, h.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(derivative, slope, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate_and_finite_everywhere(name: str) -> None:
    h = wide_grid(torch.float32)
    before = h.clone()
    value, derivative = pair_of(name, h)
    exact_value, exact_derivative = pair_of(name, h.double())
    assert value.dtype == derivative.dtype == torch.float32
    assert value.data_ptr() != h.data_ptr()
    torch.testing.assert_close(h, before, rtol=0, atol=0)
    torch.testing.assert_close(value.double(), exact_value, rtol=3e-7, atol=1e-7)
    torch.testing.assert_close(derivative.double(), exact_derivative, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["elu", "selu", "gelu", "gelu_exact", "silu", "mish", "softplus", "sigmoid"])
def test_float32_keeps_its_digits_where_values_vanish(name: str) -> None:
    h = torch.linspace(-11, -4, 200)
    value, derivative = pair_of(name, h)
    exact_value, exact_derivative = pair_of(name, h.double())
    torch.testing.assert_close(value.double(), exact_value, rtol=3e-5, atol=0)
    torch.testing.assert_close(derivative.double(), exact_derivative, rtol=3e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if get(name).pull_back_by_value is not None])
def test_derivatives_by_value_are_those_by_argument(name: str) -> None:
    activation = get(name)
    assert activation.pull_back_by_value is not None
    h = torch.cat([torch.linspace(-30, 30, 6001, dtype=torch.float64), torch.tensor([0.0, -0.0, -1e3, 1e3])])
    g = torch.linspace(-2, 2, len(h), dtype=torch.float64)
    value = activation.phi(h)
    torch.testing.assert_close(
        activation.pull_back_by_value(g, value), activation.pull_back(g, h), rtol=1e-13, atol=1e-15
    )
    torch.testing.assert_close(value, activation.phi(h), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_a_stack_are_left_alone(name: str) -> None:
    stack = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = stack.clone()
    value, derivative = pair_of(name, stack[1:])
    value.add_(1)
    derivative.add_(1)
    assert torch.equal(stack, before)
    assert value.shape == derivative.shape == (2, 4, 5)


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_pickled_and_copied_by_name(name: str) -> None:
    assert pickle.loads(pickle.dumps(get(name))) is get(name)
    assert copy.deepcopy(get(name)) is get(name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same_numbers(name: str) -> None:
    h = wide_grid(torch.float64)
    for ours, theirs in zip(pair_of(name, h), pair_of(name, h.cuda()), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-12, atol=1e-14)
