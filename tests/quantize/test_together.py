import pytest
import torch

from fewer.quantize import solve
from fewer.quantize.formats import FORMATS
from fewer.quantize.lowrank import truncated_svd
from fewer.quantize.parts import Part, Samples
from fewer.quantize.recipe import Recipe
from fewer.quantize.solve import solve_group
from fewer.quantize.together import branches_together


@pytest.mark.parametrize("shape", [(90, 60), (33, 123), (5, 1)])
def test_every_candidate_has_nearly_the_best_branch_of_its_own_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, scales = torch.randn(*shape), torch.rand(5, shape[1]) + 0.1
    scales[1:] *= 1 + 9 * (torch.rand(4, shape[1]) > 0.9)
    rank = min(8, *shape)
    branches = branches_together(weight, scales, rank, torch.Generator().manual_seed(1))
    assert len(branches) == 5
    for branch, own in zip(branches, scales, strict=True):
        best = (weight * own - truncated_svd(weight * own, rank).product()).norm()
        assert (weight * own - branch.product()).norm() <= 1.01 * best + 1e-4 * weight.norm()


def test_rank_0_is_empty_and_zero_weights_have_finite_branches() -> None:
    scales = torch.ones(3, 20)
    empty = branches_together(torch.randn(7, 20), scales, 0, torch.Generator())
    assert [branch.product().norm() for branch in empty] == [0, 0, 0]
    for branch in branches_together(torch.zeros(7, 20), scales, 4, torch.Generator()):
        assert torch.isfinite(branch.up).all() and branch.product().norm() == 0


def test_the_search_with_all_branches_at_once_finds_scales_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows = torch.randn(256, 96) * torch.exp(torch.randn(96))
    part = Part(("fc",), [torch.randn(64, 96)], [None], Samples(rows, rows.abs().amax(dim=0)))
    recipe = Recipe(grid=6, refine_rounds=2)
    (apart,) = solve_group([part], FORMATS["int4"], 8, recipe)[1]
    monkeypatch.setattr(solve, "TOGETHER_ON", ("cpu",))
    (together,) = solve_group([part], FORMATS["int4"], 8, recipe)[1]
    assert together.error == pytest.approx(apart.error, rel=0.05)
    assert together.alpha > 0
