"""What runs in a process of a `RankPool`: join the group, do what is sent, answer, leave with the parent."""

import os
import threading
import time
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import distributed

from fewer.core.errors import FewerError
from fewer.core.ranks import join_ranks
from fewer.parallel.heartbeat import Heartbeat
from fewer.parallel.process_group import ProcessGroup
from fewer.parallel.together import until_stopped

RankMain = Callable[..., Any]
ORPHANED = 70
"""The exit code of a rank whose parent has gone."""


def rank_process(
    rank: int, devices: int, store: str, kind: str, timeout_seconds: float, answers: Any, pipe: Any, stop: Any
) -> None:
    starter = parent_process()
    parent = os.getppid() if starter is None else starter.pid or 0
    threading.Thread(target=leave_with, args=(parent,), daemon=True, name="fewer-parent").start()
    if kind == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    try:
        join_ranks(kind, timeout_seconds, init_method=f"file://{store}", own_rank=rank, ranks=devices)
        heartbeat = Heartbeat(timeout_seconds) if kind == "cuda" else None
        group = ProcessGroup(heartbeat=heartbeat, timeout_seconds=timeout_seconds)
        while (task := _next(pipe)) is not None:
            rank_main, arguments, streamed = task
            result = rank_main(group, *arguments)
            if streamed:
                for event in until_stopped(group, result, lambda: stop.is_set() or os.getppid() != parent):
                    if rank == 0:
                        answers.put((rank, "event", packed(event)))
            # Only the first rank's answer is asked for.
            answers.put((rank, "answer", packed(None if streamed or rank else result)))
    except FewerError as error:
        answers.put((rank, "error", error))
    except Exception as error:
        answers.put((rank, "error", f"{type(error).__name__}: {error}"))
    else:
        distributed.destroy_process_group()


def leave_with(
    parent: int, leave: Callable[[int], object] = os._exit, parent_now: Callable[[], int] = os.getppid
) -> None:
    """Ends this process within a second of its parent's end: nobody would hear what it has to say.

    A parent that is killed, or told to terminate, ends no rank by itself.
    """
    while parent_now() == parent:
        time.sleep(0.5)
    leave(ORPHANED)


def packed(value: object) -> bytes:
    """Ready to be sent. What cannot be sent fails here, where it is reported: a queue would lose it."""
    return bytes(ForkingPickler.dumps(value))


def _next(pipe: Any) -> tuple[RankMain, tuple, bool] | None:
    try:
        return pipe.recv()
    except EOFError:  # the parent is gone
        return None
