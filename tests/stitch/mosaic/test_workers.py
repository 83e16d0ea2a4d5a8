import math
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Iterator

import cv2
import pytest

from fewer.core.errors import ConfigError
from fewer.stitch.mosaic.workers import MOST, Workers, sensible_count


@pytest.mark.parametrize("count", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    with Workers(count) as workers:
        assert list(workers.in_order(late, range(20))) == [item * item for item in range(20)]


@pytest.mark.parametrize("count", [1, 3])
def test_only_a_few_results_wait(count: int) -> None:
    given = []

    def items() -> Iterator[int]:
        for item in range(100):
            given.append(item)
            yield item

    with Workers(count) as workers:
        results = workers.in_order(lambda item: item, items())
        next(results)
        assert len(given) <= count + 3


def test_large_frames_wait_in_smaller_numbers() -> None:
    workers = Workers(16)
    assert workers.ahead(700_000) == 18
    assert workers.ahead(50_000_000) == 5
    assert workers.ahead(10**9) == 2
    assert Workers(1).ahead(1) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_an_error_comes_at_its_turn_and_leaves_no_thread(count: int) -> None:
    def work(item: int) -> int:
        return 1 // (item - 3)

    done = []
    with pytest.raises(ZeroDivisionError), Workers(count) as workers:
        done.extend(workers.in_order(work, range(10)))
    before = [thread.name for thread in threading.enumerate() if thread.name.startswith("stitch")]
    assert before == []


def test_an_interruption_forgets_what_has_not_begun() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        for item in range(100):
            workers.submit(work, item)
        raise KeyboardInterrupt
    assert len(begun) < 100


def test_opencv_keeps_to_one_thread_and_gets_its_own_back() -> None:
    before = cv2.getNumThreads()
    with Workers(2):
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


def test_the_number_of_workers_is_sensible() -> None:
    assert 1 <= sensible_count() <= MOST
    with pytest.raises(ConfigError, match="0 workers"):
        Workers(0)


def test_work_apart_is_done_by_other_processes_and_its_errors_come_back() -> None:
    with Workers(2, apart=True) as workers:
        assert workers.has_processes
        assert workers.apart(os.getpid) != os.getpid()
        assert workers.apart(math.hypot, 3.0, 4.0) == 5.0
        with pytest.raises(ZeroDivisionError):
            workers.apart(divmod, 1, 0)
        assert workers.submit(workers.apart, os.getpid).result() != os.getpid()
    for alone in (Workers(1, apart=True), Workers(2)):
        with alone:
            assert not alone.has_processes
            assert alone.apart(os.getpid) == os.getpid()


def test_the_caller_does_what_dead_processes_cannot() -> None:
    with Workers(2, apart=True) as workers:
        assert workers.apart(_die_unless, os.getpid()) == os.getpid()
        assert not workers.has_processes
        assert workers.apart(math.hypot, 3.0, 4.0) == 5.0


def test_a_daemon_has_no_processes() -> None:
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        daemon = context.Process(target=_without_processes, daemon=True)
        daemon.start()
    daemon.join(20)
    assert daemon.exitcode == 0


def test_work_for_a_device_is_done_in_turn_by_one_thread() -> None:
    seen = []
    with Workers(4) as workers:
        for number in range(20):
            workers.submit_in_turn(lambda each: seen.append((each, threading.get_ident())), number)
        workers.submit_in_turn(int).result()
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1


def _die_unless(parent: int) -> int:
    if os.getpid() != parent:
        os._exit(1)
    return parent


def _without_processes() -> None:
    with Workers(2, apart=True) as workers:
        os._exit(int(workers.has_processes))
