"""The application: every door on one queue. `build_app` starts nothing but the workers it is given."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from fewer.serve import comfy_api, openai_api, queue_api, tasks_api
from fewer.serve.context import ApiError, Context
from fewer.serve.job_store import JobStore
from fewer.serve.limits import Gate, Limits, api_error
from fewer.serve.results import Results
from fewer.serve.uploads import Uploads
from fewer.serve.workers import Workers

_PAGE = {"index.html": "text/html; charset=utf-8", "app.js": "text/javascript", "style.css": "text/css"}


def build_app(
    store: JobStore,
    results: Results,
    workers: Workers,
    *,
    gate: Gate | None = None,
    uploads: Uploads | None = None,
    models: dict[str, str] | None = None,
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
    app.state.context = Context(
        store, results, workers, gate, uploads, models or {"default": "default"}, check
    )
    for door in (openai_api.router, comfy_api.router, tasks_api.router, queue_api.router):
        app.include_router(door)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_api_route("/", lambda: _page("index.html"), include_in_schema=False)
    app.add_api_route("/static/{name}", _static, include_in_schema=False)
    app.add_middleware(Limits, gate=gate)
    return app


async def _sweep(store: JobStore, results: Results, uploads: Uploads, keep_seconds: float) -> None:
    while True:
        for job in store.forget(keep_seconds):
            results.drop(job)
        await asyncio.to_thread(uploads.forget, keep_seconds)
        await asyncio.sleep(600)


def _static(name: str) -> Response:
    return _page(name)


def _page(name: str) -> Response:
    if name not in _PAGE:
        return JSONResponse(api_error("there is no such page", "invalid_request_error"), 404)
    text = resources.files("fewer.serve").joinpath("web", name).read_text()
    return Response(text, media_type=_PAGE[name], headers={"Cache-Control": "no-cache"})


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse(api_error(f"{where}: {first['msg']}", "invalid_request_error", where), 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        api_error(str(error.detail), "invalid_request_error"), error.status_code, headers=error.headers
    )
