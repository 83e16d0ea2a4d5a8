import math
from collections.abc import Callable

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.quantize.formats import FORMATS, round_weight
from fewer.quantize.lowrank import (
    Branch,
    WarmSvd,
    check_rank,
    cholesky_basis,
    in_range,
    randomized_svd,
    refine,
    truncated_svd,
)


def spectrum(out: int, dim: int) -> torch.Tensor:
    """A matrix whose singular values fall like 1 / (1 + i)."""
    left = torch.linalg.qr(torch.randn(out, min(out, dim))).Q
    right = torch.linalg.qr(torch.randn(dim, min(out, dim))).Q
    return (left / (1 + torch.arange(left.shape[1]))) @ right.mT


@pytest.mark.parametrize("shape", [(1, 5), (33, 64), (123, 48)])
@pytest.mark.parametrize("rank", [0, 1])
def test_svd_leaves_exactly_the_tail_of_the_singular_values(shape: tuple[int, int], rank: int) -> None:
    matrix = spectrum(*shape)
    tail = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    assert torch.allclose((matrix - truncated_svd(matrix, rank).product()).norm(), tail, rtol=1e-4, atol=1e-6)


def test_randomised_svd_is_within_a_per_cent_of_the_best_and_repeats() -> None:
    torch.manual_seed(0)
    matrix = spectrum(200, 150)
    best = (matrix - truncated_svd(matrix, 16).product()).norm()
    make = lambda: randomized_svd(matrix, 16, generator=torch.Generator().manual_seed(3))  # noqa: E731
    assert (matrix - make().product()).norm() <= 1.01 * best
    assert torch.equal(make().up, make().up)


def test_a_warm_start_needs_one_iteration() -> None:
    torch.manual_seed(0)
    matrix = spectrum(200, 150)
    first = randomized_svd(matrix, 16)
    nearby = matrix * (1 + 0.02 * torch.randn(150))
    start = torch.cat([first.down.mT, torch.randn(150, 10) / 12], dim=1)
    warm = randomized_svd(nearby, 16, iterations=1, start=start)
    best = (nearby - truncated_svd(nearby, 16).product()).norm()
    assert (nearby - warm.product()).norm() <= 1.01 * best


def test_a_row_of_warm_decompositions_is_as_good_as_cold_ones_and_rank_0_is_empty() -> None:
    torch.manual_seed(0)
    warm = WarmSvd(8, torch.Generator().manual_seed(1), first=4, later=1)
    for _ in range(3):
        matrix = spectrum(90, 60) * (1 + 0.02 * torch.randn(60))
        best = (matrix - truncated_svd(matrix, 8).product()).norm()
        assert (matrix - warm(matrix).product()).norm() <= 1.1 * best
    assert WarmSvd(0, torch.Generator(), first=1, later=1)(torch.randn(5, 3)).product().norm() == 0


def test_zero_and_rank_deficient_matrices_have_a_finite_branch() -> None:
    thin = torch.randn(40, 2) @ torch.randn(2, 30)
    for matrix in (torch.zeros(40, 30), thin):
        branch = randomized_svd(matrix, 8)
        assert torch.isfinite(branch.up).all() and torch.isfinite(branch.down).all()
        assert (branch.product() - matrix).norm() <= 1e-5 * max(1, matrix.norm())


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_cholesky_qr_gives_an_orthonormal_basis_of_the_same_columns(condition: float) -> None:
    torch.manual_seed(0)
    columns = torch.linalg.qr(torch.randn(300, 12)).Q * torch.logspace(0, -math.log10(condition), 12)
    matrix = columns @ torch.linalg.qr(torch.randn(12, 12)).Q
    basis = cholesky_basis(matrix)
    assert torch.allclose(basis.mT @ basis, torch.eye(12), atol=1e-3)
    assert (matrix - basis @ (basis.mT @ matrix)).norm() <= 1e-5 * matrix.norm()


def test_cholesky_qr_of_zero_and_of_too_few_directions_is_finite_and_keeps_the_span() -> None:
    assert cholesky_basis(torch.zeros(50, 4)).norm() == 0
    thin = torch.randn(50, 2) @ torch.randn(2, 6)
    basis = cholesky_basis(thin)
    assert torch.isfinite(basis).all()
    assert (thin - basis @ (basis.mT @ thin)).norm() <= 1e-4 * thin.norm()


def settled(weight: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., float]:
    """How a solver leaves W - Q(W - L) in the target and says what was lost."""

    def settle(branch: Branch, target: torch.Tensor) -> float:
        residual = weight - branch.product()
        rounded = rounding(residual)
        target.copy_(weight - rounded)
        return (residual - rounded).square().sum().item()

    return settle


def test_refinement_never_ends_worse_than_it_began_and_losses_never_rise() -> None:
    torch.manual_seed(0)
    weight, form = spectrum(64, 128) + 0.02 * torch.randn(64, 128), FORMATS["int4"]
    settle = settled(weight, lambda r: round_weight(r, form, torch.float32))
    branch = refine(weight.clone(), lambda m: truncated_svd(m, 8), settle, 20)
    assert len(branch.losses) > 1
    assert all(later <= earlier for earlier, later in zip(branch.losses, branch.losses[1:], strict=False))
    assert settle(branch, weight.clone()) == pytest.approx(branch.losses[-1], rel=1e-4)


def test_refinement_stops_at_the_first_round_that_is_worse() -> None:
    losses = iter([3.0, 2.0, 2.5, 1.0])
    made: list[Branch] = []

    def decompose(matrix: torch.Tensor) -> Branch:
        made.append(truncated_svd(matrix, 1))
        return made[-1]

    branch = refine(torch.randn(4, 4), decompose, lambda *_: next(losses), 10)
    assert branch.losses == [3.0, 2.0] and branch is made[1] and len(made) == 3


@pytest.mark.parametrize("rank", [-1, 6])
def test_a_rank_that_does_not_fit_names_the_layer(rank: int) -> None:
    with pytest.raises(ConfigError, match=r"'mlp\.2'.*0 \.\. 5"):
        check_rank(rank, (5, 9), "mlp.2")


def test_a_branch_beyond_the_range_of_fp16_keeps_its_product() -> None:
    down, up = torch.randn(3, 9, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    up, down = up * torch.tensor([1e6, 1.0, 1e-2]), down * torch.tensor([[1e-3], [1.0], [1e7]])
    exact = up @ down
    one, two = in_range(down.float(), up.float(), torch.float16)
    assert torch.isfinite(one).all() and torch.isfinite(two).all()
    assert (two.double() @ one.double() - exact).norm() < 2e-3 * exact.norm()
    untouched = in_range(down.float()[1:2], up.float()[:, 1:2], torch.float16)
    assert torch.equal(untouched[0], down[1:2].half()) and torch.equal(untouched[1], up[:, 1:2].half())
