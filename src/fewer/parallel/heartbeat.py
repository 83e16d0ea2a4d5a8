"""Ends a rank whose GPU does not come back: inside a replayed graph no timeout of torch.distributed counts.

A collective whose partner is gone waits on the GPU for ever, and the process waits with it. So a thread asks
whether the last step has ended; if not in time, the process leaves, and the launcher names it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

logger = logging.getLogger(__name__)

STUCK = 75
"""The exit code of a rank that was stuck (EX_TEMPFAIL: try again)."""


@runtime_checkable
class Expected(Protocol):
    """Something that will have happened, such as a CUDA event."""

    def query(self) -> bool: ...


class Heartbeat:
    """Watches one expectation at a time; a new one replaces the one before, which lies earlier on the GPU."""

    def __init__(
        self, timeout_seconds: float, leave: Callable[[], None] | None = None, every: float = 1.0
    ) -> None:
        self._timeout, self._every = timeout_seconds, every
        self._leave = leave or (lambda: os._exit(STUCK))
        self._waiting: tuple[Expected, float] | None = None
        self._thread: threading.Thread | None = None

    def expect(self, event: Expected) -> None:
        """`event` has to happen within the timeout."""
        self._waiting = (event, time.monotonic() + self._timeout)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="fewer-heartbeat")
            self._thread.start()

    def _watch(self) -> None:
        while True:
            time.sleep(self._every)
            waiting = self._waiting
            if waiting is None:
                continue
            event, deadline = waiting
            if event.query():
                if self._waiting is waiting:
                    self._waiting = None
            elif time.monotonic() > deadline:
                logger.error("a step did not end within %.0f s; this rank leaves its group", self._timeout)
                self._leave()
                return
