"""The supervisor: gives waiting jobs to idle workers, hears their events, replaces workers that die.

Runs in one thread of the server; listeners (HTTP handlers) get a copy of every event of their job.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from typing import Any

from fewer.core.errors import FileError
from fewer.serve.engine import ImageEvent, StepEvent
from fewer.serve.job_store import Job, JobStore
from fewer.serve.results import Results
from fewer.serve.worker import worker_main

logger = logging.getLogger(__name__)
Listener = Callable[[str, Any], None]


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: connection.Connection
    ready: bool = False
    job: Job | None = None
    images: list[dict] = field(default_factory=list)
    unsaved: bool = False
    noted: float = 0.0


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
        self._cancels: list[str] = []
        self._thread = threading.Thread(target=self._loop, name="workers", daemon=True)
        self._renewed = 0.0
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

    def cancel(self, job: str) -> bool:
        """Ends a waiting job at once and a running one before its next step; False if it has ended."""
        found = self._store.get(job)
        if found is None or found.state not in ("queued", "running"):
            return False
        if found.state == "queued" and self._store.finish(job, "cancelled"):
            self._tell(job, "cancelled", None)
            return True
        with self._lock:
            self._cancels.append(job)
        self.ring()
        return True

    def idle(self) -> int:
        """Workers that wait for work."""
        return sum(worker.ready and worker.job is None for worker in self._workers)

    def stop(self, grace_seconds: float = 30.0) -> None:
        """Takes no more jobs; running ones may end within the grace, then go back to the queue."""
        self._stopping.set()
        self.ring()
        self._thread.join(grace_seconds + 5)

    def _loop(self) -> None:
        deadline = None
        while True:
            if self._stopping.is_set():
                deadline = deadline or time.monotonic() + 30
                if all(worker.job is None for worker in self._workers) or time.monotonic() > deadline:
                    break
            else:
                while len(self._workers) < self._count and time.monotonic() >= self._next_start:
                    self._workers.append(self._start())
                self._hand_out()
            self._send_cancels()
            self._keep_leases()
            waiting = [self._bell, *(worker.pipe for worker in self._workers)]
            sentinels = {worker.process.sentinel: worker for worker in self._workers}
            for thing in connection.wait([*waiting, *sentinels], timeout=1.0):
                if thing is self._bell:
                    while self._bell.poll():
                        self._bell.recv()
                elif thing in sentinels:
                    self._bury(sentinels[thing])
                else:
                    self._hear(next(worker for worker in self._workers if worker.pipe is thing))
        for worker in self._workers:
            if worker.job is not None:
                self._store.requeue(worker.job.id)
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(theirs, self._engine, self._options), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.job is None:
                job = self._store.take()
                if job is None:
                    return
                worker.job, worker.images = job, []
                if self._send(worker, ("run", job.id, job.request)):
                    self._tell(job.id, "running", None)

    def _keep_leases(self) -> None:
        """Once a second: renews what runs here, takes over what another server has left behind."""
        if time.monotonic() - self._renewed < 1.0:
            return
        self._renewed = time.monotonic()
        for worker in self._workers:
            if worker.job is not None and not self._store.renew(worker.job.id):
                self._send(worker, ("cancel", worker.job.id))
        self._store.recover()

    def _send_cancels(self) -> None:
        with self._lock:
            wanted, self._cancels = self._cancels, []
        held = {worker.job.id: worker for worker in self._workers if worker.job is not None}
        for job in wanted:
            if job in held:
                self._send(held[job], ("cancel", job))
            elif self._store.finish(job, "cancelled"):  # its own server sees that when it renews the lease
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
        kind, *rest = worker.pipe.recv()
        if kind == "ready":
            worker.ready = True
            return
        job, value = rest
        if worker.job is None or worker.job.id != job:
            return
        if isinstance(value, StepEvent):
            self._note(worker, job, value)
            self._tell(job, "step", value)
        elif isinstance(value, ImageEvent):
            self._keep(worker, worker.job, value)
        else:
            self._end(worker, kind, value)

    def _note(self, worker: _Worker, job: str, event: StepEvent) -> None:
        """Listeners hear every step; the file, which others look at now and then, only five a second."""
        now = time.monotonic()
        if event.step == event.steps or now - worker.noted > 0.2:
            worker.noted = now
            self._store.progress(job, event.step, event.steps)

    def _keep(self, worker: _Worker, job: Job, event: ImageEvent) -> None:
        try:
            facts = self._results.keep(job, event)
        except (OSError, FileError):  # a full disk ends this job, not the supervisor
            logger.exception("the result of job %s could not be saved", job.id)
            worker.unsaved = True
            self._send(worker, ("cancel", job.id))
            return
        worker.images.append(facts)
        self._tell(job.id, "image", facts)

    def _end(self, worker: _Worker, kind: str, value: object) -> None:
        assert worker.job is not None
        job, worker.job = worker.job, None
        unsaved, worker.unsaved = worker.unsaved, False
        if unsaved:
            kind, value = "failed", ("the picture could not be saved on the server", "storage")
        if kind == "done":
            self._store.finish(job.id, "done", result={"images": worker.images})
            self._tell(job.id, "done", worker.images)
        elif kind == "cancelled":
            self._store.finish(job.id, "cancelled")
            self._tell(job.id, "cancelled", None)
        else:
            error, code = value  # type: ignore[misc]
            self._store.finish(job.id, "failed", error=error, code=code)
            self._tell(job.id, "failed", (error, code))

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
        if worker.job is None:
            return
        logger.warning("a worker died (exit code %s) with job %s", worker.process.exitcode, worker.job.id)
        if not self._store.requeue(worker.job.id):
            ended = self._store.get(worker.job.id)
            if ended is not None and ended.state == "failed":
                self._tell(ended.id, "failed", (ended.error, ended.code))

    def _tell(self, job: str, kind: str, value: object) -> None:
        with self._lock:
            listeners = list(self._listeners.get(job, []))
        for listener in listeners:
            listener(kind, value)
