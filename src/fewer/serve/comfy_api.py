"""The part of ComfyUI's API that a headless client needs to run a text-to-image graph.

The graph is read, not executed: a KSampler tells prompts (its CLIPTextEncode nodes), size (its latent node),
steps, cfg and seed; a SaveImage takes the result. Unknown nodes are answered in the `node_errors` shape.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from fewer.core.errors import ConfigError, FileError
from fewer.serve.answers import ApiError, body_schema
from fewer.serve.context import (
    Context,
    context_of,
    owner_of,
    submit,
    validated,
)
from fewer.serve.graph import KNOWN_NODES, NodeErrors, node_inputs, read_graph
from fewer.serve.job_store import Job
from fewer.serve.openai_api import media_type
from fewer.serve.served_models import Served

router = APIRouter()
_PREFIX = "comfy:"
"""Of a client's own prompt ids among the idempotency keys."""
_ERRORS = {
    status: {"description": "see error.message or node_errors"}
    for status in (400, 401, 404, 413, 422, 429, 503, 507)
}


class Prompt(BaseModel):
    """A graph in API format."""

    model_config = ConfigDict(extra="ignore")

    prompt: dict[str, Any]
    client_id: Annotated[str, Field(max_length=200)] = ""
    prompt_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The client's own name for it, which is then used instead of ours; the same again is the same job."""


class QueueChange(BaseModel):
    """Clear the queue, or delete jobs from it."""

    model_config = ConfigDict(extra="ignore")

    clear: bool = False
    delete: Annotated[list[str], Field(max_length=1000)] = []


class Interruption(BaseModel):
    """Which graph to stop; all of yours that run, if it is left out."""

    model_config = ConfigDict(extra="ignore")

    prompt_id: Annotated[str, Field(max_length=64)] | None = None


@router.post("/prompt", responses=_ERRORS, openapi_extra=body_schema(Prompt))
async def prompt(request: Request) -> JSONResponse:
    """Queues a graph."""
    wanted: Prompt = await validated(request, Prompt)
    context = context_of(request)
    try:
        drawing = [name for name, model in context.served.models.items() if model.kind == "pictures"]
        graph = read_graph(wanted.prompt, drawing, context.served.loras)
    except NodeErrors as error:
        return JSONResponse({"error": error.summary, "node_errors": error.nodes}, 400)
    except ConfigError as error:
        raise ApiError(400, str(error)) from error
    body = graph | {"client_id": wanted.client_id, "prompt_id": wanted.prompt_id}
    key = None if wanted.prompt_id is None else _PREFIX + wanted.prompt_id
    job = submit(context, owner_of(request), "comfy", body, key, wanted)
    context.announce(job)
    return JSONResponse(
        {"prompt_id": prompt_id(job), "number": context.store.position(job.id) or 0, "node_errors": {}}
    )


@router.get("/prompt", responses={401: {"description": "no valid key"}})
async def waiting(request: Request) -> dict:
    """How many wait or run."""
    return status_of(context_of(request))


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
        if wanted.clear or job.id in wanted.delete or prompt_id(job) in wanted.delete:
            context.workers.cancel(job.id)
    return Response()


@router.post("/interrupt", response_class=Response, responses=_ERRORS)
async def interrupt(request: Request) -> Response:
    """Cancels what runs: the graph that the body names, or all of yours."""
    context, wanted = context_of(request), Interruption()
    if (await request.body()).strip():
        wanted = await validated(request, Interruption)
    for job in context.store.jobs(owner_of(request), "running"):
        if wanted.prompt_id in (None, job.id, prompt_id(job)):
            context.workers.cancel(job.id)
    return Response()


@router.get("/history", responses={status: _ERRORS[status] for status in (400, 401)})
async def whole_history(request: Request, max_items: Annotated[int, Query(ge=1, le=500)] = 100) -> dict:
    """Your finished graphs."""
    found: dict = {}
    for job in context_of(request).store.jobs(owner_of(request), limit=max_items):
        if job.kind == "comfy" and job.state not in ("queued", "running"):
            found |= _outputs(job)
    return found


@router.get("/history/{prompt_id}", responses={401: {"description": "no valid key"}})
async def history(request: Request, prompt_id: str) -> dict:
    """A finished graph's outputs; an empty object while there are none."""
    store, owner = context_of(request).store, owner_of(request)
    job = store.get(prompt_id, owner) or store.named(owner, _PREFIX + prompt_id)
    return {} if job is None or job.state in ("queued", "running") else _outputs(job)


def _outputs(job: Job) -> dict:
    done = job.state == "done"
    return {
        prompt_id(job): {
            "prompt": _row(0, job),
            "outputs": {job.request.get("save_node", "save"): {"images": pictures_of(job)}},
            "status": {"status_str": "success" if done else "error", "completed": done, "messages": []},
        }
    }


def pictures_of(job: Job, images: list[dict] | None = None) -> list[dict]:
    """A job's pictures (or `images`, where it has not been read again) as clients ask /view for them."""
    images = (job.result or {}).get("images", []) if images is None else images
    return [{"filename": f"{job.id}_{image['file']}", "subfolder": "", "type": "output"} for image in images]


def prompt_id(job: Job) -> str:
    """Under which name its client knows a graph."""
    return job.request.get("prompt_id") or job.id


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
    """The nodes that are understood, with the names that their inputs may take."""
    served = context_of(request).served
    return {name: _node(name, served) for name in KNOWN_NODES}


@router.get(
    "/object_info/{node}",
    responses={401: {"description": "no valid key"}, 404: {"description": "no such node"}},
)
async def one_object(request: Request, node: str) -> dict:
    """One of them."""
    if node not in KNOWN_NODES:
        raise ApiError(404, f"node type {node[:60]!r} is not served here", "node")
    return {node: _node(node, context_of(request).served)}


def _node(name: str, served: Served) -> dict:
    inputs, output = node_inputs(name, list(served.models), list(served.loras))
    return {
        "name": name, "display_name": name, "category": "fewer", "description": "",
        "input": {"required": inputs}, "output": output, "output_name": output,
        "output_node": not output,
    }  # fmt: skip


@router.get("/system_stats", responses={401: {"description": "no valid key"}})
async def system_stats(request: Request) -> dict:
    """Only what a client uses to see that somebody is there."""
    return {"system": {"os": "posix", "comfyui_version": "0", "embedded_python": False}, "devices": []}


def status_of(context: Context) -> dict:
    """The queue's length, as /prompt and the socket tell it."""
    return {"exec_info": {"queue_remaining": context.store.count("queued") + context.store.count("running")}}


def _row(number: int, job: Job) -> list:
    return [number, prompt_id(job), job.request.get("graph", {}), {}, [job.request.get("save_node", "save")]]
