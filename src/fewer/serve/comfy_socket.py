"""ComfyUI's WebSocket: what happens to a client's graphs, as messages; pictures as bytes where asked for."""

import asyncio
import contextlib
import struct
import uuid

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from fewer.core.errors import FileError
from fewer.serve.comfy_api import pictures_of, prompt_id, status_of
from fewer.serve.context import Context, events_of
from fewer.serve.job_store import Job

router = APIRouter()
_LOOK_SECONDS = 1.0
"""How often jobs that came in through another server of the same folder are looked for."""
_PNG = struct.pack(">II", 1, 2)
"""Before the bytes of a picture: it is a preview image, in PNG."""


@router.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    """Status, then progress of the graphs that this client queues."""
    context: Context = socket.app.state.context
    owner = socket.scope["state"]["owner"]
    client = socket.query_params.get("clientId", "")[:200] or uuid.uuid4().hex
    await socket.accept()
    await socket.send_json({"type": "status", "data": {"status": status_of(context), "sid": client}})
    reader = asyncio.create_task(_until_closed(socket))
    followed: dict[str, asyncio.Task] = {}
    try:
        with context.announced(owner, client) as fresh:
            while not reader.done():
                for job in _of_client(context, owner, client, set(followed)):
                    followed[job.id] = asyncio.create_task(_tell(socket, context, job))
                fresh.clear()
                news = asyncio.create_task(fresh.wait())
                await asyncio.wait([reader, news], timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
    finally:
        for task in (reader, *followed.values()):
            task.cancel()


def _of_client(context: Context, owner: str, client: str, known: set[str]) -> list[Job]:
    """Graphs of this client that have not ended, or that ended before we could look, oldest first."""
    newest = context.store.jobs(owner, limit=50)
    return [
        job
        for job in reversed(newest)
        if job.id not in known and job.kind == "comfy" and job.request.get("client_id") == client
    ]


async def _until_closed(socket: WebSocket) -> None:
    # Whatever a client says, text or bytes, is nothing to us.
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _tell(socket: WebSocket, context: Context, job: Job) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it closes while we speak
        await _tell_all(socket, context, job)


async def _tell_all(socket: WebSocket, context: Context, job: Job) -> None:
    sampler, save = job.request.get("sampler_node", "sampler"), job.request.get("save_node", "save")
    begun = False

    async def say(kind: str, **data: object) -> None:
        await socket.send_json({"type": kind, "data": {"prompt_id": prompt_id(job), **data}})

    async for kind, value in events_of(context, job):
        if kind in ("running", "step", "done") and not begun:
            begun = True
            await say("execution_start")
            await say("executing", node=sampler)
        if kind == "step":
            await say("progress", node=sampler, value=value.step, max=value.steps)
            continue
        if kind == "done":
            await say("executing", node=save)
            await _send_pictures(socket, context, job, value)
            await say("executed", node=save, output={"images": pictures_of(job, value)})
            await say("execution_success")
        elif kind == "failed":
            await say("execution_error", node_id=sampler, exception_message=value[0], exception_type=value[1])
        elif kind in ("cancelled", "stopping"):
            await say("execution_interrupted", node_id=sampler)
        else:
            continue
        # A client waits for this, however its graph has ended.
        await say("executing", node=None)
        await socket.send_json({"type": "status", "data": {"status": status_of(context)}})


async def _send_pictures(socket: WebSocket, context: Context, job: Job, images: list[dict]) -> None:
    if not job.request.get("by_socket"):
        return
    for image in images:
        with contextlib.suppress(FileError):  # dropped meanwhile
            await socket.send_bytes(_PNG + context.results.read(job.id, image["file"]))
