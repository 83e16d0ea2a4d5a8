"""The queue for people and the page: see, follow, reorder, cancel; fetch files; health and metrics."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from fewer.core.errors import FileError
from fewer.core.files import safe_name
from fewer.serve.answers import ApiError, body_schema
from fewer.serve.context import (
    Context,
    context_of,
    events_of,
    owner_of,
    submit,
    validated,
)
from fewer.serve.job_store import Job
from fewer.serve.openai_api import EVENT_SCHEMA, ImageRequest, media_type

router = APIRouter()

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such job or file of yours"},
    401: {"description": "no valid key"},
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "events", "content": {"text/event-stream": {"schema": EVENT_SCHEMA}}}
}


class Move(BaseModel):
    """Where a waiting job should stand."""

    model_config = ConfigDict(extra="forbid", strict=True)

    position: Annotated[int, Field(ge=0, le=10_000)]


@router.get("/health", responses={503: {"description": "no worker can be started, or the server stops"}})
async def health(request: Request) -> JSONResponse:
    """Alive, and how busy."""
    context = context_of(request)
    status = (
        "stopping" if context.workers.stopping else "ok" if context.workers.able() else "no_worker_starts"
    )
    facts = {
        "status": status,
        "queued": context.store.count("queued"),
        "running": context.store.count("running"),
        "idle_workers": context.workers.idle(),
    }
    return JSONResponse(facts, 200 if status == "ok" else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses={401: {"description": "no valid key"}})
async def metrics(request: Request) -> PlainTextResponse:
    """For Prometheus."""
    context = context_of(request)
    counters = context.counters | {"worker_restarts": context.workers.restarts}
    lines = ["# HELP fewer_jobs Jobs that are kept, by state.", "# TYPE fewer_jobs gauge"]
    lines += [
        f'fewer_jobs{{state="{state}"}} {context.store.count(state)}'
        for state in ("queued", "running", "done", "failed", "cancelled")
    ]
    lines += ["# TYPE fewer_idle_workers gauge", f"fewer_idle_workers {context.workers.idle()}"]
    lines += ["# TYPE fewer_queue_limit gauge", f"fewer_queue_limit {context.store.limit}"]
    for name, value in sorted(counters.items()):
        lines += [f"# TYPE fewer_{name}_total counter", f"fewer_{name}_total {value}"]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


@router.post(
    "/jobs",
    status_code=202,
    responses={
        status: {"description": "see error.message"} for status in (400, 401, 404, 413, 422, 429, 503, 507)
    },
    openapi_extra=body_schema(ImageRequest),
)
async def add(request: Request) -> JSONResponse:
    """Queues a picture and returns at once; the body is that of /v1/images/generations."""
    wanted: ImageRequest = await validated(request, ImageRequest)
    context = context_of(request)
    job_request = wanted.job(context.served) | {"partial_images": wanted.partial_images or 0}
    key = request.headers.get("idempotency-key")
    job = submit(context, owner_of(request), "image", job_request, key, wanted)
    return JSONResponse(facts(context, job), status_code=202)


@router.get(
    "/jobs",
    responses={400: {"description": "see error.message"}, 401: {"description": "no valid key"}},
)
async def jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    search: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[str | None, Query(max_length=32)] = None,
) -> dict:
    """Your jobs, newest first: those whose prompt holds `search`, those that are older than job `before`."""
    context, owner = context_of(request), owner_of(request)
    found = await asyncio.to_thread(context.store.find, owner, search, before, limit)
    return {"jobs": [facts(context, job) for job in found]}


@router.get("/jobs/{job}", responses=_NOT_FOUND)
async def one(request: Request, job: str) -> dict:
    """A job of yours."""
    return facts(context_of(request), _own(request, job))


@router.delete("/jobs/{job}", responses=_NOT_FOUND | {400: {"description": "see error.message"}})
async def cancel(request: Request, job: str, forget: bool = False) -> dict:
    """Cancels: at once while it waits, before the next step while it runs.

    With `forget` a job that has ended is deleted with its pictures and files.
    """
    own, context = _own(request, job), context_of(request)
    cancelled = context.workers.cancel(own.id)
    forgotten = forget and not cancelled and context.store.remove(own.id)
    if forgotten:
        await asyncio.to_thread(context.results.drop, own.id)
    return {"id": own.id, "cancelled": cancelled, "forgotten": forgotten}


@router.post(
    "/jobs/{job}/move",
    responses=_NOT_FOUND
    | {400: {"description": "see error.message"}, 409: {"description": "it does not wait"}},
    openapi_extra=body_schema(Move),
)
async def move(request: Request, job: str) -> dict:
    """Changes a waiting job's place."""
    wanted: Move = await validated(request, Move)
    own = _own(request, job)
    if not context_of(request).store.move(own.id, wanted.position):
        raise ApiError(409, "only a waiting job can be moved", "job")
    return facts(context_of(request), own)


@router.get("/jobs/{job}/events", response_class=StreamingResponse, responses=_EVENTS | _NOT_FOUND)
async def follow(request: Request, job: str) -> StreamingResponse:
    """Server-sent events of a job: step (with a preview where asked for), image, done, failed, cancelled."""
    own, context = _own(request, job), context_of(request)

    async def lines() -> AsyncIterator[bytes]:
        async for kind, value in events_of(context, own):
            if kind == "tick":
                yield b": waiting\n\n"
                continue
            body: object = value
            if kind == "step":
                preview = None if value.preview is None else base64.b64encode(value.preview).decode()
                body = {"image": value.image, "step": value.step, "steps": value.steps, "preview": preview}
            elif kind == "failed":
                body = {"error": value[0], "code": value[1]}
            elif kind == "stopping":
                body = {"error": "the server is being stopped; the job waits for its next start"}
            yield f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/files/{job}/{name:path}", responses=_NOT_FOUND, response_class=Response)
async def file(request: Request, job: str, name: str) -> Response:
    """A picture of yours, or another file that a job of yours has made."""
    own, results = _own(request, job), context_of(request).results
    headers = {"Cache-Control": "private, max-age=86400"}
    try:
        if "generate" in own.request:
            return Response(results.read(own.id, name), media_type=media_type(name), headers=headers)
        # A page made from somebody's video must not run under this server's own name: it is only handed over.
        headers["Content-Disposition"] = f'attachment; filename="{safe_name(name.rsplit("/", 1)[-1])}"'
        return FileResponse(results.file(own, name), media_type="application/octet-stream", headers=headers)
    except FileError as error:
        raise ApiError(404, "there is no such file", "name") from error


def facts(context: Context, job: Job) -> dict:
    """What a client may know of its job."""
    wanted = job.request.get("generate", {})
    result = job.result or {}
    return {
        "id": job.id,
        "state": job.state,
        "position": context.store.position(job.id) if job.state == "queued" else None,
        "step": job.step,
        "steps": job.steps,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "kind": job.kind,
        "prompt": wanted["prompt"][0] if wanted else job.kind,
        "request": wanted,
        "images": [
            {**image, "url": f"/files/{job.id}/{image['file']}"} for image in result.get("images", [])
        ],
        "facts": result.get("facts"),
        "files": [f"/files/{job.id}/{name}" for name in result.get("files", [])],
        "error": job.error,
        "code": job.code,
    }


def _own(request: Request, job: str) -> Job:
    found = context_of(request).store.get(job, owner_of(request)) if len(job) == 32 else None
    if found is None:
        raise ApiError(404, "there is no such job", "job", "not_found")
    return found
