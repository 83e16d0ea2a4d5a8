"""The application: every door on one queue. `build_app` starts nothing but the workers it is given."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from fewer.serve import comfy_api, comfy_socket, openai_api, queue_api, tasks_api
from fewer.serve.answers import ApiError
from fewer.serve.context import Context
from fewer.serve.job_store import JobStore
from fewer.serve.limits import Gate, Limits, api_error
from fewer.serve.results import Results
from fewer.serve.served_models import Served
from fewer.serve.uploads import Uploads
from fewer.serve.workers import Workers

logger = logging.getLogger(__name__)
_PAGE = {"index.html": "text/html; charset=utf-8", "app.js": "text/javascript", "style.css": "text/css"}


def build_app(
    store: JobStore,
    results: Results,
    workers: Workers,
    *,
    gate: Gate | None = None,
    uploads: Uploads | None = None,
    served: Served | None = None,
    check: Callable[[dict], None] | None = None,
    keep_seconds: float = 7 * 24 * 3600,
) -> FastAPI:
    """All routes behind the limits. Results older than `keep_seconds` are dropped."""
    gate = gate or Gate()
    uploads = uploads or Uploads(results.folder.parent / "uploads")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(store, results, uploads, keep_seconds))
        yield
        sweeper.cancel()
        await asyncio.to_thread(workers.stop)
        store.close()

    app = FastAPI(title="fewer", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.context = Context(store, results, workers, gate, uploads, served or Served(), check)
    for door in (openai_api, comfy_api, comfy_socket, tasks_api, queue_api):
        app.include_router(door.router)
    for door in (comfy_api.router, comfy_socket.router):  # newer clients ask here
        app.include_router(door, prefix="/api", include_in_schema=False)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(sqlite3.Error, _unwritable)
    app.add_exception_handler(OSError, _unwritable)
    app.add_exception_handler(Exception, _unforeseen)
    for path, page in (("/", _front), ("/static/{name}", _page)):
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_middleware(Limits, gate=gate)
    return app


async def _sweep(store: JobStore, results: Results, uploads: Uploads, keep_seconds: float) -> None:
    while True:
        try:
            for job in await asyncio.to_thread(store.forget, keep_seconds):
                await asyncio.to_thread(results.drop, job)
            await asyncio.to_thread(uploads.forget, keep_seconds)
        except (sqlite3.Error, OSError) as error:  # a full or read-only disk: next time
            logger.warning("old results could not be dropped: %s", error)
        await asyncio.sleep(600)


def _front() -> Response:
    return _page("index.html")


def _page(name: str) -> Response:
    if name not in _PAGE:
        return JSONResponse(api_error("there is no such page", "invalid_request_error"), 404)
    text = resources.files("fewer.serve").joinpath("web", name).read_text("utf-8")
    return Response(text, media_type=_PAGE[name], headers={"Cache-Control": "no-cache"})


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse(api_error(f"{where}: {first['msg']}", "invalid_request_error", where), 400)


async def _unwritable(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s: %s", request.method, request.url.path, error)
    said = "the server cannot write just now (its disk may be full); try again later"
    return JSONResponse(api_error(said, "server_error", code="storage"), 507, headers={"Retry-After": "30"})


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(api_error("something went wrong on the server", "server_error"), 500)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = str(error.detail)
    if error.status_code in (404, 405):  # a client of OpenAI's asks for edits, say
        said = f"{said}: {request.method} {request.url.path[:80]} is not served; /openapi.json lists what is"
    return JSONResponse(api_error(said, "invalid_request_error"), error.status_code, headers=error.headers)
