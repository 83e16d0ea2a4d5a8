"""Baselines that count: popularity, the last item again, and a first-order Markov chain.

They cost seconds and often win; every evaluation prints them beside the model.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewer.recommend.data.splits import Split, learnable_mask

POPULARITY_SHARE = 1e-3  # breaks ties among items that never followed; far below one observed transition


class Popularity:
    """Every history gets the items in order of how often they were seen in the learnable part."""

    def __init__(self, counts: Int[np.ndarray, "items_and_padding"]) -> None:
        self.shares = torch.from_numpy(counts / max(counts.sum(), 1)).float()

    @staticmethod
    def fit(split: Split) -> "Popularity":
        return Popularity(split.train_counts())

    def scores(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch items_and_padding"]:
        return self.shares.repeat(len(histories), 1)


class LastItems:
    """The history itself, most recent first: unbeatable where users repeat, useless where they do not."""

    def __init__(self, items: int) -> None:
        self.items = items

    @staticmethod
    def fit(split: Split) -> "LastItems":
        return LastItems(split.interactions.item_count)

    def scores(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch items_and_padding"]:
        recency = torch.arange(1, histories.shape[1] + 1, dtype=torch.float32).expand(histories.shape)
        scores = torch.zeros(len(histories), self.items + 1)
        return scores.scatter_reduce(1, histories, recency, "amax")


class Markov:
    """P(next | last item) from counts, plus a trace of popularity."""

    def __init__(self, starts: Tensor, followers: Tensor, shares: Tensor, popularity: Tensor) -> None:
        self.starts, self.followers, self.shares, self.popularity = starts, followers, shares, popularity

    @staticmethod
    def fit(split: Split) -> "Markov":
        """Transitions are kept as sorted rows (compressed), never as a V x V table."""
        items = split.interactions.items.astype(np.int64)
        users = split.interactions.user_codes
        alive = learnable_mask(split)
        linked = alive[1:] & (users[1:] == users[:-1])
        size = split.interactions.item_count + 1
        codes, counts = np.unique(items[:-1][linked] * size + items[1:][linked], return_counts=True)
        rows, columns = codes // size, codes % size
        starts = np.searchsorted(rows, np.arange(size + 1))
        totals = np.bincount(rows, weights=counts, minlength=size)
        return Markov(
            torch.from_numpy(starts),
            torch.from_numpy(columns),
            torch.from_numpy((counts / totals[rows]).astype(np.float32)),
            Popularity.fit(split).shares,
        )

    def scores(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch items_and_padding"]:
        last = histories[:, -1]
        first, counts = self.starts[last], self.starts[last + 1] - self.starts[last]
        row = torch.repeat_interleave(torch.arange(len(last)), counts)
        entry = torch.arange(int(counts.sum())) - torch.repeat_interleave(
            counts.cumsum(0) - counts - first, counts
        )
        scores = POPULARITY_SHARE * self.popularity.repeat(len(last), 1)
        scores[row, self.followers[entry]] += self.shares[entry]
        return scores
