from dataclasses import replace
from pathlib import Path

import pytest

from fewer.core.device import isolated_randomness
from fewer.core.progress import SilentProgress
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.planted import planted_lag
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.search import SearchResult
from fewer.recommend.training.loop import TrainingPlan, train_network
from fewer.recommend.trials import settle, try_lengths

SHAPE = AutoMLPShape(
    items=30, length=6, candidates=(1, 2, 5), dim=16, short_layers=1, hidden_sequence=16, hidden_channel=16,
    dropout=0.0, long_branch=False,
)  # fmt: skip
PLAN = TrainingPlan(batch_size=128, learning_rate=5e-3, epochs=8)


@pytest.fixture(scope="module")
def lag_two() -> Split:
    return leave_last_out(planted_lag(2, items=30, users=150, length=14, seed=0))


def test_the_worse_half_leaves_and_a_high_price_decides(lag_two: Split) -> None:
    trials = try_lengths(SHAPE, lag_two, PLAN, (1, 2, 5), rounds=(3, 4), price=0.5)
    assert trials.length == 2
    epochs = {row["length"]: row["epochs"] for row in trials.reached}
    assert epochs == {1: 3, 2: 4, 5: 4} and trials.seconds > 0


def test_the_winner_s_training_goes_on_as_if_never_interrupted(lag_two: Split, tmp_path: Path) -> None:
    trials = try_lengths(SHAPE, lag_two, PLAN, (1, 2), rounds=(2,), folder=tmp_path)

    def finished(folder: Path | None) -> list[float]:
        with isolated_randomness(PLAN.seed):
            network = AutoMLPNetwork(replace(SHAPE, candidates=(trials.length,)))
        plan = replace(PLAN, epochs=4)
        result = train_network(network, lag_two, plan, length=6, folder=folder, resume=folder is not None)
        return [entry["ndcg_at_10"] for entry in result.path]

    assert finished(tmp_path / str(trials.length)) == finished(None)


def test_one_rival_needs_no_trial_and_several_get_one(lag_two: Split) -> None:
    found = SearchResult(length=5, candidates=(1, 2, 5), probabilities=[0.1, 0.4, 0.5], rivals=[2])
    settle(found, SHAPE, lag_two, PLAN, 3)
    assert (found.length, found.trials) == (5, [])
    found.rivals, found.price = [2, 1], 0.5
    settle(found, SHAPE, lag_two, replace(PLAN, epochs=3), 1)
    assert found.trials == []  # one finalist: the search's word counts
    settle(found, SHAPE, lag_two, replace(PLAN, epochs=3), 3, progress=SilentProgress())
    assert found.length == 2 and found.cpu_seconds > 0 and len(found.trials) == 2
