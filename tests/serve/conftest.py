"""A whole server in this process (its worker is a process of its own), with a stand-in for the model."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("fastapi", reason="the extra fewer[serve] is not installed")

from fastapi.testclient import TestClient

from fewer.serve.app import build_app
from fewer.serve.job_store import JobStore
from fewer.serve.limits import Gate
from fewer.serve.results import Results
from fewer.serve.workers import Workers

HEADERS = {"host": "127.0.0.1"}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """`serve(keys=(), seconds=0.0, limit=32, workers=1)` gives a client of a running app."""
    opened: list[TestClient] = []

    def start(
        keys: tuple[str, ...] = (),
        seconds: float = 0.0,
        limit: int = 32,
        workers: int = 1,
        start: bool = True,
        engine: str = "quick",
        group: int = 1,
    ) -> TestClient:
        store = JobStore(tmp_path / "jobs.sqlite", limit)
        results = Results(tmp_path / "results")
        options = {"seconds": seconds, "log": str(tmp_path / "log"), "group": group}
        engine = engine if ":" in engine else f"tests.serve.engines:{engine}"
        pool = Workers(store, results, engine, options, workers, start=start)
        if not start:
            pool.stop = lambda grace_seconds=0.0: None
        app = build_app(store, results, pool, gate=Gate(keys))
        client = TestClient(app, base_url="http://127.0.0.1", headers=HEADERS, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.app.state.context.workers.stop(0.0)  # pyright: ignore: what still runs is not waited for
        client.__exit__(None, None, None)


@pytest.fixture
def listen(serve: Callable[..., TestClient]) -> Iterator[Callable[..., str]]:
    """`listen(**options of serve)` gives the address of the same app on a real port."""
    uvicorn = pytest.importorskip("uvicorn")
    running: list = []

    def start(**options: object) -> str:
        start.app = serve(**options).app  # pyright: ignore[reportFunctionMemberAccess]
        config = uvicorn.Config(start.app, port=0, log_level="error", lifespan="off")  # pyright: ignore
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
