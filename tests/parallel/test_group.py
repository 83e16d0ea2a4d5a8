import torch

from fewer.parallel.group import Group, GroupFailed, Traffic, count_gather, count_neighbours, count_sum
from fewer.parallel.simulated import SimulatedGroup, run_simulated


def test_both_kinds_of_group_keep_the_protocol() -> None:
    assert run_simulated(1, lambda group: isinstance(group, Group)) == [True]
    assert issubclass(SimulatedGroup, object) and hasattr(SimulatedGroup, "start_gather")


def test_bytes_are_counted_as_documented() -> None:
    traffic = Traffic()
    count_sum(traffic, torch.zeros(12), 4)
    count_neighbours(traffic, (torch.zeros(5), None), 4)
    count_gather(traffic, torch.zeros(3), torch.zeros(9), 4)
    assert (traffic.sum_bytes, traffic.neighbour_bytes, traffic.gather_bytes) == (72.0, 20, 24)
    assert traffic.collectives == 3
    traffic.clear()
    assert traffic == Traffic()


def test_a_group_of_one_costs_nothing() -> None:
    traffic = Traffic()
    count_sum(traffic, torch.zeros(12), 1)
    count_gather(traffic, torch.zeros(3), torch.zeros(3), 1)
    assert traffic == Traffic()


def test_failure_knows_its_rank() -> None:
    assert GroupFailed("gone", 3).rank == 3 and GroupFailed("gone").exit_code == 1
