import logging

import pytest
import torch

from fewer.quantize.smooth import candidates, search, smoothing_scales


@pytest.mark.parametrize(("grid", "count"), [(20, 39), (10, 19)])
def test_the_grid_has_the_published_number_of_candidates_and_no_smoothing(grid: int, count: int) -> None:
    pairs = candidates(grid)
    assert len(set(pairs)) == count and (0.0, 0.0) in pairs
    assert all(beta == 0 or abs(alpha + beta - 1) < 1e-9 for alpha, beta in pairs)


def test_scales_follow_the_equation_and_bad_entries_become_one() -> None:
    activation = torch.tensor([4.0, 0.0, 9.0, float("inf")])
    weight = torch.tensor([2.0, 1.0, 0.0, 1.0])
    scales = smoothing_scales(activation, weight, 0.5, 0.5)
    assert torch.allclose(scales, torch.tensor([2.0 / 2**0.5, 1.0, 1.0, 1.0]))


def test_of_equal_errors_the_later_candidate_wins() -> None:
    peak = torch.tensor([2.0, 3.0])
    scales, trials = search(peak, peak, lambda *_: 1.0, grid=4)
    alpha, beta = candidates(4)[-1]
    assert len(trials) == 7 and torch.allclose(scales, smoothing_scales(peak, peak, alpha, beta))


def test_the_search_returns_the_candidate_with_the_least_error() -> None:
    peak, target = torch.tensor([5.0, 0.3]), torch.tensor([5.0**0.25, 0.3**0.25])
    scales, _ = search(
        peak, torch.ones(2), lambda scales, _: (scales - target).square().sum().item(), grid=20
    )
    assert torch.allclose(scales, target)


def test_dead_channels_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        search(torch.tensor([0.0, 1.0]), torch.ones(2), lambda *_: 0.0, grid=2)
    assert "1 of 2 channels" in caplog.text
