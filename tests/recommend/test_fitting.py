from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.splits import Split
from fewer.recommend.fitting import FitSettings, compare, fit, make_split, settings_from
from fewer.recommend.methods import Sizes
from fewer.recommend.recommender import Recommender
from fewer.recommend.search import SearchPlan
from fewer.recommend.training.loop import TrainingPlan


def test_the_same_seed_gives_the_same_figures(planted: Interactions) -> None:
    settings = FitSettings(
        sizes=Sizes(length=5, dim=8, layers=1, candidates=(1, 2)),
        training=TrainingPlan(epochs=1, batch_size=64),
        search=SearchPlan(epochs=3, warmup=1, batch_size=64),
    )
    one, other = fit(planted, settings), fit(planted, settings)
    assert one.report["metrics"] == other.report["metrics"]
    assert torch.equal(one.vectors(), other.vectors())


def test_evaluation_stands_beside_the_counting_baselines(trained: Recommender, split: Split) -> None:
    table = compare(trained, split, ks=(3,))
    assert list(table) == ["automlp", "popularity", "last-item", "markov"]
    assert all(0 <= row["hr_at_3"] <= 1 for row in table.values())


def test_settings_from_flat_names(planted: Interactions) -> None:
    made = settings_from("gru4rec", dim=32, epochs=3, seed=5, penalty=0.3, search_epochs=7)
    assert (made.method, made.sizes.dim, made.training.epochs) == ("gru4rec", 32, 3)
    assert (made.search.seed, made.training.seed, made.search.penalty, made.search.epochs) == (5, 5, 0.3, 7)
    with pytest.raises(ConfigError, match="dim"):
        settings_from(dim=-1)
    with pytest.raises(ConfigError, match="allowed: leave-last-out"):
        make_split(planted, "random")


def test_a_split_that_asks_nobody_says_so() -> None:
    users = [user for user in range(40) for _ in range(5)]
    log = Interactions.build(users, [1 + i % 7 for i in range(200)], times=list(range(200)))
    settings = FitSettings(
        method="gru4rec", sizes=Sizes(length=4, dim=8), training=TrainingPlan(epochs=1), split="temporal"
    )
    made = fit(log, settings)
    assert made.report["metrics"] == {} and any("nothing is measured" in n for n in made.report["notes"])


def test_a_deployment_fit_finds_its_length_on_what_is_held_back_and_then_learns_from_all(
    planted: Interactions, tmp_path: Path
) -> None:
    settings = FitSettings(
        sizes=Sizes(length=5, dim=8, layers=1, candidates=(1, 2)),
        training=TrainingPlan(epochs=1, batch_size=64),
        search=SearchPlan(epochs=1, batch_size=64),
        split="everything",
        folder=tmp_path,
    )
    made = fit(planted, settings)
    assert made.sizes.candidates in ((1,), (2,)) and made.report["search"] and made.report["metrics"] == {}
    training = made.report["training"]
    assert isinstance(training, dict) and [entry["pairs"] for entry in training["path"]] == [
        len(planted) - planted.user_count
    ]
