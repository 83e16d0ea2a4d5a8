import torch

from fewer.parallel.buckets import NeighbourBucket, SumBucket
from fewer.parallel.group import Group
from fewer.parallel.simulated import run_simulated


def test_sums_of_different_shapes_travel_as_one() -> None:
    def rank_main(group: Group) -> tuple:
        bucket = SumBucket(group)
        first, second = bucket.add(torch.ones(2, 3) * group.rank), bucket.add(torch.arange(5.0))
        bucket.send()
        return first.wait().tolist(), second.wait().tolist(), group.traffic.sums, group.traffic.sum_bytes

    ones, counted, sums, received = run_simulated(2, rank_main)[1]
    assert ones == [[1.0] * 3] * 2 and counted == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert (sums, received) == (1, 44.0)


def test_rows_come_from_the_right_side_and_layer_even_if_nobody_sends_the_bucket() -> None:
    def rank_main(group: Group) -> tuple:
        bucket = NeighbourBucket(group)
        rows = [
            bucket.add(torch.full((2,), group.rank + layer), torch.full((2,), group.rank + layer + 0.5))
            for layer in (10.0, 20.0)
        ]
        (before, after), _ = (row.wait() for row in reversed(rows))
        return before, after, group.traffic.neighbours

    first, middle, last = run_simulated(3, rank_main)
    assert first[0] is None and first[1].tolist() == [21.0, 21.0]
    assert middle[0].tolist() == [20.5, 20.5] and middle[1].tolist() == [22.0, 22.0]
    assert last[1] is None and last[2] == 1
