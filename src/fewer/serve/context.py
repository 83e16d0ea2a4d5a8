"""What the handlers share: the queue, the workers, the results, and how a request becomes a job."""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ValidationError

from fewer.core.config import describe
from fewer.core.errors import ConfigError
from fewer.serve.answers import ApiError
from fewer.serve.job_store import DISCONNECTED, ENDS, Job, JobStore, KeyReused, QueueFull
from fewer.serve.limits import Gate, parse_body
from fewer.serve.results import Results
from fewer.serve.served_models import Served
from fewer.serve.uploads import Uploads
from fewer.serve.workers import Workers

Event = tuple[str, Any]
MAX_JOB_BYTES = 256 * 1024
"""What is kept of a request: it is read again whenever the queue is listed."""
_NOT_ASKED = ("stream", "partial_images", "response_format", "client_id")
"""How the answer is wanted, which is no part of what is asked: a retry may differ in it."""


@dataclass(slots=True)
class Context:
    """Made once by `build_app`, found by handlers under `app.state.context`."""

    store: JobStore
    results: Results
    workers: Workers
    gate: Gate
    uploads: Uploads
    served: Served = field(default_factory=Served)
    """Names that clients may ask for, and what is behind them."""
    check: Callable[[dict], None] | None = None
    """Refuses a job that cannot succeed before it is queued."""
    counters: dict[str, int] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    """How many requests wait for a job's end."""

    sockets: dict[tuple[str, str], set[asyncio.Event]] = field(default_factory=dict)
    """Who wants to hear of new graphs, by owner and name of the client."""

    @contextlib.contextmanager
    def announced(self, owner: str, client: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever this client queues a graph."""
        fresh = asyncio.Event()
        self.sockets.setdefault((owner, client), set()).add(fresh)
        try:
            yield fresh
        finally:
            self.sockets[owner, client].discard(fresh)
            if not self.sockets[owner, client]:
                del self.sockets[owner, client]

    def announce(self, job: Job) -> None:
        """Tells the sockets of the job's client."""
        for fresh in self.sockets.get((job.owner, job.request.get("client_id", "")), ()):
            fresh.set()

    @contextlib.contextmanager
    def waiting(self, job: str) -> Iterator[None]:
        """Counts a request that waits for the job."""
        self.waits[job] += 1
        try:
            yield
        finally:
            self.waits[job] -= 1
            if self.waits[job] <= 0:
                del self.waits[job]

    def abandon(self, job: str) -> None:
        """A client of the job is gone: nobody else waits for it, so it is cancelled. Not while we stop."""
        if self.waits[job] <= 1 and not self.workers.stopping:
            self.workers.cancel(job, DISCONNECTED)

    def count(self, name: str) -> None:
        """For /metrics."""
        self.counters[name] = self.counters.get(name, 0) + 1


def context_of(request: Request) -> Context:
    """The shared context."""
    return request.app.state.context


def owner_of(request: Request) -> str:
    """Who asks, as the gate has decided."""
    return request.scope["state"]["owner"]


async def validated(request: Request, model: type[BaseModel]) -> Any:
    """The body as `model`. Raises `ApiError` 400 that names the field."""
    try:
        body = parse_body(await request.body())
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    try:
        return model.model_validate(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or None
        raise ApiError(400, describe(error), where) from error


def submit(
    context: Context, owner: str, kind: str, job: dict, idempotency: str | None, asked: BaseModel
) -> Job:
    """Queues a job and wakes a worker; `asked` is what the client sent.

    Raises `ApiError`: 429 when too many wait, 400 for a hopeless one, 422 when the key is another request's,
    503 while the server stops, 507 when the queue cannot be written.
    """
    if idempotency is not None:
        if not 1 <= len(idempotency) <= 200:
            raise ApiError(400, "an Idempotency-Key has 1 to 200 characters", "Idempotency-Key")
        job = job | {"fingerprint": _fingerprint(asked)}
    if len(json.dumps(job)) > MAX_JOB_BYTES:
        raise ApiError(413, f"a request may hold {MAX_JOB_BYTES:,} bytes; send a smaller one")
    if context.workers.stopping:
        raise ApiError(503, "the server is being stopped; try again in a moment", None, "stopping", 5)
    try:
        if context.check is not None:
            context.check(job)
        added = context.store.add(owner, kind, job, idempotency)
    except QueueFull as error:
        context.count("refused_full")
        raise ApiError(429, str(error), code="queue_full", retry_after=5) from error
    except KeyReused as error:
        raise ApiError(422, str(error), "Idempotency-Key", "idempotency_key_reused") from error
    except ConfigError as error:
        raise ApiError(400, str(error)) from error
    context.count("accepted")
    context.workers.ring()
    return added


def _fingerprint(asked: BaseModel) -> str:
    said = asked.model_dump(exclude_unset=True, exclude=set(_NOT_ASKED))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


async def events_of(context: Context, job: Job) -> AsyncIterator[Event]:
    """The job's events until it ends; an end that came before we listened is not missed."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def listener(kind: str, value: Any) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, (kind, value))
        except RuntimeError:
            context.workers.unlisten(job.id, listener)  # the loop is closed, nobody waits any more

    context.workers.listen(job.id, listener)
    try:
        now = context.store.get(job.id)
        if now is not None and now.state in ENDS:
            yield _end_of(now)
            return
        if context.workers.stopping and (now is None or now.state == "queued"):
            yield ("stopping", None)
            return
        ticked = loop.time()
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), 1.0)
            except TimeoutError:
                now = context.store.get(job.id)
                if now is None or now.state in ENDS:
                    yield _end_of(now) if now else ("failed", ("the job is gone", "gone"))
                    return
                ticked = loop.time()
                yield ("tick", None)
                continue
            yield event
            if event[0] in ENDS or event[0] == "stopping":
                return
            # Also while events keep coming: a tick is when a vanished client is noticed.
            if loop.time() - ticked >= 1.0:
                ticked = loop.time()
                yield ("tick", None)
    finally:
        context.workers.unlisten(job.id, listener)


def _end_of(job: Job) -> Event:
    if job.state == "done":
        return "done", (job.result or {}).get("images", [])
    return (job.state, (job.error, job.code)) if job.state == "failed" else (job.state, None)
