"""The part of ComfyUI's API that a headless client needs to run a text-to-image graph.

The graph is read, not executed: a KSampler tells prompts (its CLIPTextEncode nodes), size (its latent node),
steps, cfg and seed; a SaveImage takes the result. Unknown nodes are answered in the `node_errors` shape.
"""

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from fewer.core.errors import ConfigError, FileError
from fewer.serve.context import (
    ApiError,
    Context,
    body_schema,
    context_of,
    events_of,
    owner_of,
    submit,
    validated,
)
from fewer.serve.graph import KNOWN_NODES, NodeErrors, read_graph
from fewer.serve.job_store import Job
from fewer.serve.openai_api import media_type

router = APIRouter()
_ERRORS = {
    status: {"description": "see error.message or node_errors"} for status in (400, 401, 404, 413, 429)
}


class Prompt(BaseModel):
    """A graph in API format."""

    model_config = ConfigDict(extra="ignore")

    prompt: dict[str, Any]
    client_id: Annotated[str, Field(max_length=200)] = ""
    prompt_id: Annotated[str, Field(max_length=64)] | None = None


class QueueChange(BaseModel):
    """Clear the queue, or delete jobs from it."""

    model_config = ConfigDict(extra="ignore")

    clear: bool = False
    delete: Annotated[list[str], Field(max_length=1000)] = []


@router.post("/prompt", responses=_ERRORS, openapi_extra=body_schema(Prompt))
async def prompt(request: Request) -> JSONResponse:
    """Queues a graph."""
    wanted: Prompt = await validated(request, Prompt)
    context = context_of(request)
    try:
        graph = read_graph(wanted.prompt, context.models)
    except NodeErrors as error:
        return JSONResponse({"error": error.summary, "node_errors": error.nodes}, 400)
    except ConfigError as error:
        raise ApiError(400, str(error)) from error
    job = submit(context, owner_of(request), "comfy", graph | {"client_id": wanted.client_id}, None)
    return JSONResponse(
        {"prompt_id": job.id, "number": context.store.position(job.id) or 0, "node_errors": {}}
    )


@router.get("/queue", responses={401: {"description": "no valid key"}})
async def queue(request: Request) -> dict:
    """Running and waiting graphs."""
    store, owner = context_of(request).store, owner_of(request)
    rows = {
        state: [_row(n, job) for n, job in enumerate(store.jobs(owner, state))]
        for state in ("running", "queued")
    }
    return {"queue_running": rows["running"], "queue_pending": rows["queued"]}


@router.post("/queue", responses=_ERRORS, response_class=Response, openapi_extra=body_schema(QueueChange))
async def change_queue(request: Request) -> Response:
    """Clears or deletes waiting graphs."""
    wanted: QueueChange = await validated(request, QueueChange)
    context, owner = context_of(request), owner_of(request)
    for job in context.store.jobs(owner, "queued", limit=10_000):
        if wanted.clear or job.id in wanted.delete:
            context.workers.cancel(job.id)
    return Response()


@router.post("/interrupt", response_class=Response, responses={401: {"description": "no valid key"}})
async def interrupt(request: Request) -> Response:
    """Cancels what runs."""
    context = context_of(request)
    for job in context.store.jobs(owner_of(request), "running"):
        context.workers.cancel(job.id)
    return Response()


@router.get("/history/{prompt_id}", responses={401: {"description": "no valid key"}})
async def history(request: Request, prompt_id: str) -> dict:
    """A finished graph's outputs; an empty object while there are none."""
    job = context_of(request).store.get(prompt_id, owner_of(request)) if len(prompt_id) == 32 else None
    if job is None or job.state in ("queued", "running"):
        return {}
    images = [
        {"filename": f"{job.id}_{image['file']}", "subfolder": "", "type": "output"}
        for image in (job.result or {}).get("images", [])
    ]
    done = job.state == "done"
    return {
        job.id: {
            "prompt": _row(0, job),
            "outputs": {job.request.get("save_node", "save"): {"images": images}},
            "status": {"status_str": "success" if done else "error", "completed": done, "messages": []},
        }
    }


@router.get("/view", responses=_ERRORS, response_class=Response)
async def view(request: Request, filename: Annotated[str, Query(max_length=60)]) -> Response:
    """A picture by its file name."""
    identity, _, name = filename.partition("_")
    context = context_of(request)
    job = context.store.get(identity, owner_of(request)) if len(identity) == 32 else None
    try:
        if job is None:
            raise FileError("no such job", missing=True)
        return Response(context.results.read(job.id, name), media_type=media_type(name))
    except FileError as error:
        raise ApiError(404, "there is no such picture", "filename") from error


@router.get("/object_info", responses={401: {"description": "no valid key"}})
async def object_info(request: Request) -> dict:
    """The nodes that are understood."""
    return {
        name: {"name": name, "display_name": name, "category": "fewer", "input": {}} for name in KNOWN_NODES
    }


@router.get("/system_stats", responses={401: {"description": "no valid key"}})
async def system_stats(request: Request) -> dict:
    """Only what a client uses to see that somebody is there."""
    return {"system": {"os": "posix", "comfyui_version": "0", "embedded_python": False}, "devices": []}


@router.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    """Messages of a client's graphs: status, execution_start, executing, progress, executed."""
    context: Context = socket.app.state.context
    owner = socket.scope["state"]["owner"]
    if owner is None:
        await socket.close(4401)
        return
    client = socket.query_params.get("clientId", "")[:200] or uuid.uuid4().hex
    await socket.accept()
    await socket.send_json({"type": "status", "data": {"status": _status(context), "sid": client}})
    reader = asyncio.create_task(_until_closed(socket))
    followed: dict[str, asyncio.Task] = {}
    try:
        while not reader.done():
            for job in context.store.jobs(owner, limit=50):
                if job.kind == "comfy" and job.request.get("client_id") == client and job.id not in followed:
                    followed[job.id] = asyncio.create_task(_tell(socket, context, job))
            await asyncio.wait([reader], timeout=0.05)
    finally:
        for task in (reader, *followed.values()):
            task.cancel()


async def _until_closed(socket: WebSocket) -> None:
    # Whatever a client says, text or bytes, is nothing to us.
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _tell(socket: WebSocket, context: Context, job: Job) -> None:
    sampler, save = job.request.get("sampler_node", "sampler"), job.request.get("save_node", "save")
    begun = False

    async def say(kind: str, **data: object) -> None:
        await socket.send_json({"type": kind, "data": {"prompt_id": job.id, **data}})

    async for kind, value in events_of(context, job):
        if kind in ("running", "step", "done") and not begun:
            begun = True
            await say("execution_start")
            await say("executing", node=sampler)
        if kind == "step":
            await say("progress", node=sampler, value=value.step, max=value.steps)
        elif kind == "done":
            images = [
                {"filename": f"{job.id}_{image['file']}", "subfolder": "", "type": "output"}
                for image in value
            ]
            await say("executed", node=save, output={"images": images})
            await say("executing", node=None)
        elif kind == "failed":
            await say("execution_error", node_id=sampler, exception_message=value[0])
        elif kind == "cancelled":
            await say("execution_interrupted", node_id=sampler)


def _status(context: Context) -> dict:
    return {"exec_info": {"queue_remaining": context.store.count("queued") + context.store.count("running")}}


def _row(number: int, job: Job) -> list:
    return [number, job.id, job.request.get("graph", {}), {}, [job.request.get("save_node", "save")]]
