"""What the handlers share: the queue, the workers, the results, and how a request becomes a job."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ValidationError

from fewer.core.config import describe
from fewer.core.errors import ConfigError
from fewer.serve.job_store import ENDS, Job, JobStore
from fewer.serve.limits import Gate, api_error, parse_body
from fewer.serve.results import Results
from fewer.serve.uploads import Uploads
from fewer.serve.workers import Workers

Event = tuple[str, Any]


class ApiError(Exception):
    """Ends a request with a status and the error body that all doors share."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error"
        )
        self.status, self.body = status, api_error(message, kind, param, code)
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}


@dataclass(slots=True)
class Context:
    """Made once by `build_app`, found by handlers under `app.state.context`."""

    store: JobStore
    results: Results
    workers: Workers
    gate: Gate
    uploads: Uploads
    models: dict[str, str]
    """Names that clients may ask for, and the folders behind them."""
    check: Callable[[dict], None] | None = None
    """Refuses a job that cannot succeed before it is queued."""
    counters: dict[str, int] = field(default_factory=dict)

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


def submit(context: Context, owner: str, kind: str, job: dict, idempotency: str | None) -> Job:
    """Queues a job and wakes a worker. Raises `ApiError` 429 when too many wait, 400 for a hopeless one."""
    from fewer.serve.job_store import QueueFull

    if idempotency is not None and not 1 <= len(idempotency) <= 200:
        raise ApiError(400, "an Idempotency-Key has 1 to 200 characters", "Idempotency-Key")
    try:
        if context.check is not None:
            context.check(job)
        added = context.store.add(owner, kind, job, idempotency)
    except QueueFull as error:
        context.count("refused_full")
        raise ApiError(429, str(error), code="queue_full", retry_after=5) from error
    except ConfigError as error:
        raise ApiError(400, str(error)) from error
    context.count("accepted")
    context.workers.ring()
    return added


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
            if event[0] in ENDS:
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


def failure(value: tuple[str | None, str | None]) -> ApiError:
    """The HTTP answer for a failed job."""
    message, code = value
    status = {"capacity": 507, "invalid_request": 400, "group_failed": 503}.get(code or "", 500)
    return ApiError(status, message or "the picture could not be drawn", code=code)


def body_schema(model: type[BaseModel]) -> dict:
    """For OpenAPI: the body is read by `validated`, which FastAPI cannot see."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
