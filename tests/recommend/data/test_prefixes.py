import resource

import numpy as np
import pytest
import torch

from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.prefixes import Prefixes, Sequences
from fewer.recommend.data.splits import Split, leave_last_out


def test_a_batch_holds_the_items_before_the_target_on_the_right() -> None:
    made = Interactions.build([1] * 5 + [2] * 3, list("abcde") + list("bad"))
    batch = Prefixes(leave_last_out(made), 3).gather(torch.tensor([1, 4, 6]))
    assert batch.histories.tolist() == [[0, 0, 1], [2, 3, 4], [0, 0, 2]]
    assert batch.targets.tolist() == [2, 5, 1]


def test_an_epoch_is_every_pair_once_and_a_function_of_seed_and_epoch(split: Split) -> None:
    prefixes = Prefixes(split, 5)
    first, again, other = (prefixes.epoch(split.train, 17, 0, epoch) for epoch in (0, 0, 1))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert sorted(torch.cat(first).tolist()) == split.train.tolist()
    assert max(map(len, first)) == 17


def test_evaluation_batches_are_cut_to_their_histories(split: Split) -> None:
    prefixes = Prefixes(split, 50)
    seen = []
    for chosen, batch in prefixes.in_order(split.train, 32):
        seen += chosen.tolist()
        assert batch.histories.shape[1] == int((batch.histories > 0).sum(1).max())
    assert sorted(seen) == list(range(len(split.train)))


@pytest.mark.parametrize("length", [1, 3, 50])
def test_windows_ask_every_training_target_exactly_once(split: Split, length: int) -> None:
    sequences = Sequences.of(split, length)
    inputs, targets = sequences.gather(torch.from_numpy(sequences.ends))
    asked = torch.bincount(targets[targets > 0], minlength=21)
    wanted = np.bincount(split.interactions.items[split.train], minlength=21)
    assert asked.tolist() == wanted.tolist()
    assert inputs.shape[1] <= length


def test_pairs_of_many_interactions_are_positions_not_copies() -> None:
    rng = np.random.default_rng(0)
    count = 300_000
    made = Interactions.from_codes(
        np.sort(rng.integers(0, 5000, count)), [str(i) for i in range(5000)],
        rng.integers(1, 2001, count), [str(i) for i in range(2000)], None,
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = leave_last_out(made)
    prefixes = Prefixes(split, 50)
    batches = prefixes.epoch(split.train, 1024, 0, 0)
    prefixes.gather(batches[0])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < count * 50 * 8 / 2  # a dense table of histories would take twice this
