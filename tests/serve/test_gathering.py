"""Jobs that come side by side meet in one batch; who comes alone is not held up."""

from fewer.serve.gathering import GATHER_SECONDS, Gathering


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_who_comes_alone_never_waits() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    assert not gathering.wanted(lambda most: 1, 8) and gathering.patience(1.0) == 1.0
    gathering.drawn(1)
    assert not gathering.wanted(lambda most: 1, 8)
    gathering.drawn(3)
    assert not gathering.wanted(lambda most: 1, 1)  # a worker that draws one at a time


def test_after_a_batch_the_next_has_a_moment_and_no_more() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.drawn(3)
    assert gathering.wanted(lambda most: 2, 4)
    assert 0 < gathering.patience(1.0) <= GATHER_SECONDS
    clock.now += GATHER_SECONDS / 2
    assert gathering.wanted(lambda most: 3, 4)
    clock.now += GATHER_SECONDS
    assert not gathering.wanted(lambda most: 3, 4)
    gathering.drawn(1)  # nobody else had come
    assert not gathering.wanted(lambda most: 1, 4) and gathering.patience(1.0) == 1.0


def test_a_full_batch_and_an_empty_queue_are_not_waited_for() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.drawn(2)
    assert gathering.wanted(lambda most: 3, 4)
    assert not gathering.wanted(lambda most: 4, 4)
    assert not gathering.wanted(lambda most: 0, 4) and gathering.patience(1.0) == 1.0
