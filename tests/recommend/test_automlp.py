import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.recommend import AutoMLP
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.recommender import Recommender

SHAPE = {"items": 30, "length": 12, "candidates": (1, 3, 5), "dim": 8, "dropout": 0.0}


def histories(batch: int = 6, length: int = 12) -> torch.Tensor:
    return torch.randint(1, 31, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("share", [False, True])
def test_short_interest_is_the_weighted_sum_of_the_candidates(share: bool) -> None:
    torch.manual_seed(0)
    network = AutoMLPNetwork(AutoMLPShape(**SHAPE, share_candidates=share)).eval()
    with torch.no_grad():
        network.architecture.copy_(torch.tensor([0.3, -1.0, 2.0]))
    asked = histories()
    rows, mask = network.item_embedding(asked)[:, :, None], torch.ones(6, 12)
    stacks = list(network.short) * (3 if share else 1)
    readouts = [s(rows[:, -n:], mask[:, -n:]) for s, n in zip(stacks, (1, 3, 5), strict=True)]
    long = network.long_norm(network.long(rows, mask))

    def joined(short: torch.Tensor) -> torch.Tensor:
        return network.join(torch.cat([long, network.short_norm(short)], dim=1))

    mixed = sum(p * s for p, s in zip(network.probabilities(), readouts, strict=True))
    torch.testing.assert_close(network(asked), joined(mixed))
    each = network.encode_each(asked)
    torch.testing.assert_close(each, torch.stack([joined(s) for s in readouts]))
    for first in (0, 2):
        turns = torch.stack([each[(first + row) % 3, row] for row in range(6)])
        torch.testing.assert_close(network.encode_in_turn(asked, first), turns)


def test_the_short_branch_alone_does_not_see_older_items() -> None:
    network = AutoMLPNetwork(AutoMLPShape(**SHAPE, long_branch=False)).eval()
    old, new = histories(), histories()
    new[:, :-5] = 1 + new[:, :-5] % 30
    torch.testing.assert_close(network(old), network(new))
    new[:, -5] = 1 + new[:, -5] % 30
    assert (network(old) - network(new)).abs().max() > 1e-7


def test_more_padding_and_longer_histories_do_not_change_the_answer() -> None:
    network = AutoMLPNetwork(AutoMLPShape(**SHAPE)).eval()
    short = histories(4, 7)
    padded = torch.nn.functional.pad(short, (5, 0))
    torch.testing.assert_close(network(padded), network(short), atol=1e-5, rtol=0)
    older = torch.cat([histories(4, 3), histories(4, 12)], dim=1)
    torch.testing.assert_close(network(older), network(older[:, -12:]))


@pytest.mark.parametrize("branch", ["short", "both"])
def test_item_features_take_part(branch: str) -> None:
    features = ItemFeatures.build(
        [str(i) for i in range(1, 31)], {"colour": {str(i): [str(i % 3)] for i in range(1, 31)}}
    )
    network = AutoMLPNetwork(AutoMLPShape(**SHAPE, feature_branch=branch), features).eval()
    before = network(histories())
    with torch.no_grad():
        network.features.words[0].weight[1:] += torch.randn(3, 8)
    assert before.shape == (6, 8) and (before - network(histories())).abs().max() > 1e-6


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="within the history length 2"):
        AutoMLPNetwork(AutoMLPShape(items=3, length=2, candidates=(5,)))
    with pytest.raises(ConfigError, match="both branches"):
        AutoMLPNetwork(AutoMLPShape(items=3, long_branch=False, short_branch=False))


def test_the_door_for_python(planted: Interactions, tmp_path: object) -> None:
    model = AutoMLP.fit(
        planted, epochs=1, search_epochs=1, length=5, dim=8, candidates=(1, 2), batch_size=128, seed=1
    )
    assert isinstance(model, Recommender) and model.sizes.candidates[0] in (1, 2)
    assert len(model.suggest([[3, 4]], k=4)[0].items) == 4
    loaded = AutoMLP.load(model.save(tmp_path))  # pyright: ignore
    assert loaded.suggest([[3, 4]], k=4) == model.suggest([[3, 4]], k=4)
    with pytest.raises(ConfigError, match="'epoch' is not a setting"):
        AutoMLP.fit(planted, epoch=1)
