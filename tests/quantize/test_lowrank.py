import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.quantize.formats import FORMATS, round_weight
from fewer.quantize.lowrank import Branch, check_rank, randomized_svd, refine, truncated_svd


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


def test_refinement_never_ends_worse_than_it_began_and_losses_never_rise() -> None:
    torch.manual_seed(0)
    weight, form = spectrum(64, 128) + 0.02 * torch.randn(64, 128), FORMATS["int4"]
    branch = refine(
        weight, lambda m: truncated_svd(m, 8), lambda r: round_weight(r, form, torch.float32), None, 20
    )
    assert len(branch.losses) > 1
    assert all(later <= earlier for earlier, later in zip(branch.losses, branch.losses[1:], strict=False))
    product = branch.product()
    error = (weight - product - round_weight(weight - product, form, torch.float32)).square().sum().item()
    assert error == pytest.approx(branch.losses[-1], rel=1e-4)


def test_refinement_stops_at_the_first_round_that_is_worse() -> None:
    losses = iter([3.0, 2.0, 2.5, 1.0])
    made: list[Branch] = []

    def decompose(matrix: torch.Tensor) -> Branch:
        made.append(truncated_svd(matrix, 1))
        return made[-1]

    branch = refine(torch.randn(4, 4), decompose, torch.round, lambda *_: next(losses), 10)
    assert branch.losses == [3.0, 2.0] and branch is made[1] and len(made) == 3


@pytest.mark.parametrize("rank", [-1, 6])
def test_a_rank_that_does_not_fit_names_the_layer(rank: int) -> None:
    with pytest.raises(ConfigError, match=r"'mlp\.2'.*0 \.\. 5"):
        check_rank(rank, (5, 9), "mlp.2")
