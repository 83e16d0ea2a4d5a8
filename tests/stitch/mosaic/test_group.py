import pytest

from fewer.stitch.mosaic.group import Group
from fewer.stitch.mosaic.workers import Workers


@pytest.mark.parametrize("count", [1, 3])
def test_full_groups_begin_by_themselves_and_the_rest_when_asked(count: int) -> None:
    seen = []

    def work(members: list[int]) -> list[int]:
        seen.append(list(members))
        return [2 * each for each in members]

    with Workers(count) as workers:
        group = Group(work, workers, most=3)
        answers = [group.add(number) for number in range(5)]
        assert [answer.result(5) for answer in answers[:3]] == [0, 2, 4]
        assert not answers[3].done()
        group.begin()
        group.begin()  # nothing is left
        assert [answer.result(5) for answer in answers[3:]] == [6, 8]
    assert seen == [[0, 1, 2], [3, 4]]


def test_an_answer_that_is_needed_starts_its_own_group_only() -> None:
    seen = []
    with Workers(1) as workers:
        group = Group(lambda members: [seen.append(list(members))] * len(members), workers, most=2)
        first, _, third = (group.add(number) for number in range(3))
        group.hurry(first)  # begun before
        assert seen == [[0, 1]]
        group.hurry(third)
        assert seen == [[0, 1], [2]]


def test_another_kind_begins_another_group() -> None:
    seen = []
    with Workers(1) as workers:
        group = Group(lambda members: [seen.append(list(members))] * len(members), workers, most=9)
        for number, kind in enumerate("aabba"):
            group.add(number, kind)
        group.begin()
    assert seen == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_reaches_everybody_who_waits(count: int) -> None:
    def work(members: list[int]) -> list[int]:
        raise ValueError("no")

    with Workers(count) as workers:
        group = Group(work, workers, most=2)
        for answer in (group.add(1), group.add(2)):
            with pytest.raises(ValueError, match="no"):
                answer.result(5)
