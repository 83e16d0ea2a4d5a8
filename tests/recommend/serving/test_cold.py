import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.fitting import FitSettings, fit
from fewer.recommend.methods import Sizes
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.cold import add_items, feature_vectors
from fewer.recommend.training.loop import TrainingPlan


@pytest.fixture(scope="module")
def coloured(planted: Interactions) -> Recommender:
    features = ItemFeatures.build(
        planted.item_ids, {"colour": {name: [str(int(name) % 4)] for name in planted.item_ids}}
    )
    sizes = Sizes(length=5, dim=8, layers=1, candidates=(2,), hidden_channel=8)
    return fit(
        planted, FitSettings(sizes=sizes, training=TrainingPlan(epochs=1, batch_size=128), features=features)
    )


def test_vectors_that_follow_features_are_predicted() -> None:
    features = ItemFeatures.build(
        [str(i) for i in range(400)], {"f": {str(i): [str(i % 5)] for i in range(400)}}
    )
    truth = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    table = torch.cat([torch.zeros(1, 6), truth[torch.arange(400) % 5]])
    new = feature_vectors(features, table, [[[3]], [[]]])  # word number 3 is "2"
    torch.testing.assert_close(new[0], truth[2], atol=0.05, rtol=0)
    torch.testing.assert_close(new[1], table[1:].mean(0))


def test_new_items_compete_and_old_scores_stay(coloured: Recommender) -> None:
    grown = add_items(coloured, {"new": {"colour": ["1"]}, "plain": {}})
    assert grown.item_ids[-2:] == ["new", "plain"] and coloured.item_count == grown.item_count - 2
    history = list(coloured.item_ids[:3])
    torch.testing.assert_close(
        torch.tensor(grown.score(history, coloured.item_ids)),
        torch.tensor(coloured.score(history, coloured.item_ids)),
    )
    assert set(grown.suggest([history], 99, exclude_seen=False)[0].items) == set(grown.item_ids)
    assert grown.suggest([["new"]], 3)[0].unknown == 0


@pytest.mark.parametrize("method", ["bert4rec", "mlp4rec", "gru4rec"])
def test_every_kind_of_network_grows(planted: Interactions, method: str) -> None:
    made = fit(
        planted,
        FitSettings(method=method, sizes=Sizes(length=4, dim=8, layers=1), training=TrainingPlan(epochs=1)),
    )
    grown = add_items(made, ["new"])
    old = torch.tensor(made.score(["3"], made.item_ids))
    torch.testing.assert_close(torch.tensor(grown.score(["3"], made.item_ids)), old)


def test_known_ids_are_refused(coloured: Recommender) -> None:
    with pytest.raises(ConfigError, match="already"):
        add_items(coloured, ["3"])
    assert add_items(coloured, []) is coloured
