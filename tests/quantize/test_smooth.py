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
    scales, trials = search(peak, peak, lambda *_: torch.tensor(1.0), grid=4)
    alpha, beta = candidates(4)[-1]
    assert len(trials) == 7 and torch.allclose(scales, smoothing_scales(peak, peak, alpha, beta))


def test_the_search_returns_the_candidate_with_the_least_error() -> None:
    peak, target = torch.tensor([5.0, 0.3]), torch.tensor([5.0**0.25, 0.3**0.25])
    scales, _ = search(peak, torch.ones(2), lambda scales, _: (scales - target).square().sum(), grid=20)
    assert torch.allclose(scales, target)


def test_dead_channels_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        search(torch.tensor([0.0, 1.0]), torch.ones(2), lambda *_: torch.tensor(0.0), grid=2)
    assert "1 of 2 channels" in caplog.text


def test_a_candidate_without_a_number_never_wins() -> None:
    peak, errors = torch.ones(2), iter([3.0, float("nan"), 2.0, float("nan"), float("inf")])
    _, trials = search(peak, peak, lambda *_: torch.tensor(next(errors)), grid=3)
    assert [trial.error for trial in trials] == [3.0, float("inf"), 2.0, float("inf"), float("inf")]


def test_each_candidate_is_told_the_least_error_so_far() -> None:
    errors, told = iter([3.0, 5.0, 2.0]), []

    def error(_: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
        told.append(least.item())
        return torch.tensor(next(errors))

    search(torch.ones(2), torch.ones(2), error, grid=2)
    assert told == [float("inf"), 3.0, 3.0]
