"""Who does the work: a crew of threads whose results come back in the order they were asked for, or the
caller alone. Work that is many small steps of Python can be done apart, in processes: only one thread of a
process runs Python at a time, and the one that feeds a GPU must not wait for it.

Frames are the unit of work, so libraries run one thread each meanwhile: OpenCV, BLAS and torch would
otherwise start a team of their own in every worker, and waiting teams eat the cores that others need.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TypeVar

import cv2
from threadpoolctl import threadpool_limits

from fewer.core.errors import ConfigError

MOST = 16
_BUDGET = 256 * 2**20  # bytes of frames that wait in one queue
_MOST_APART = 8
_TURN = 0.0005  # seconds after which a thread that runs Python lets another one

Item = TypeVar("Item")
Result = TypeVar("Result")


def sensible_count() -> int:
    """The processors this process may use, at most sixteen."""
    allowed = getattr(os, "sched_getaffinity", None)
    return max(1, min(MOST, len(allowed(0)) if allowed else os.cpu_count() or 1))


class Workers:
    """Use as a context. With a `count` of one everything happens in the caller, at the moment of asking; with
    more the results are the same bit for bit.
    """

    def __init__(self, count: int | None = None, apart: bool = False) -> None:
        """With `apart` there are processes too, where the system can divide one in two."""
        self.count = sensible_count() if count is None else count
        if self.count < 1:
            raise ConfigError(f"{count} workers can do nothing; give 1 or more, or None for one a processor")
        self._pool = ThreadPoolExecutor(self.count, "stitch") if self.count > 1 else None
        self._feeder = ThreadPoolExecutor(1, "stitch-feeder") if self.count > 1 else None
        self._limits = ExitStack()
        # a daemon, such as a server's worker, may not have children
        can = (
            "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon
        )
        self._apart = apart and self.count > 1 and can
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        self._limits.enter_context(one_thread_each())
        if self._apart:
            self._processes = _divided(min(self.count, _MOST_APART))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what has begun ends, what has not is forgotten: an error or Ctrl-C leaves no thread behind
        for pool in (self._feeder, self._pool, self._processes):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._limits.close()

    def submit(self, work: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """An error of the work comes when its result is asked for."""
        return self._given_to(self._pool, work, *arguments)

    def submit_in_turn(self, work: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """Work for a GPU, which does one thing after the other: a thread of its own does it, in the order
        asked for.
        """
        return self._given_to(self._feeder, work, *arguments)

    def _given_to(
        self, pool: ThreadPoolExecutor | None, work: Callable[..., Result], *arguments: object
    ) -> "Future[Result]":
        if pool is not None:
            return pool.submit(work, *arguments)
        done: Future[Result] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    @property
    def has_processes(self) -> bool:
        """Whether `apart` is really apart."""
        return self._processes is not None

    def apart(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Done by a process if there are any, by the caller if not or if they have died; waits for the
        result. Work and arguments must be such that they can be sent.
        """
        if self._processes is not None:
            try:
                return self._processes.submit(work, *arguments).result()
            except BrokenProcessPool:
                self._processes = None
        return work(*arguments)

    def ahead(self, bytes_each: int) -> int:
        """How many results may wait: enough to keep everybody busy, few enough for memory."""
        if self.count == 1:
            return 0
        return max(2, min(self.count + 2, _BUDGET // max(bytes_each, 1)))

    def in_order(
        self, work: Callable[[Item], Result], items: Iterable[Item], ahead: int | None = None
    ) -> Iterator[Result]:
        """`map`, of which only a few results are ever waiting."""
        most = self.ahead(1) if ahead is None else ahead
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self.submit(work, item))
            while len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Libraries keep to the thread that calls them; what was set before comes back at the end."""
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_TURN)
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        stack.enter_context(threadpool_limits(1, "blas"))
        torch = sys.modules.get("torch")  # not imported here: that takes seconds
        if torch is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def _divided(count: int) -> ProcessPoolExecutor:
    """Copies of this process, made at once: before it has threads of its own that would be cut off."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _deaf_to_interruptions)
    with warnings.catch_warnings():
        # the copies run numpy alone and never touch what other threads may hold
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(os.getpid).result()
    return pool


def _deaf_to_interruptions() -> None:
    """Ctrl-C is for the process that gives the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
