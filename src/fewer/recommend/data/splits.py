"""Splits as pure functions: what may be learned from, and which (history, target) pairs are asked.

A split never copies items. Every question is a position in `Interactions.items`: its target is the item
there, its history everything of the same user before it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from fewer.core.errors import ConfigError, DataError
from fewer.recommend.data.interactions import Interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Positions into `interactions.items`; a position is a target, its history lies before it."""

    interactions: Interactions
    train: Int[np.ndarray, "train"]
    """Targets to learn from."""
    validation: Int[np.ndarray, "validation"]
    """Targets for early stopping and for the architecture weights."""
    test: Int[np.ndarray, "test"]
    """Targets that nothing but the final figures may touch."""
    learnable: Int[np.ndarray, "users"]
    """Per user: the end (exclusive, as a position) of what may be read while learning."""

    @property
    def history_starts(self) -> Int[np.ndarray, "interactions"]:
        """For every position, where its user's history begins."""
        return np.repeat(self.interactions.offsets[:-1], self.interactions.lengths)

    def train_counts(self) -> Int[np.ndarray, "items_and_padding"]:
        """How often each item occurs in the learnable part."""
        mask = learnable_mask(self)
        return np.bincount(self.interactions.items[mask], minlength=self.interactions.item_count + 1)


def learnable_mask(split: Split) -> np.ndarray:
    """True for the interactions that learning may read."""
    positions = np.arange(len(split.interactions))
    return positions < np.repeat(split.learnable, split.interactions.lengths)


def leave_last_out(interactions: Interactions, *, minimum: int = 3, everything: bool = False) -> Split:
    """Test = each user's last item, validation = the one before; users with fewer than `minimum`
    interactions only train. `everything=True` learns from all and asks nothing (for deployment)."""
    starts, ends = interactions.offsets[:-1], interactions.offsets[1:]
    asked = (interactions.lengths >= max(minimum, 3)) & (not everything)
    learnable = np.where(asked, ends - 2, ends)
    return _split(interactions, learnable, ends[asked] - 2, ends[asked] - 1, starts)


def temporal(interactions: Interactions, *, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cuts at two points in time: everything before the first is learned from, each user's first item after
    the first cut validates, after the second tests; only users known before the first cut are asked.

    Raises `DataError` without timestamps, `ConfigError` for shares that leave nothing to learn.
    """
    if interactions.times is None:
        raise DataError("a temporal split needs timestamps; use --split leave-last-out")
    if min(validation_share, test_share) <= 0 or validation_share + test_share >= 1:
        raise ConfigError(
            f"shares {validation_share} and {test_share} must be above 0 and add up to less than 1"
        )
    first, second = np.quantile(interactions.times, [1 - validation_share - test_share, 1 - test_share])
    starts, ends = interactions.offsets[:-1], interactions.offsets[1:]
    users = interactions.user_codes
    before_first = np.bincount(users, weights=interactions.times < first, minlength=interactions.user_count)
    before_second = np.bincount(users, weights=interactions.times < second, minlength=interactions.user_count)
    learnable = starts + before_first.astype(np.int64)
    second_cut = starts + before_second.astype(np.int64)
    known = learnable > starts
    return _split(
        interactions,
        learnable,
        learnable[known & (learnable < second_cut)],
        second_cut[known & (second_cut < ends)],
        starts,
    )


def _split(
    interactions: Interactions,
    learnable: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    starts: np.ndarray,
) -> Split:
    positions = np.arange(len(interactions))
    lengths = interactions.lengths
    train = positions[(positions > np.repeat(starts, lengths)) & (positions < np.repeat(learnable, lengths))]
    return Split(
        interactions=interactions, train=train, validation=validation, test=test, learnable=learnable
    )
