"""The queue, in SQLite with write-ahead logging: what was accepted survives a kill at any moment.

A job is queued, running, done, failed or cancelled. Several servers may share one file: a running job is
leased, and when its server stops renewing the lease another takes it over, at most `MAX_ATTEMPTS` times. Each
job ends exactly once, because an end is written only over `running` or `queued`; and what a server says of a
job counts only while the attempt is its own. Wall clocks may jump: leases are watched by a steady one.
"""

import contextlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewer.core.errors import CapacityError, ConfigError, FileError

State = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_ATTEMPTS = 3
LEASE_SECONDS = 10.0
LONG_DEAD_SECONDS = 60.0
"""A lease so old when a server starts was left by one that is gone: nothing is waited for."""
ENDS = ("done", "failed", "cancelled")
DISCONNECTED = "disconnected"
"""Code of a job that was cancelled because its client went away: repeated under its key, it waits again."""
_VERSION = 1

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


class KeyReused(ConfigError):
    """An idempotency key came again with another request."""


class JobStore:
    """All reads and writes of the queue; safe to use from several threads."""

    def __init__(self, path: Path, limit: int = 32, limit_each: int | None = None) -> None:
        """`limit` jobs may wait, `limit_each` of one owner. Raises `FileError` for no queue of ours."""
        self.limit, self.limit_each = limit, limit_each
        self._path = path
        self._lock = threading.RLock()
        self._db = _open(path)
        self._leases: dict[str, tuple[float, float]] | None = None

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._db.close()

    def add(self, owner: str, kind: str, request: dict, idempotency: str | None = None) -> Job:
        """Queues a job, or gives the one that was added under the same key before.

        Raises `QueueFull`, and `KeyReused` when that one had another `fingerprint` in its request.
        """
        with self._lock:
            known = None if idempotency is None else self.named(owner, idempotency)
            if known is not None:
                asked = known.request.get("fingerprint")
                if known.kind != kind or asked not in (None, request.get("fingerprint")):
                    raise KeyReused("this idempotency key belongs to another request; use a new one for each")
                if known.state != "cancelled" or known.code != DISCONNECTED:
                    return known
            self._require_place(owner)
            if known is not None:  # its client went away and has come back
                self._db.execute(
                    "update jobs set state = 'queued', attempts = 0, step = 0, started = null, code = null,"
                    " finished = null where id = ? and state = 'cancelled'",
                    (known.id,),
                )
                return self.get(known.id) or known
            now = time.time()
            identity = uuid.uuid4().hex
            # "or ignore": another server on this file may have added the same idempotency key just now.
            # Behind all that wait, also when the clock was set back.
            self._db.execute(
                "insert or ignore into jobs (id, owner, kind, request, state, rank, created, idempotency)"
                " values (?, ?, ?, ?, 'queued', max(?, coalesce("
                " (select max(rank) from jobs where state = 'queued') + 1e-6, 0)), ?, ?)",
                (identity, owner, kind, json.dumps(request), now, now, idempotency),
            )
            job = self.get(identity) or self.named(owner, idempotency)
            assert job is not None
            return job

    def _require_place(self, owner: str) -> None:
        waiting = self.count("queued")
        if waiting >= self.limit:
            raise QueueFull(f"{waiting} jobs are waiting, {self.limit} are allowed; try again in a moment")
        if self.limit_each is not None and self.count("queued", owner) >= self.limit_each:
            raise QueueFull(f"{self.limit_each} jobs of yours are waiting, as many as one key may have")

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

    def renew(self, identity: str, attempt: int | None = None) -> bool:
        """The job's server is alive. False if the job is no longer its own: cancelled, or taken over."""
        with self._lock:
            done = self._db.execute(
                "update jobs set beat = ? where id = ? and state = 'running'"
                " and attempts = coalesce(?, attempts)",
                (time.time(), identity, attempt),
            )
            return done.rowcount == 1

    def progress(self, identity: str, step: int, steps: int) -> None:
        """Where a running job stands."""
        with self._lock:
            self._db.execute(
                "update jobs set step = ?, steps = ? where id = ? and state = 'running'",
                (step, steps, identity),
            )

    def finish(
        self,
        identity: str,
        state: Literal["done", "failed", "cancelled"],
        *,
        result: dict | None = None,
        error: str | None = None,
        code: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """Ends a job once; False if it had ended before, or if `attempt` is no longer the one that runs."""
        with self._lock:
            done = self._db.execute(
                "update jobs set state = ?, finished = ?, result = ?, error = ?, code = ? where id = ?"
                " and (state = 'running' and attempts = coalesce(?, attempts)"
                " or state = 'queued' and ? is null)",
                (
                    state, time.time(), json.dumps(result) if result else None, error, code, identity,
                    attempt, attempt,
                ),
            )  # fmt: skip
            return done.rowcount == 1

    def requeue(self, identity: str, *, attempt: int | None = None, blame: bool = True) -> bool:
        """Gives back a job whose worker is gone; after too many attempts it fails instead (False).

        Without `blame` the attempt does not count: the server is being stopped.
        """
        with self._lock:
            job = self.get(identity)
            if job is None or job.state != "running" or attempt not in (None, job.attempts):
                return False
            if not blame:
                self._db.execute(
                    "update jobs set state = 'queued', attempts = attempts - 1 where id = ?", (identity,)
                )
                return True
            if job.attempts >= MAX_ATTEMPTS:
                self.finish(
                    identity, "failed", code="worker_died",
                    error=f"the worker died {job.attempts} times while drawing this; try a smaller size",
                )  # fmt: skip
                return False
            self._db.execute("update jobs set state = 'queued' where id = ?", (identity,))
            return True

    def recover(self, but: Collection[str] = ()) -> int:
        """Jobs, `but` for those here, whose server no longer renews their lease wait again. Gives how many.

        A lease has ended when it stayed the same for `LEASE_SECONDS` by our own steady clock.
        """
        with self._lock:
            now, started = time.monotonic(), self._leases is None
            rows = self._db.execute("select id, beat from jobs where state = 'running'").fetchall()
            known = self._leases or {}
            self._leases = {}
            for identity, beat in map(tuple, rows):
                before = known.get(identity)
                self._leases[identity] = before if before is not None and before[0] == beat else (beat, now)
            stale = [
                identity
                for identity, (beat, seen) in self._leases.items()
                if now - seen > LEASE_SECONDS or (started and time.time() - beat > LONG_DEAD_SECONDS)
            ]
            return sum(self.requeue(identity) for identity in stale if identity not in but)

    def get(self, identity: str, owner: str | None = None) -> Job | None:
        """One job; with `owner`, only if it is theirs."""
        job = self._one("select * from jobs where id = ?", identity)
        return job if job is not None and owner in (None, job.owner) else None

    def jobs(self, owner: str | None = None, state: str | None = None, limit: int = 100) -> list[Job]:
        """Newest first; waiting ones in the order in which they will run."""
        order = "rank, created" if state == "queued" else "rowid desc"
        with self._lock:
            rows = self._db.execute(
                f"select * from jobs where (? is null or owner = ?) and (? is null or state = ?)"  # noqa: S608
                f" order by {order} limit ?",
                (owner, owner, state, state, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def waiting(self, most: int) -> int:
        """How many jobs wait, counted up to `most`."""
        return len(self.jobs(state="queued", limit=most))

    def find(self, owner: str, words: str = "", before: str | None = None, limit: int = 100) -> list[Job]:
        """An owner's jobs, newest first, whose prompt holds `words` in any case, older than job `before`.

        A reader of its own: looking through a long history holds nobody up.
        """
        with contextlib.closing(sqlite3.connect(self._path)) as db:
            db.row_factory = sqlite3.Row
            db.create_function("folded", 1, lambda text: str(text or "").casefold(), deterministic=True)
            rows = db.execute(
                "select * from jobs where owner = ?"
                " and rowid < coalesce((select rowid from jobs where id = ?), 9223372036854775807)"
                " and (? = '' or instr(folded(json_extract(request, '$.generate.prompt[0]')), ?))"
                " order by rowid desc limit ?",
                (owner, before, words, words.casefold(), limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def remove(self, identity: str) -> bool:
        """Deletes an ended job; False if there is none."""
        with self._lock:
            done = self._db.execute(
                "delete from jobs where id = ? and state in ('done', 'failed', 'cancelled')", (identity,)
            )
            return done.rowcount == 1

    def count(self, state: str, owner: str | None = None) -> int:
        """Jobs in a state, of everybody or of one owner."""
        query = "select count(*) from jobs where state = ? and (? is null or owner = ?)"
        with self._lock:
            return int(self._db.execute(query, (state, owner, owner)).fetchone()[0])

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

    def named(self, owner: str, idempotency: str | None) -> Job | None:
        """The owner's job that was added under this key."""
        return self._one("select * from jobs where owner = ? and idempotency = ?", owner, idempotency)

    def _one(self, query: str, *values: object) -> Job | None:
        with self._lock:
            row = self._db.execute(query, values).fetchone()
        return None if row is None else _job(row)


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # prompts and pictures are private
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.execute("pragma busy_timeout = 5000")
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        version = db.execute("pragma user_version").fetchone()[0]
        if version > _VERSION:
            raise FileError(f"{path.name!r} is of a newer version of fewer; update, or use another --data")
        db.executescript(_TABLE)
        there = {row["name"] for row in db.execute("pragma table_info(jobs)")}
        if missing := [name for name in Job.__dataclass_fields__ if name not in there]:
            raise FileError(f"{path.name!r} is no queue of fewer: it has no {', '.join(missing)}")
        if version < _VERSION:
            db.execute(f"pragma user_version = {_VERSION}")
    except OSError as error:
        raise FileError(
            f"cannot write into {str(path.parent)!r}: {error.strerror}; choose another --data"
        ) from error
    except sqlite3.Error as error:
        raise FileError(
            f"{path.name!r} cannot be used: {error}; free its disk or folder, or choose another --data"
        ) from error
    return db


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["request"] = json.loads(values["request"])
    values["result"] = json.loads(values["result"]) if values["result"] else None
    return Job(**values)
