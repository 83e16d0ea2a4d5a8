"""The doors to the other rooms: send a file, then ask for work on it as a job like any other."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from fewer.core.errors import CapacityError, FileError
from fewer.serve.answers import ApiError, body_schema
from fewer.serve.context import (
    context_of,
    owner_of,
    submit,
    validated,
)
from fewer.serve.queue_api import facts

router = APIRouter()
_ERRORS = {
    status: {"description": "see error.message"} for status in (400, 401, 404, 408, 413, 422, 429, 503, 507)
}
_Upload = Annotated[str, Field(min_length=1, max_length=60)]
_Model = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StitchBody(_Body):
    """An endoscopy video becomes one map."""

    upload: _Upload
    matchers: Annotated[str, Field(pattern=r"^[a-z,-]+$", max_length=100)] = "sift,orb"
    unwrap: Literal["cylinder", "linear", "log"] = "cylinder"
    lens: Literal["equidistant", "pinhole"] = "equidistant"
    fov: Annotated[float, Field(gt=20, lt=179)] = 140.0
    stride: Annotated[int, Field(ge=1, le=1000)] = 1
    blend: Literal["multiband", "feather", "last"] = "multiband"


class ReconstructBody(_Body):
    """A picture through the autoencoder and back."""

    upload: _Upload
    model: _Model = "default"


class ClassifyBody(_Body):
    """The class of each picture, by a classifier that this server was given."""

    uploads: Annotated[list[_Upload], Field(min_length=1, max_length=1000)]
    model: _Model


class SuggestBody(_Body):
    """What comes next after a history, by a recommender that this server was given."""

    history: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^,]+$")]],
        Field(max_length=10_000),
    ]
    model: _Model
    k: Annotated[int, Field(ge=1, le=1000)] = 10


@router.post("/uploads", status_code=201, responses=_ERRORS)
async def upload(request: Request, suffix: Annotated[str, Query(max_length=20)]) -> JSONResponse:
    """Takes a file as the raw body; `suffix` says what it is, such as .mp4 or .png."""
    context = context_of(request)
    try:
        kept = await context.uploads.receive(owner_of(request), suffix, request.stream())
    except CapacityError as error:
        raise ApiError(507, str(error), code="capacity") from error
    except FileError as error:
        raise ApiError(400, str(error), "suffix") from error
    return JSONResponse(kept, status_code=201)


@router.delete("/uploads/{identity}", responses=_ERRORS)
async def forget_upload(request: Request, identity: str) -> dict:
    """Deletes a file of yours."""
    try:
        context_of(request).uploads.drop(owner_of(request), identity)
    except FileError as error:
        raise ApiError(404, str(error), "upload") from error
    return {"id": identity, "deleted": True}


@router.post("/jobs/stitch", status_code=202, responses=_ERRORS, openapi_extra=body_schema(StitchBody))
async def stitch(request: Request) -> JSONResponse:
    """Queues a video for `fewer stitch`."""
    wanted: StitchBody = await validated(request, StitchBody)
    options = wanted.model_dump(exclude={"upload"}) | {"file": _file(request, wanted.upload)}
    return _queue(request, "stitch", options, wanted)


@router.post(
    "/jobs/reconstruct", status_code=202, responses=_ERRORS, openapi_extra=body_schema(ReconstructBody)
)
async def reconstruct(request: Request) -> JSONResponse:
    """Queues a picture for `fewer reconstruct`."""
    wanted: ReconstructBody = await validated(request, ReconstructBody)
    model = context_of(request).served.known(wanted.model, "pictures", "autoencoder").folder
    options: dict[str, object] = {"file": _file(request, wanted.upload), "model": model}
    return _queue(request, "reconstruct", options, wanted)


@router.post("/jobs/classify", status_code=202, responses=_ERRORS, openapi_extra=body_schema(ClassifyBody))
async def classify(request: Request) -> JSONResponse:
    """Queues pictures for `fewer learn predict`."""
    wanted: ClassifyBody = await validated(request, ClassifyBody)
    files = [_file(request, identity) for identity in wanted.uploads]
    model = context_of(request).served.known(wanted.model, "classifier").folder
    return _queue(request, "classify", {"files": files, "model": model}, wanted)


@router.post("/jobs/suggest", status_code=202, responses=_ERRORS, openapi_extra=body_schema(SuggestBody))
async def suggest(request: Request) -> JSONResponse:
    """Queues a history for `fewer recommend suggest`."""
    wanted: SuggestBody = await validated(request, SuggestBody)
    model = context_of(request).served.known(wanted.model, "recommender").folder
    return _queue(request, "suggest", {"history": wanted.history, "k": wanted.k, "model": model}, wanted)


def _queue(request: Request, task: str, options: dict[str, object], asked: BaseModel) -> JSONResponse:
    context = context_of(request)
    body = {"task": task, "options": options}
    job = submit(context, owner_of(request), task, body, request.headers.get("idempotency-key"), asked)
    return JSONResponse(facts(context, job), status_code=202)


def _file(request: Request, identity: str) -> str:
    try:
        return str(context_of(request).uploads.path(owner_of(request), identity))
    except FileError as error:
        raise ApiError(404, str(error), "upload") from error
