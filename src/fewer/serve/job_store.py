"""The queue, in SQLite with write-ahead logging: what was accepted survives a kill at any moment.

A job is queued, running, done, failed or cancelled. Several servers may share one file: a running job is
leased, and when its server stops renewing the lease another takes it over, at most `MAX_ATTEMPTS` times. Each
job ends exactly once, because an end is written only over `running` or `queued`.
"""

import json
import sqlite3
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewer.core.errors import CapacityError

State = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_ATTEMPTS = 3
LEASE_SECONDS = 10.0
ENDS = ("done", "failed", "cancelled")

_TABLE = """
create table if not exists jobs (
    id text primary key, owner text not null, kind text not null, request text not null,
    state text not null, rank real not null, attempts integer not null default 0,
    created real not null, started real, finished real, step integer not null default 0,
    steps integer not null default 0, result text, error text, code text,
    idempotency text, beat real
);
create unique index if not exists jobs_idempotency on jobs (owner, idempotency) where idempotency is not null;
create index if not exists jobs_state on jobs (state, rank);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row. `result` holds file names and facts; `code` is a machine's word for `error`."""

    id: str
    owner: str
    kind: str
    request: dict
    state: State
    rank: float
    attempts: int
    created: float
    started: float | None
    finished: float | None
    step: int
    steps: int
    result: dict | None
    error: str | None
    code: str | None
    idempotency: str | None = None
    beat: float | None = None


class QueueFull(CapacityError):
    """There are as many waiting jobs as are allowed."""


class JobStore:
    """All reads and writes of the queue; safe to use from several threads."""

    def __init__(self, path: Path, limit: int = 32) -> None:
        self.limit = limit
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.execute("pragma busy_timeout = 5000")
        self._db.executescript(_TABLE)

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._db.close()

    def add(self, owner: str, kind: str, request: dict, idempotency: str | None = None) -> Job:
        """Queues a job, or gives the one that was added under the same key before. Raises `QueueFull`."""
        with self._lock:
            if idempotency is not None:
                known = self._same(owner, idempotency)
                if known is not None:
                    return known
            waiting = self.count("queued")
            if waiting >= self.limit:
                raise QueueFull(
                    f"{waiting} jobs are waiting, {self.limit} are allowed; try again in a moment"
                )
            now = time.time()
            identity = uuid.uuid4().hex
            # "or ignore": another server on this file may have added the same idempotency key just now.
            self._db.execute(
                "insert or ignore into jobs (id, owner, kind, request, state, rank, created, idempotency)"
                " values (?, ?, ?, ?, 'queued', ?, ?, ?)",
                (identity, owner, kind, json.dumps(request), now, now, idempotency),
            )
            job = self.get(identity) or self._same(owner, idempotency)
            assert job is not None
            return job

    def take(self, identity: str | None = None) -> Job | None:
        """The first waiting job, or that one if it waits; now running. None if there is none."""
        with self._lock:
            now = time.time()
            # One statement, so that two servers on one file never take the same job.
            rows = self._db.execute(
                "update jobs set state = 'running', started = ?, beat = ?, attempts = attempts + 1, step = 0"
                " where id = coalesce(?,"
                " (select id from jobs where state = 'queued' order by rank, created limit 1))"
                " and state = 'queued' returning *",
                (now, now, identity),
            ).fetchall()
        return _job(rows[0]) if rows else None

    def renew(self, identity: str) -> bool:
        """The job's server is alive. False if the job has ended meanwhile: another server cancelled it."""
        with self._lock:
            done = self._db.execute(
                "update jobs set beat = ? where id = ? and state = 'running'", (time.time(), identity)
            )
            return done.rowcount == 1

    def progress(self, identity: str, step: int, steps: int) -> None:
        """Where a running job stands."""
        with self._lock:
            self._db.execute("update jobs set step = ?, steps = ? where id = ?", (step, steps, identity))

    def finish(
        self,
        identity: str,
        state: Literal["done", "failed", "cancelled"],
        *,
        result: dict | None = None,
        error: str | None = None,
        code: str | None = None,
    ) -> bool:
        """Ends a job once; False if it had ended before."""
        with self._lock:
            done = self._db.execute(
                "update jobs set state = ?, finished = ?, result = ?, error = ?, code = ?"
                " where id = ? and state in ('queued', 'running')",
                (state, time.time(), json.dumps(result) if result else None, error, code, identity),
            )
            return done.rowcount == 1

    def requeue(self, identity: str) -> bool:
        """Gives back a job whose worker is gone; after too many attempts it fails instead (False)."""
        with self._lock:
            job = self.get(identity)
            if job is None or job.state != "running":
                return False
            if job.attempts >= MAX_ATTEMPTS:
                self.finish(
                    identity, "failed", code="worker_died",
                    error=f"the worker died {job.attempts} times while drawing this; try a smaller size",
                )  # fmt: skip
                return False
            self._db.execute("update jobs set state = 'queued' where id = ?", (identity,))
            return True

    def recover(self) -> int:
        """Jobs whose server no longer renews their lease wait again. Gives how many."""
        with self._lock:
            stale = time.time() - LEASE_SECONDS
            rows = self._db.execute(
                "select id from jobs where state = 'running' and beat < ?", (stale,)
            ).fetchall()
            return sum(self.requeue(row["id"]) for row in rows)

    def get(self, identity: str, owner: str | None = None) -> Job | None:
        """One job; with `owner`, only if it is theirs."""
        job = self._one("select * from jobs where id = ?", identity)
        return job if job is not None and owner in (None, job.owner) else None

    def jobs(self, owner: str | None = None, state: str | None = None, limit: int = 100) -> list[Job]:
        """Newest first; waiting ones in the order in which they will run."""
        order = "rank, created" if state == "queued" else "created desc"
        with self._lock:
            rows = self._db.execute(
                f"select * from jobs where (? is null or owner = ?) and (? is null or state = ?)"  # noqa: S608
                f" order by {order} limit ?",
                (owner, owner, state, state, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def count(self, state: str) -> int:
        """Jobs in a state."""
        with self._lock:
            return int(self._db.execute("select count(*) from jobs where state = ?", (state,)).fetchone()[0])

    def position(self, identity: str) -> int | None:
        """How many jobs run before this one; None if it does not wait."""
        with self._lock:
            rows = self._db.execute(
                "select (select count(*) from jobs where state = 'queued'"
                " and (rank, created) < (this.rank, this.created)) from jobs this"
                " where id = ? and state = 'queued'",
                (identity,),
            ).fetchall()
        return int(rows[0][0]) if rows else None

    def move(self, identity: str, position: int) -> bool:
        """Puts a waiting job at `position` among the waiting ones, or as near as its owner's places reach.

        Owners change places with themselves only: nobody overtakes a stranger. False if it does not wait.
        """
        with self._lock:
            waiting = self.jobs(state="queued", limit=10_000)
            job = next((job for job in waiting if job.id == identity), None)
            if job is None:
                return False
            own = [other for other in waiting if other.owner == job.owner]
            others = [other for other in waiting if other.id != identity]
            before = sum(other.owner == job.owner for other in others[: max(0, position)])
            order = [other for other in own if other.id != identity]
            order.insert(before, job)
            moves = [(place.rank, mover.id) for place, mover in zip(own, order, strict=True)]
            self._db.executemany("update jobs set rank = ? where id = ?", moves)
            return True

    def forget(self, older_than_seconds: float | int) -> list[str]:
        """Deletes ended jobs older than that; gives their ids, so that their files can go too."""
        with self._lock:
            limit = time.time() - older_than_seconds
            rows = self._db.execute(
                "delete from jobs where state in ('done', 'failed', 'cancelled') and finished < ?"
                " returning id",
                (limit,),
            ).fetchall()
        return [row["id"] for row in rows]

    def _same(self, owner: str, idempotency: str | None) -> Job | None:
        return self._one("select * from jobs where owner = ? and idempotency = ?", owner, idempotency)

    def _one(self, query: str, *values: object) -> Job | None:
        with self._lock:
            row = self._db.execute(query, values).fetchone()
        return None if row is None else _job(row)


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["request"] = json.loads(values["request"])
    values["result"] = json.loads(values["result"]) if values["result"] else None
    return Job(**values)
