import numpy as np
import pytest

from fewer.core.errors import ConfigError, DataError
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.splits import learnable_mask, leave_last_out, temporal


def test_leave_last_out_asks_each_long_enough_user_once() -> None:
    made = Interactions.build([1, 1, 1, 1, 2, 2, 3], list("abcdaba"))
    split = leave_last_out(made)
    assert split.test.tolist() == [3] and split.validation.tolist() == [2]
    assert split.train.tolist() == [1, 5]  # user 2 is too short to be asked and only trains
    assert learnable_mask(split).tolist() == [True, True, False, False, True, True, True]
    assert split.train_counts().sum() == 5


def test_everything_learns_from_all_and_asks_nothing() -> None:
    split = leave_last_out(Interactions.build([1, 1, 1], "abc"), everything=True)
    assert len(split.test) == len(split.validation) == 0 and split.train.tolist() == [1, 2]


def test_a_temporal_split_never_learns_from_the_future() -> None:
    rng = np.random.default_rng(0)
    made = Interactions.build(rng.integers(0, 20, 300), rng.integers(0, 9, 300), rng.permutation(300))
    split = temporal(made, validation_share=0.2, test_share=0.1)
    latest = made.times[learnable_mask(split)].max()
    assert latest < made.times[split.validation].min() < made.times[split.test].min()
    assert made.times[split.train].max() <= latest and len(split.test) > 5
    users = made.user_codes
    assert len(set(users[split.test])) == len(split.test)


def test_a_temporal_split_needs_times_and_sane_shares() -> None:
    with pytest.raises(DataError, match="timestamps"):
        temporal(Interactions.build([1, 1], "ab"))
    with pytest.raises(ConfigError, match="less than 1"):
        temporal(Interactions.build([1, 1], "ab", [1, 2]), validation_share=0.5, test_share=0.5)
