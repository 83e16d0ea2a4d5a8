"""A moment for a fuller batch: requests that come side by side arrive some milliseconds apart.

An idle worker that took the first at once would draw it alone, and the rest after it. So where the batch
before held several jobs, others of their kind are waited for; a client that comes alone never waits.
"""

import time
from collections.abc import Callable

GATHER_SECONDS = 0.01


class Gathering:
    """Decides whether an idle worker waits. `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._crowded = False
        self._until: float | None = None

    def drawn(self, jobs: int) -> None:
        """A batch of so many jobs was handed out."""
        self._crowded, self._until = jobs > 1, None

    def wanted(self, waiting: Callable[[int], int], together: int) -> bool:
        """Whether to wait on; `waiting(n)` counts the jobs that wait, up to n."""
        if together < 2 or not self._crowded or not 0 < waiting(together) < together:
            self._until = None
            return False
        if self._until is None:
            self._until = self._now() + GATHER_SECONDS
        return self._now() < self._until

    def patience(self, most: float) -> float:
        """Seconds until somebody must look again, at most `most`."""
        return most if self._until is None else min(most, max(0.0, self._until - self._now()))
