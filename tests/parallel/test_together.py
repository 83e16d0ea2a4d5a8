from collections.abc import Generator

from fewer.parallel.group import Group
from fewer.parallel.simulated import run_simulated
from fewer.parallel.together import until_stopped


def test_all_ranks_stop_at_the_step_at_which_one_is_asked_to() -> None:
    def rank_main(group: Group) -> tuple[list[int], bool]:
        closed = []

        def count() -> Generator[int, None, None]:
            try:
                yield from range(100)
            finally:
                closed.append(True)

        seen: list[int] = []
        for event in until_stopped(group, count(), lambda: group.rank == 2 and len(seen) == 4):
            seen.append(event)
        return seen, bool(closed)

    assert run_simulated(3, rank_main) == [([0, 1, 2, 3], True)] * 3


def test_events_that_end_by_themselves_are_all_there() -> None:
    def rank_main(group: Group) -> list[int]:
        return list(until_stopped(group, (number for number in range(5)), lambda: False))

    assert run_simulated(2, rank_main) == [[0, 1, 2, 3, 4]] * 2
