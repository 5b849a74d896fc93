from __future__ import annotations

import pytest
import torch
from scipy import linalg, stats
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bsnn_cli import UnitRows
from bsnn_cli.common.random_streams import stream
from bsnn_cli.networks.orthogonal import haar, orthogonality_error, retract
from bsnn_cli.settings.config import ModelConfig
from tests.test_fleet import make_fleet, make_member


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_haar_is_orthogonal(n: int) -> None:
    Q = haar(n, stream(0, "test"), torch.float64)
    assert torch.dist(Q.T @ Q, torch.eye(n, dtype=torch.float64)) < 1e-12 * n


@pytest.fixture(scope="module")
def many() -> torch.Tensor:
    """20,000 draws from the orthogonal group in three dimensions."""
    generator = stream(0, "many")
    return torch.stack([haar(3, generator, torch.float64) for _ in range(20_000)])


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_every_entry_is_uniform_in_three_dimensions(many: torch.Tensor, row: int, column: int) -> None:
    """A coordinate of a uniform point on the sphere in R³ is uniform on [-1, 1] (Archimedes); raw QR fails this."""
    assert stats.kstest(many[:, row, column].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_trace_moments_are_those_of_haar_measure(many: torch.Tensor) -> None:
    """E[tr Q] = 0, E[(tr Q)²] = 1, E[(tr Q)⁴] = 3 for Haar Q (Diaconis and Shahshahani 1994), and det Q = ±1 evenly."""
    trace = many.diagonal(dim1=1, dim2=2).sum(1)
    for power, expected in ((1, 0.0), (2, 1.0), (4, 3.0)):
        moment = trace**power
        assert abs(moment.mean() - expected) < 4 * moment.std() / len(moment) ** 0.5
    assert abs(torch.linalg.det(many).mean()) < 4 / len(many) ** 0.5


def test_raw_qr_fails_the_test_of_uniformity() -> None:
    """The check above can fail: LAPACK's sign convention makes the last diagonal entries of Q far from uniform."""
    generator = stream(0, "raw")
    raw = torch.stack(
        [torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0] for _ in range(2_000)]
    )
    assert stats.kstest(raw[:, 0, 0].numpy(), "uniform", args=(-1, 2)).pvalue < 1e-6


def test_streams_are_functions_of_their_arguments() -> None:
    draws = {
        key: torch.randint(2**62, (2,), generator=stream(*key)).tolist()
        for key in [(0, "hidden", 0), (0, "hidden", 1), (1, "hidden", 0), (0, "batches", 0), (2**63 - 1, "hidden", 0)]
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    for key, draw in draws.items():
        assert torch.randint(2**62, (2,), generator=stream(*key)).tolist() == draw


def test_orthogonality_error_of_a_hand_made_matrix() -> None:
    W = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]])
    # second: WᵀW = [[1.36, 0.48], [0.48, 0.64]]
    torch.testing.assert_close(orthogonality_error(W), torch.tensor([0.0, 0.48]))


@pytest.mark.parametrize("distance", [0, 1e-6, 1e-3, 0.1, 1, 1e3, 1e200])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_retraction_is_the_polar_factor(n: int, distance: float) -> None:
    """Newton-Schulz near the group, beyond its reach from a distance of about 0.1 on."""
    generator = stream(0, "test")
    W = haar(n, generator, torch.float64) + distance * torch.randn(n, n, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy(linalg.polar((W / max(1, distance)).numpy())[0])
    error = retract(W)
    torch.testing.assert_close(W, expected, rtol=0, atol=1e-12 * max(1, torch.linalg.cond(W)))
    torch.testing.assert_close(error, orthogonality_error(W), rtol=0, atol=0)
    assert error < 1e-14


def test_retraction_in_float32_reaches_rounding_at_full_width() -> None:
    W = haar(500, stream(0, "test")) + 1e-4 * torch.randn(500, 500, generator=stream(0, "noise"))
    assert orthogonality_error(W) > 1e-4
    assert retract(W) < 2e-6
    W = W.double()
    assert (W.T @ W - torch.eye(500, dtype=torch.float64)).abs().max() < 2e-6


def test_orthogonality_error_is_of_the_normalised_rows() -> None:
    fleet = make_fleet(ModelConfig(depth=2, width=4), [make_member("tanh", True)])
    fleet.tensors["hidden.weight"].mul_(3)
    fleet.hidden.measure_rows()
    assert fleet.orthogonality_error().item() < 1e-6
    fleet.tensors["hidden.weight"][0, 1, 0] = fleet.tensors["hidden.weight"][0, 1, 1]  # two equal rows
    fleet.hidden.measure_rows()
    W = F.normalize(fleet.tensors["hidden.weight"][0, 1], dim=1)
    expected = (W.T @ W - torch.eye(4, dtype=torch.float64)).abs().max()
    assert fleet.orthogonality_error().item() == pytest.approx(expected.item())
    assert expected > 0.1


@pytest.mark.parametrize(
    ("module", "dim"),
    [
        (nn.Linear(4, 6), None),
        (nn.Linear(4, 6), 0),
        (nn.Conv1d(4, 6, 3), 0),
        (nn.Conv2d(4, 6, 3, groups=2), 0),
        (nn.Conv3d(4, 6, 1), 0),
        (nn.Bilinear(3, 5, 6), 0),
        (nn.ConvTranspose1d(4, 6, 3), 1),
        (nn.ConvTranspose2d(4, 6, 3), 1),
    ],
    ids=str,
)
def test_each_output_unit_has_a_row_of_length_one(module: nn.Module, dim: int | None) -> None:
    parametrize.register_parametrization(module, "weight", UnitRows(dim))
    weight = module.get_parameter("parametrizations.weight.original").detach()
    made = torch.movedim(module.weight, dim or 0, 0).flatten(1)  # type: ignore[arg-type]
    torch.testing.assert_close(made.square().sum(1), torch.ones(6))
    torch.testing.assert_close(made, nn.functional.normalize(torch.movedim(weight, dim or 0, 0).flatten(1)))


def test_a_transposed_convolution_with_groups_has_rows_in_each_of_them() -> None:
    module = nn.ConvTranspose2d(4, 6, 3, groups=2)
    parametrize.register_parametrization(module, "weight", UnitRows(dim=1, groups=2))
    for group in module.weight.detach().chunk(2):  # each makes three of the six channels from two of the four inputs
        torch.testing.assert_close(group.square().sum((0, 2, 3)), torch.ones(3))
    with pytest.raises(ValueError, match=r"UnitRows\(groups=3\)"):
        parametrize.register_parametrization(nn.ConvTranspose2d(4, 6, 3), "weight", UnitRows(dim=1, groups=3))


@pytest.mark.parametrize(("n", "columns"), [(5, 1), (50, 20), (20, 20)])
def test_some_columns_of_haar_are_orthonormal(n: int, columns: int) -> None:
    Q = haar(n, stream(0, "test"), torch.float64, columns)
    assert Q.shape == (n, columns)
    assert torch.dist(Q.T @ Q, torch.eye(columns, dtype=torch.float64)) < 1e-12 * n
    if columns == n:
        assert torch.equal(Q, haar(n, stream(0, "test"), torch.float64))


def test_a_single_column_is_uniform_on_the_sphere() -> None:
    """In three dimensions each of its coordinates is uniform on [-1, 1]; without the signs, one would be negative."""
    generator = stream(0, "columns")
    Q = torch.stack([haar(3, generator, torch.float64, 1) for _ in range(3_000)])
    for row in range(3):
        assert stats.kstest(Q[:, row, 0].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("module", "dim"),
    [(nn.Conv2d(4, 6, 3), None), (nn.ConvTranspose2d(4, 6, 3), None), (nn.BatchNorm1d(4), 0), (nn.Linear(4, 6), 2)],
    ids=str,
)
def test_a_weight_without_known_rows_is_refused(module: nn.Module, dim: int | None) -> None:
    """A filter of a convolution would have norm 3 if its last dimensions were taken for rows."""
    with pytest.raises(ValueError, match="UnitRows"):
        parametrize.register_parametrization(module, "weight", UnitRows(dim))
