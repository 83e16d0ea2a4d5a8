"""The supervisor: gives waiting jobs to idle workers, hears their events, replaces workers that die.

Runs in one thread of the server; listeners (HTTP handlers) get a copy of every event of their job. When the
queue's file cannot be written (a full disk), the thread goes on: what was not written is left to the lease.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from typing import Any

from fewer.core.errors import FileError
from fewer.serve.engine import ImageEvent, OutcomeEvent, StepEvent, batch_key
from fewer.serve.gathering import Gathering
from fewer.serve.job_store import ENDS, Job, JobStore
from fewer.serve.results import Results
from fewer.serve.worker import worker_main

logger = logging.getLogger(__name__)
Listener = Callable[[str, Any], None]
GRACE_SECONDS = 25.0
"""What running jobs have to end in when the server is stopped; its connections have a little more."""
DEAF_SECONDS = 60.0
"""A worker that goes on with a cancelled job for so long is replaced."""


@dataclass(slots=True)
class _Held:
    """A job that a worker is at."""

    job: Job
    images: list[dict] = field(default_factory=list)
    outcome: OutcomeEvent | None = None
    unsaved: bool = False
    noted: float = 0.0
    cancelled: float | None = None
    """When it was told to stop."""
    why: str | None = None
    """The code under which it then ends."""


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: connection.Connection
    number: int
    ready: bool = False
    together: int = 1
    held: dict[str, _Held] = field(default_factory=dict)


class Workers:
    """`count` processes of one engine."""

    def __init__(
        self,
        store: JobStore,
        results: Results,
        engine: str,
        options: dict,
        count: int = 1,
        start: bool = True,
    ) -> None:
        self._store, self._results = store, results
        self._engine, self._options, self._count = engine, options, count
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Anybody who adds or cancels a job wakes the thread through this pipe.
        self._bell, self._bell_in = self._context.Pipe(duplex=False)
        self._cancels: list[tuple[str, str | None]] = []
        self._thread = threading.Thread(target=self._loop, name="workers", daemon=True)
        self._renewed = 0.0
        self._grace = GRACE_SECONDS
        self._gathering = Gathering()
        self._stillborn, self._next_start = 0, 0.0
        self.restarts = 0
        if start:
            self._thread.start()

    def ring(self) -> None:
        """There is something new in the store."""
        try:
            self._bell_in.send(None)
        except OSError:
            logger.debug("the supervisor has ended")

    def listen(self, job: str, listener: Listener) -> None:
        """`listener(kind, value)` hears the job's events, in the supervisor's thread."""
        with self._lock:
            self._listeners.setdefault(job, []).append(listener)

    def unlisten(self, job: str, listener: Listener) -> None:
        """No more events for that listener."""
        with self._lock:
            listeners = self._listeners.get(job, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(job, None)

    def cancel(self, job: str, why: str | None = None) -> bool:
        """Ends a waiting job at once and a running one before its next step; False if it has ended.

        `why` becomes the job's code.
        """
        found = self._store.get(job)
        if found is None or found.state in ENDS:
            return False
        if found.state == "queued" and self._store.finish(job, "cancelled", code=why):
            self._tell(job, "cancelled", None)
            return True
        with self._lock:
            self._cancels.append((job, why))
        self.ring()
        return True

    def idle(self) -> int:
        """Workers that wait for work."""
        return sum(worker.ready and not worker.held for worker in self._workers)

    def able(self) -> bool:
        """Whether jobs are being done, or soon will be: not if every worker dies while it starts."""
        ended = self._thread.ident is not None and not self._thread.is_alive()
        return not ended and (self._stillborn < 3 or any(one.ready for one in self._workers))

    @property
    def stopping(self) -> bool:
        """Whether the server has been told to end."""
        return self._stopping.is_set()

    def begin_stop(self) -> None:
        """Hands out no more jobs; those that run have `GRACE_SECONDS`. Returns at once."""
        self._stopping.set()
        self.ring()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Takes no more jobs; running ones may end within the grace, then go back to the queue."""
        self._grace = min(self._grace, grace_seconds)
        self.begin_stop()
        if self._thread.ident is not None:
            self._thread.join(grace_seconds + 8)

    def _loop(self) -> None:
        stopped_at, told, complaint = None, False, ""
        while True:
            if self._stopping.is_set():
                stopped_at = stopped_at or time.monotonic()
                if not any(worker.held for worker in self._workers):
                    break
                if time.monotonic() > stopped_at + self._grace:
                    break
                if not told:
                    told = True
                    self._send_home()
            try:
                self._turn()
            except (sqlite3.Error, OSError) as error:  # a full disk, no more processes: it may pass
                if str(error) != complaint:
                    complaint = str(error)
                    logger.exception("the queue waits, something could not be written or started")
                time.sleep(0.5)
        self._end_workers()

    def _turn(self) -> None:
        if not self._stopping.is_set():
            while len(self._workers) < self._count and time.monotonic() >= self._next_start:
                self._workers.append(self._start())
            self._hand_out()
        self._send_cancels()
        self._keep_leases()
        waiting = [self._bell, *(worker.pipe for worker in self._workers)]
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        for thing in connection.wait([*waiting, *sentinels], timeout=self._gathering.patience(1.0)):
            if thing is self._bell:
                while self._bell.poll():
                    self._bell.recv()
            elif thing in sentinels:
                self._bury(sentinels[thing])
            else:
                worker = next((one for one in self._workers if one.pipe is thing), None)
                if worker is not None:  # it may have been buried in this very turn
                    self._hear(worker)

    def _send_home(self) -> None:
        """Clients of jobs that will not run any more hear of it now, not when their patience ends."""
        held = {job for worker in self._workers for job in worker.held}
        with self._lock:
            waiting = [job for job in self._listeners if job not in held]
        for job in waiting:
            self._tell(job, "stopping", None)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # it ends by nothing less, and holds nothing that must be saved
            for held in worker.held.values():
                try:
                    self._store.requeue(held.job.id, attempt=held.job.attempts, blame=False)
                except sqlite3.Error:  # its lease ends, then it waits again
                    logger.exception("job %s could not be given back", held.job.id)
        with self._lock:
            waiting = list(self._listeners)
        for job in waiting:
            self._tell(job, "stopping", None)
        for worker in self._workers:
            worker.process.join(5)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        taken = {worker.number for worker in self._workers}
        number = next(number for number in range(self._count) if number not in taken)
        options = {**self._options, "number": number}
        # A worker that leads a group of ranks has children, which a daemon may not have.
        alone = options.get("group", 1) == 1
        process = self._context.Process(
            target=worker_main, args=(theirs, self._engine, options), daemon=alone
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, number)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and not worker.held:
                if self._gathering.wanted(self._store.waiting, worker.together):
                    return
                jobs = self._take(worker.together)
                if not jobs:
                    return
                self._gathering.drawn(len(jobs))
                worker.held = {job.id: _Held(job) for job in jobs}
                if self._send(worker, ("run", [(job.id, job.request) for job in jobs])):
                    for job in jobs:
                        self._tell(job.id, "running", None)

    def _take(self, together: int) -> list[Job]:
        """The first waiting job, and those behind it that can be drawn in the same batch."""
        first = self._store.take()
        if first is None:
            return []
        key, jobs = batch_key(first.request), [first]
        if together > 1 and key is not None:
            room = together - _pictures(first)
            for job in self._store.jobs(state="queued", limit=8 * together):
                if batch_key(job.request) == key and _pictures(job) <= room:
                    taken = self._store.take(job.id)
                    if taken is not None:
                        jobs.append(taken)
                        room -= _pictures(taken)
        return jobs

    def _keep_leases(self) -> None:
        """Once a second: renews what runs here, takes over what another server has left behind."""
        now = time.monotonic()
        if now - self._renewed < 1.0:
            return
        self._renewed = now
        for worker in self._workers:
            for held in worker.held.values():
                if not self._store.renew(held.job.id, held.job.attempts):
                    self._stop_drawing(worker, held)
            if any(held.cancelled and now - held.cancelled > DEAF_SECONDS for held in worker.held.values()):
                logger.warning("a worker did not stop within %g s; it is replaced", DEAF_SECONDS)
                worker.process.kill()
        self._store.recover({job for worker in self._workers for job in worker.held})

    def _stop_drawing(self, worker: _Worker, held: _Held, why: str | None = None) -> None:
        if held.cancelled is None:
            held.cancelled, held.why = time.monotonic(), why
            self._send(worker, ("cancel", held.job.id))

    def _send_cancels(self) -> None:
        with self._lock:
            wanted, self._cancels = self._cancels, []
        holders = {job: worker for worker in self._workers for job in worker.held}
        for job, why in wanted:
            if job in holders:
                self._stop_drawing(holders[job], holders[job].held[job], why)
            elif self._store.finish(job, "cancelled", code=why):  # its own server sees that when it renews
                self._tell(job, "cancelled", None)

    def _send(self, worker: _Worker, message: tuple) -> bool:
        try:
            worker.pipe.send(message)
        except OSError:  # it died a moment ago; its sentinel tells the loop, which buries it
            return False
        return True

    def _hear(self, worker: _Worker) -> None:
        try:
            self._hear_one(worker)
        except (EOFError, OSError):
            self._bury(worker)

    def _hear_one(self, worker: _Worker) -> None:
        kind, job, value = worker.pipe.recv()
        if kind == "ready":
            worker.ready, worker.together = True, value
            return
        held = worker.held.get(job)
        if held is None:
            return
        if kind == "step":
            self._note(held, value)
            self._tell(job, "step", value)
        elif kind == "image":
            self._keep(worker, held, value)
        elif kind == "outcome":
            held.outcome = value
        elif kind == "again":
            held.images.clear()
        else:
            self._end(worker, held, kind, value)

    def _note(self, held: _Held, event: StepEvent) -> None:
        """Listeners hear every step; the file, which others look at now and then, only five a second."""
        now = time.monotonic()
        if event.step == event.steps or now - held.noted > 0.2:
            held.noted = now
            self._store.progress(held.job.id, event.step, event.steps)

    def _keep(self, worker: _Worker, held: _Held, event: ImageEvent) -> None:
        try:
            facts = self._results.keep(held.job, event)
        except (OSError, FileError):  # a full disk ends this job, not the supervisor
            logger.exception("the result of job %s could not be saved", held.job.id)
            held.unsaved = True
            self._stop_drawing(worker, held)
            return
        held.images.append(facts)
        self._tell(held.job.id, "image", facts)

    def _end(self, worker: _Worker, held: _Held, kind: str, value: object) -> None:
        job = held.job.id
        del worker.held[job]
        if held.unsaved:
            kind, value = "failed", ("the picture could not be saved on the server", "storage")
        if self.stopping and kind == "failed" and value[1] == "group_failed":  # type: ignore[index]
            # Whoever ends the server may have ended a worker's ranks before.
            self._store.requeue(job, attempt=held.job.attempts, blame=False)
            self._tell(job, "stopping", None)
            return
        if kind == "done":
            result: dict[str, object] = {"images": held.images}
            if held.outcome is not None:
                result = {"images": [], "facts": held.outcome.facts, "files": list(held.outcome.files)}
            self._finish(held, "done", held.images, result=result)
        elif kind == "cancelled":
            self._finish(held, "cancelled", None, code=held.why)
        else:
            error, code = value  # type: ignore[misc]
            self._finish(held, "failed", (error, code), error=error, code=code)

    def _finish(self, held: _Held, state: Any, value: object, **facts: Any) -> None:
        """Ends a job, if it is still ours to end, and says so to those who wait."""
        if self._store.finish(held.job.id, state, attempt=held.job.attempts, **facts):
            self._tell(held.job.id, state, value)

    def _bury(self, worker: _Worker) -> None:
        """A worker is gone: its job is tried again or fails, a new worker takes its place."""
        if worker not in self._workers:
            return
        try:
            while worker.pipe.poll():  # what it said before it died: perhaps that the job is done
                self._hear_one(worker)
        except (EOFError, OSError):
            logger.debug("nothing more to hear")
        self._workers.remove(worker)
        self.restarts += 1
        if worker.ready:
            self._stillborn = 0
        else:  # it does not even start: no storm of processes
            self._stillborn += 1
            self._next_start = time.monotonic() + min(30.0, 0.5 * 2**self._stillborn)
        worker.process.join(1)
        for held in worker.held.values():
            identity = held.job.id
            logger.warning("a worker died (exit code %s) with job %s", worker.process.exitcode, identity)
            if held.cancelled is not None and not held.unsaved:
                self._finish(held, "cancelled", None, code=held.why)
            elif not self._store.requeue(identity, attempt=held.job.attempts, blame=not self.stopping):
                ended = self._store.get(identity)
                if ended is not None and ended.state == "failed":
                    self._tell(identity, "failed", (ended.error, ended.code))

    def _tell(self, job: str, kind: str, value: object) -> None:
        with self._lock:
            listeners = list(self._listeners.get(job, []))
        for listener in listeners:
            listener(kind, value)


def _pictures(job: Job) -> int:
    return int(job.request.get("generate", {}).get("count", 1))
