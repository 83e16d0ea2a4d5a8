"""How the server runs and ends: the first signal lets running jobs end, the second ends all at once."""

import contextlib
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from fewer.serve.patience import PatientProtocol

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fewer.serve.workers import Workers


class StoppingServer(uvicorn.Server):
    """uvicorn, whose workers hear of a signal at once and not when the last connection has closed."""

    def __init__(self, config: uvicorn.Config, workers: "Workers") -> None:
        super().__init__(config)
        self._workers = workers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM."""
        super().handle_exit(sig, frame)
        self._workers.begin_stop()


def run_until_stopped(app: "FastAPI", listener: socket.socket) -> None:
    """Serves on `listener` until a signal comes. No worker outlives it."""
    workers: Workers = app.state.context.workers
    _allow_many_connections()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=10, timeout_graceful_shutdown=30,
        h11_max_incomplete_event_size=16_384, http=PatientProtocol, server_header=False,
        ws_max_size=64 * 1024, ws_max_queue=8,
    )  # fmt: skip
    try:
        StoppingServer(config, workers).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the second Ctrl-C was heard
        workers.stop(0.0)


def _allow_many_connections() -> None:
    """A shell allows 1,024 open files, which are as many idle connections; the system allows more."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not everywhere, not always allowed
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
