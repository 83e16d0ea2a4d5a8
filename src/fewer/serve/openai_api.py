"""`POST /v1/images/generations` and `GET /v1/models` as OpenAI's clients expect them, streaming included."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fewer.core.files import MAX_PIXELS
from fewer.serve.answers import ApiError, body_schema, unfinished
from fewer.serve.context import (
    Context,
    context_of,
    events_of,
    owner_of,
    submit,
    validated,
)
from fewer.serve.job_store import ENDS, Job
from fewer.serve.results import MEDIA_TYPES, encode
from fewer.serve.served_models import Served, ServedModel

router = APIRouter()

_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": "see error.message"}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507)
}
# One event of a stream: what testers of OpenAPI hold each of them against.
EVENT_SCHEMA = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the pictures; with stream=true, events with partial pictures and the last one",
        "content": {"text/event-stream": {"schema": EVENT_SCHEMA}},
    }
}


def _digits(value: object) -> object:
    """JavaScript's numbers hold 2**53 at most: what is sent as digits in a string is kept to the last one."""
    good = isinstance(value, str) and len(value) <= 19 and value.isascii() and value.isdigit()
    return int(value) if good else value


_InRange = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(pattern="^[0-9]{1,19}$")]
Seed = Annotated[_InRange, BeforeValidator(_digits, json_schema_input_type=_InRange | _Text)]


class ImageRequest(BaseModel):
    """The published fields, and six of ours at the top level; anything else is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=10_000)]
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Annotated[str, Field(max_length=11)] | None = "auto"
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = "auto"
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = "auto"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    user: Annotated[str, Field(max_length=200)] | None = None
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: Annotated[str, Field(max_length=10_000)] | None = None
    as_written: bool | None = None
    lora: Annotated[list[Annotated[str, Field(max_length=220)]], Field(max_length=8)] | None = None

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: str | None) -> str | None:
        if value in (None, "auto"):
            return value
        width, _, height = value.partition("x")
        good = all(side.isascii() and side.isdigit() and 1 <= int(side) <= 8192 for side in (width, height))
        if not good:
            raise ValueError("size is 'auto' or WIDTHxHEIGHT with sides of 1 to 8192, such as 1024x1024")
        if int(width) * int(height) > MAX_PIXELS:
            raise ValueError(f"a picture has at most {MAX_PIXELS:,} pixels; try a smaller size")
        return value

    def job(self, served: Served) -> dict:
        """The queue's form of the request. Raises `ApiError` for a model or an adapter that is not served."""
        model = self.model or "default"
        self._check_classes(served.drawing(model))
        wanted: dict[str, object] = {
            "prompt": [self.prompt],
            "negative": self.negative_prompt or "",
            "model": model,
            "count": self.n or 1,
            "seed": served.seed() if self.seed is None else self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
        }
        if self.as_written:
            wanted["as_written"] = True
        if self.size not in (None, "auto"):
            wanted["width"], wanted["height"] = (int(side) for side in self.size.split("x"))
        if self.lora:
            wanted["lora"] = [served.known_lora(one) for one in self.lora]
        return {
            "generate": wanted,
            "output_format": self.output_format or "png",
            "output_compression": self.output_compression,
            "partial_images": (self.partial_images or 0) if self.stream else 0,
        }

    def _check_classes(self, model: ServedModel) -> None:
        """A model that draws classes knows its names, or their numbers, and few options."""
        if model.kind != "classes":
            return
        number = int(self.prompt) if self.prompt.isascii() and self.prompt.isdecimal() else len(model.classes)
        if self.prompt not in model.classes and number >= len(model.classes):
            names = ", ".join(model.classes)[:300]
            raise ApiError(400, f"prompt {self.prompt[:60]!r} is no class of this model: {names}", "prompt")
        for name in ("negative_prompt", "lora", "as_written"):
            if getattr(self, name):
                raise ApiError(400, f"{name} has no effect on a model that draws classes; leave it out", name)
        if self.size not in (None, "auto"):
            raise ApiError(400, "a model that draws classes has one size; leave size out, or 'auto'", "size")


@router.get("/v1/models", responses={401: {"description": "no valid key"}})
async def models(request: Request) -> dict:
    """The models that may be asked for; `kind` says for what, `classes` what such a model draws."""
    served = context_of(request).served
    every = [_model(served, name) for name in served.models]
    return {"object": "list", "data": every, "loras": [*served.loras]}


@router.get(
    "/v1/models/{model}",
    responses={401: {"description": "no valid key"}, 404: {"description": "no such model"}},
)
async def one_model(request: Request, model: str) -> dict:
    """One of them."""
    served = context_of(request).served
    served.known(model)
    return _model(served, model)


def _model(served: Served, name: str) -> dict[str, object]:
    model = served.models[name]
    facts: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "fewer"}
    facts["kind"] = model.kind
    if model.classes:
        facts["classes"] = list(model.classes)
    return facts


@router.post("/v1/images/generations", responses=_DRAWN | _ANSWERS, openapi_extra=body_schema(ImageRequest))
async def generations(
    request: Request, idempotency_key: Annotated[str | None, Header()] = None, x_fewer_keep: bool = False
) -> Response:
    """Draws pictures. A client that goes away cancels its job, unless `x_fewer_keep` is true."""
    wanted: ImageRequest = await validated(request, ImageRequest)
    context = context_of(request)
    job = submit(context, owner_of(request), "image", wanted.job(context.served), idempotency_key, wanted)
    if wanted.stream:
        headers = {"X-Fewer-Job": job.id, "Cache-Control": "no-store"}
        stream = _stream(request, context, job, wanted, keep=x_fewer_keep)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    with context.waiting(job.id):
        async for kind, value in events_of(context, job):
            if kind == "tick" and not x_fewer_keep and await request.is_disconnected():
                context.abandon(job.id)
                return Response(status_code=499)  # nobody reads it
            if kind == "done":
                answer = _answer(request, context, job, wanted, value)
                return JSONResponse(answer, headers={"X-Fewer-Job": job.id})
            if kind in (*ENDS, "stopping"):
                raise unfinished(job, kind, value)
    raise ApiError(500, "the job ended without a result")


def _answer(request: Request, context: Context, job: Job, wanted: ImageRequest, images: list[dict]) -> dict:
    data: list[dict[str, object]] = []
    for facts in images:
        told = {key: facts[key] for key in ("seed", "revised_prompt") if key in facts}
        if wanted.response_format == "url":
            path = f"/files/{job.id}/{facts['file']}"
            # Whole and signed, as OpenAI's: it opens by itself, for an hour.
            url = str(request.base_url).rstrip("/") + path + context.gate.signature(job.owner, path)
            data.append({"url": url} | told)
        else:
            raw = context.results.read(job.id, facts["file"])
            data.append({"b64_json": base64.b64encode(raw).decode()} | told)
    size = f"{images[0]['width']}x{images[0]['height']}" if images else "auto"
    return {
        "created": int(time.time()),
        "data": data,
        "background": "opaque",
        "output_format": wanted.output_format or "png",
        "size": size,
        "quality": "auto",
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
            "output_tokens": 0,
            "total_tokens": 0,
        },
    }


async def _stream(
    request: Request, context: Context, job: Job, wanted: ImageRequest, keep: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. The generator is closed when the client goes away: then the job is cancelled."""
    finished, shown = False, 0
    form = wanted.output_format or "png"
    with context.waiting(job.id):
        try:
            async for kind, value in events_of(context, job):
                if kind == "step" and value.preview is not None:
                    preview = encode(value.preview, form, wanted.output_compression)
                    facts = _image_facts(wanted, preview) | {"partial_image_index": shown}
                    yield _event("image_generation.partial_image", facts)
                    shown += 1
                elif kind == "done":
                    finished = True
                    for image in value:
                        facts = _image_facts(wanted, context.results.read(job.id, image["file"]))
                        facts["size"] = f"{image['width']}x{image['height']}"
                        facts |= (
                            {"revised_prompt": image["revised_prompt"]} if "revised_prompt" in image else {}
                        )
                        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
                        yield _event("image_generation.completed", facts | {"usage": usage})
                elif kind in (*ENDS, "stopping"):
                    finished = True
                    yield _event("error", unfinished(job, kind, value).body)
                elif kind == "tick":
                    yield b": waiting\n\n"  # also how a vanished client is noticed
        finally:
            if not finished and not keep:
                context.abandon(job.id)


def _image_facts(wanted: ImageRequest, raw: bytes) -> dict[str, object]:
    return {
        "b64_json": base64.b64encode(raw).decode(),
        "created_at": int(time.time()),
        "size": wanted.size or "auto",
        "quality": "auto",
        "background": "opaque",
        "output_format": wanted.output_format or "png",
    }


def _event(kind: str, body: dict[str, object]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **body})}\n\n".encode()


def media_type(name: str) -> str:
    """By the suffix that we gave."""
    return MEDIA_TYPES[name.rsplit(".", 1)[-1]]
