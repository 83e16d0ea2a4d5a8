"""A worker, driven through its pipe without a server."""

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from fewer.serve.worker import worker_main


@pytest.fixture
def pipe() -> Iterator[Connection]:
    ours, theirs = Pipe()
    options = {"seconds": 0.05, "log": None}
    thread = threading.Thread(
        target=worker_main, args=(theirs, "tests.serve.engines:quick", options), daemon=True
    )
    thread.start()
    assert ours.recv() == ("ready", None, 1)
    yield ours
    ours.send(("stop",))
    thread.join(5)
    assert not thread.is_alive()


def run(pipe: Connection, prompt: str, steps: int = 3) -> list:
    pipe.send(("run", [("j", {"generate": {"prompt": [prompt], "steps": steps}})]))
    heard = []
    while not heard or heard[-1][0] not in ("done", "failed", "cancelled"):
        heard.append(pipe.recv())
    return heard


def test_steps_then_a_picture_then_done(pipe: Connection) -> None:
    assert [message[0] for message in run(pipe, "a cat")] == ["step", "step", "step", "image", "done"]


def test_cancelling_stops_before_the_next_step(pipe: Connection) -> None:
    pipe.send(("run", [("j", {"generate": {"prompt": ["a cat"], "steps": 100}})]))
    pipe.recv()
    pipe.send(("cancel", "j"))
    kinds = []
    while not kinds or kinds[-1] != "cancelled":
        kinds.append(pipe.recv()[0])
    assert kinds.count("step") <= 2
    assert run(pipe, "next")[-1][0] == "done"


def test_failures_are_told_and_survived(pipe: Connection) -> None:
    assert run(pipe, "too big")[-1][2][1] == "capacity"
    assert run(pipe, "out of memory")[-1][2][1] == "capacity"
    message, code = run(pipe, "broken")[-1][2]
    assert code == "internal" and "secret" not in message
    assert run(pipe, "good")[-1][0] == "done"
