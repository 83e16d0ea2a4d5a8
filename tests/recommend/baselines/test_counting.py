import torch

from fewer.recommend.baselines.counting import LastItems, Markov, Popularity
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.splits import leave_last_out

MADE = Interactions.build([1, 1, 1, 1, 1, 2, 2], ["a", "b", "a", "b", "c", "a", "c"])  # a=1 b=2 c=3
SPLIT = leave_last_out(MADE)  # user 1 learns a b a; user 2 (too short to be asked) learns a c


def test_popularity_counts_the_learnable_part_only() -> None:
    torch.testing.assert_close(
        Popularity.fit(SPLIT).scores(torch.tensor([[1], [2]])), torch.tensor([[0, 3, 1, 1.0]] * 2) / 5
    )


def test_markov_is_the_share_of_followers() -> None:
    scores = Markov.fit(SPLIT).scores(torch.tensor([[0, 1], [1, 2], [0, 3]]))
    popularity = torch.tensor([0, 3, 1, 1.0]) / 5 * 1e-3
    wanted = torch.stack([torch.tensor([0, 0, 0.5, 0.5]), torch.tensor([0, 1.0, 0, 0]), torch.zeros(4)])
    torch.testing.assert_close(scores, wanted + popularity)


def test_last_items_come_most_recent_first() -> None:
    scores = LastItems.fit(SPLIT).scores(torch.tensor([[1, 2, 1], [0, 0, 3]]))
    assert scores[0].argsort(descending=True)[:2].tolist() == [1, 2]
    assert scores[1].argmax() == 3 and scores[1, 1:3].tolist() == [0, 0]
