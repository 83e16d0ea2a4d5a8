import threading
import time

from fewer.parallel.heartbeat import Heartbeat


class Event:
    def __init__(self, done: bool) -> None:
        self.done = done

    def query(self) -> bool:
        return self.done


def test_a_step_that_does_not_end_makes_the_rank_leave_and_one_that_ends_does_not() -> None:
    left = threading.Event()
    heartbeat = Heartbeat(0.2, left.set, every=0.02)
    for _ in range(3):
        heartbeat.expect(Event(done=True))
        time.sleep(0.05)
    assert not left.wait(0.4)
    heartbeat.expect(Event(done=False))
    assert left.wait(5.0)


def test_a_later_step_takes_the_place_of_an_earlier_one() -> None:
    left = threading.Event()
    heartbeat = Heartbeat(0.3, left.set, every=0.02)
    heartbeat.expect(Event(done=False))
    heartbeat.expect(Event(done=True))
    assert not left.wait(0.6)
