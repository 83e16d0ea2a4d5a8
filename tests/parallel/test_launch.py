"""Acceptance A7: what goes wrong is named, and nothing hangs."""

import signal
import time
from queue import Queue

import pytest

from fewer.core.errors import ConfigError
from fewer.parallel.group import GroupFailed
from fewer.parallel.launch import RankPool, _hear, _interrupts_for_the_parent, run_on_devices
from fewer.parallel.rank_process import packed
from tests.parallel import ranks


def test_a_rank_that_hangs_is_not_waited_for_forever() -> None:
    began = time.monotonic()
    with pytest.raises(GroupFailed, match="lost its group"):
        run_on_devices(ranks.hang, 2, device_type="cpu", timeout_seconds=3.0)
    assert time.monotonic() - began < 60


class Gone:
    """A process that has left, as if all were well."""

    exitcode = 0


def test_a_rank_that_leaves_without_an_answer_is_not_waited_for() -> None:
    with pytest.raises(GroupFailed, match=r"rank 0 of 1 died \(it left without an answer\)"):
        list(_hear([Gone()], Queue(), {}))
    answers: Queue = Queue()
    answers.put((0, "answer", packed(5)))  # what it said before it left counts
    reported: dict = {}
    assert list(_hear([Gone()], answers, reported)) == [] and reported == {0: ("answer", 5)}


def test_ranks_are_started_deaf_to_ctrl_c_and_the_parent_is_not() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with _interrupts_for_the_parent():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # what a process inherits
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_calls_at_the_same_time_are_refused_and_do_not_take_each_others_answers() -> None:
    pool = RankPool(2)
    with pool._alone():
        for call in (lambda: pool.call(ranks.count_calls), lambda: next(pool.stream(ranks.steps, 2))):
            with pytest.raises(ConfigError, match="busy with another call"):
                call()
    with pool._alone():  # free again
        assert not pool._processes


def test_a_single_rank_of_torchrun_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert run_on_devices(ranks.collectives, 1, device_type="cpu")[0] == [0.0, 1.0, 2.0]  # type: ignore[index]


def test_an_error_of_ours_comes_through_as_itself(pair: RankPool) -> None:
    with pytest.raises(ConfigError, match="not with me"):
        pair.call(ranks.refuse)


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="64 devices were asked for"):
        run_on_devices(ranks.refuse, 64, device_type="cuda")


def test_a_group_lives_on_and_a_rank_that_dies_ends_the_others_and_is_named(pair: RankPool) -> None:
    before = pair.call(ranks.count_calls)
    assert pair.call(ranks.count_calls) == before + 1  # type: ignore[operator]
    began = time.monotonic()
    with pytest.raises(GroupFailed, match=r"rank 1 .*died \(signal 9\)") as caught:
        pair.call(ranks.die, 1)
    assert caught.value.rank == 1
    assert time.monotonic() - began < 60
    assert pair.call(ranks.count_calls) == 1  # another group


def test_a_single_rank_that_dies_is_no_endless_wait() -> None:
    with pytest.raises(GroupFailed, match="rank 0"):
        run_on_devices(ranks.die, 1, 0, device_type="cpu")


def test_parts_of_a_group_may_be_split_further_by_their_members_alone(trio: RankPool) -> None:
    found = trio.call(ranks.parts_of_parts)
    assert found == [1.0, 2.0, 4.0, 1.0, 2.0, 2.0, 4.0]  # of ranks 0, 1 and 2, one behind the other


def test_steps_are_heard_as_they_are_made_and_can_be_stopped(pair: RankPool) -> None:
    before = pair.call(ranks.count_calls)
    assert list(pair.stream(ranks.steps, 3)) == [(0, 2.0), (1, 2.0), (2, 2.0)]
    heard = []
    events = pair.stream(ranks.steps, 1000)
    for step, _ in events:  # type: ignore[misc]
        heard.append(step)
        if len(heard) == 3:
            events.close()  # type: ignore[attr-defined]
    assert heard == [0, 1, 2]
    assert pair.call(ranks.count_calls) == before + 1  # type: ignore[operator]  # the same ranks go on
    with pytest.raises(GroupFailed, match="rank 1"):
        list(pair.stream(ranks.steps, 5, 1))
    assert list(pair.stream(ranks.steps, 1)) == [(0, 2.0)]  # another group
