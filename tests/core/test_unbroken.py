import os
import signal
import threading

import pytest

from fewer.core.unbroken import unbroken

pytestmark = pytest.mark.usefixtures("interruptible")


def ask() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_what_was_begun_is_finished_first() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with unbroken():
            ask()
            done.append("block")
        done.append("after")
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_time_means_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), unbroken():
        ask()
        ask()
        done.append("block")
    assert done == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_nothing_happens_and_errors_pass() -> None:
    with unbroken():
        pass
    with pytest.raises(ValueError, match="own"), unbroken():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_and_threads_are_left_alone() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with unbroken():
            ask()
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)

    def work() -> None:
        with unbroken():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[-1] is signal.default_int_handler
