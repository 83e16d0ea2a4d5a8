from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.device import isolated_randomness
from fewer.core.errors import ConfigError, DataError
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.planted import planted_lag
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.search import (
    InTurn,
    Relaxation,
    SearchPlan,
    SearchResult,
    _Search,
    most_likely,
    search_length,
    verify_by_grid,
)
from fewer.recommend.training.loop import TrainingPlan
from fewer.recommend.training.recorded import RecordedSteps

SHAPE = AutoMLPShape(
    items=30, length=6, candidates=(1, 2, 5), dim=16, short_layers=1, hidden_sequence=16, hidden_channel=16,
    dropout=0.0, long_branch=False,
)  # fmt: skip
PLAN = SearchPlan(epochs=10, warmup=2, batch_size=128, learning_rate=5e-3, architecture_rate=5e-2)


@pytest.fixture(scope="module")
def lag_two() -> Split:
    return leave_last_out(planted_lag(2, items=30, users=150, length=14, seed=0))


@pytest.fixture(scope="module")
def four_epochs(lag_two: Split) -> SearchResult:
    """Two more than the warm-up."""
    return search_length(SHAPE, lag_two, replace(PLAN, epochs=4))


def test_the_search_finds_the_planted_length(lag_two: Split) -> None:
    found = search_length(SHAPE, lag_two, PLAN)
    assert found.length == 2
    assert len(found.path) <= 10 and all(abs(sum(p) - 1) < 1e-5 for p in found.path)
    assert max(abs(a - b) for a, b in zip(found.path[0], found.path[1], strict=True)) == 0  # warm-up: a rests


def test_steps_recorded_for_a_gpu_find_the_same_length(lag_two: Split) -> None:
    with isolated_randomness(0):
        search = _Search(AutoMLPNetwork(SHAPE), lag_two, PLAN)
    search.recorded = RecordedSteps(
        InTurn(search.network), search.weight_optimizer, search.prefixes, search.items
    )
    for _ in range(PLAN.epochs):
        search.epoch()
    assert search.found.length == 2 and search.found.rivals[0] == 1
    assert search.found.figures[1] > 2 * search.found.figures[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_records_the_steps_and_finds_the_planted_length(lag_two: Split) -> None:
    found = search_length(SHAPE, lag_two, PLAN, device=torch.device("cuda"))
    assert found.length == 2 and found.figures[1] > 2 * found.figures[0]


def test_the_same_seed_gives_the_same_path(lag_two: Split, four_epochs: SearchResult) -> None:
    assert search_length(SHAPE, lag_two, replace(PLAN, epochs=4)).path == four_epochs.path


@pytest.mark.parametrize("relaxation", ["expectation", "mixture"])
def test_a_resumed_search_takes_the_path_of_an_uninterrupted_one(
    lag_two: Split, tmp_path: Path, relaxation: Relaxation
) -> None:
    plan = replace(PLAN, epochs=4, relaxation=relaxation, validation_batch_size=40)
    whole = search_length(SHAPE, lag_two, plan)
    search_length(SHAPE, lag_two, replace(plan, epochs=3), folder=tmp_path)
    resumed = search_length(SHAPE, lag_two, plan, folder=tmp_path, resume=True)
    assert resumed.path == whole.path and resumed.losses == whole.losses


def test_test_items_never_touch_the_search(lag_two: Split, four_epochs: SearchResult) -> None:
    items = lag_two.interactions.items.copy()
    items[lag_two.test] = 1
    changed = leave_last_out(replace(lag_two.interactions, items=items))
    assert search_length(SHAPE, changed, replace(PLAN, epochs=4)).path == four_epochs.path


def test_the_most_likely_length_is_kept_and_the_shorter_of_equals() -> None:
    assert [most_likely(p) for p in ([0.1, 0.2, 0.6, 0.1], [0.1, 0.4, 0.4, 0.1])] == [2, 1]


def test_the_mixture_of_the_paper_searches_too(lag_two: Split) -> None:
    found = search_length(SHAPE, lag_two, replace(PLAN, relaxation="mixture", epochs=6))
    assert found.length >= 2 and len(found.losses) == len(found.path)


def test_a_large_penalty_prefers_the_shortest(lag_two: Split) -> None:
    assert search_length(SHAPE, lag_two, replace(PLAN, penalty=50.0)).length == 1


def test_the_grid_shows_the_planted_length_too(lag_two: Split) -> None:
    grid = verify_by_grid(SHAPE, lag_two, TrainingPlan(epochs=8, batch_size=128, learning_rate=5e-3))
    assert grid[-1]["length"] == 1  # too short to know
    assert grid[0]["ndcg_at_10"] > 2 * grid[-1]["ndcg_at_10"]


def test_what_cannot_be_searched() -> None:
    short = leave_last_out(Interactions.build([1, 1], [1, 2]))
    with pytest.raises(DataError, match="at least 3"):
        search_length(replace(SHAPE, items=2), short, PLAN)
    with pytest.raises(ConfigError, match="short branch"):
        search_length(replace(SHAPE, short_branch=False, long_branch=True), short, PLAN)
    one = search_length(
        replace(SHAPE, items=2, candidates=(2, 99)),
        leave_last_out(Interactions.build([1] * 4, [1, 2, 1, 2])),
        PLAN,
    )
    assert (one.length, one.path) == (2, [])
