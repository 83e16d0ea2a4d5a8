import pytest
import torch

from fewer.parallel.group import Group, GroupFailed
from fewer.parallel.simulated import run_simulated


@pytest.mark.parametrize("size", [1, 2, 5])
def test_collectives_give_what_they_say(size: int) -> None:
    def rank_main(group: Group) -> None:
        own = torch.arange(3.0) + 10 * group.rank
        expected = sum((torch.arange(3.0) + 10 * rank for rank in range(size)), torch.zeros(3))
        assert torch.equal(group.start_sum(own).wait(), expected)
        before, after = group.start_neighbours(own[:1], own[-1:]).wait()
        assert (before is None) == (group.rank == 0) and (after is None) == (group.rank == size - 1)
        if before is not None:
            assert before.item() == 10 * (group.rank - 1) + 2
        if after is not None:
            assert after.item() == 10 * (group.rank + 1)
        lengths = [rank + 1 for rank in range(size)]
        part = torch.full((2, group.rank + 1), float(group.rank))
        whole = group.start_gather(part, lengths, 1).wait()
        assert whole[0].tolist() == [float(rank) for rank in range(size) for _ in range(rank + 1)]
        assert group.gather_object(group.rank) == list(range(size))

    run_simulated(size, rank_main)


def test_subgroups_talk_among_themselves() -> None:
    def rank_main(group: Group) -> float:
        part = group.split([(0, 2), (1, 3)])
        return float(part.start_sum(torch.tensor(float(group.rank))).wait())

    assert run_simulated(4, rank_main) == [2.0, 4.0, 2.0, 4.0]


def test_a_rank_that_fails_ends_the_others_and_its_error_comes_out() -> None:
    seen = []

    def rank_main(group: Group) -> None:
        if group.rank == 1:
            raise ZeroDivisionError("mine")
        try:
            group.start_sum(torch.ones(1)).wait()
        except GroupFailed as error:
            seen.append(error.rank)
            raise

    with pytest.raises(ZeroDivisionError):
        run_simulated(3, rank_main)
    assert seen == [1, 1]


def test_traffic_is_counted() -> None:
    def rank_main(group: Group) -> tuple[float, int, int, int]:
        group.start_sum(torch.zeros(10)).wait()
        group.start_neighbours(torch.zeros(2), torch.zeros(3)).wait()
        group.start_gather(torch.zeros(4), [4, 4], 0).wait()
        traffic = group.traffic
        return traffic.sum_bytes, traffic.neighbour_bytes, traffic.gather_bytes, traffic.collectives

    assert run_simulated(2, rank_main) == [(40.0, 8, 16, 3), (40.0, 12, 16, 3)]
