"""The process that draws. It talks over one pipe: jobs and cancellations in, events out.

It ends when the pipe does, so a killed server leaves no orphan behind.
"""

import contextlib
import importlib
import logging
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from fewer.core.errors import FewerError
from fewer.serve.engine import Engine, ImageEvent, OutcomeEvent, StepEvent

logger = logging.getLogger(__name__)
_CODES = {"CapacityError": "capacity", "GroupFailed": "group_failed"}
_KINDS = {StepEvent: "step", ImageEvent: "image", OutcomeEvent: "outcome"}
Jobs = list[tuple[str, dict]]
"""Job ids and their requests."""


def worker_main(pipe: Connection, engine: str, options: dict) -> None:
    """`engine` is "module:function"; the function takes `options` and gives an `Engine`."""
    # Ctrl-C reaches the whole terminal, and a service manager ends the whole group: the server alone decides
    # what becomes of the work. A handler, unlike SIG_IGN, is not inherited by processes that a worker starts.
    with contextlib.suppress(ValueError):  # in a thread, as in a test, there is nothing to hear
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _hear_nothing)
    module, _, function = engine.partition(":")
    drawer: Engine = getattr(importlib.import_module(module), function)(options)
    pipe.send(("ready", None, getattr(drawer, "together", 1)))
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message[0] == "stop":
            return
        if message[0] == "run":
            try:
                _draw(pipe, drawer, message[1])
            except (BrokenPipeError, EOFError, OSError):
                return


def _hear_nothing(number: int, frame: object) -> None:
    return


def _draw(pipe: Connection, drawer: Engine, jobs: Jobs) -> None:
    """Draws one job, or several together; what fails together is tried again one by one."""
    if len(jobs) > 1:
        ended: set[str] = set()
        try:
            _follow(pipe, _tagged(drawer, jobs), [job for job, _ in jobs], ended)
            return
        except (BrokenPipeError, EOFError):
            raise
        except Exception:
            logger.warning("%d jobs failed as a batch; they are tried one by one", len(jobs), exc_info=True)
            _free_memory()
        jobs = [(job, request) for job, request in jobs if job not in ended]
        for job, _ in jobs:
            pipe.send(("again", job, None))
    for job, request in jobs:
        _draw_alone(pipe, drawer, job, request)


def _tagged(drawer: Any, jobs: Jobs) -> Iterator[tuple[str, object]]:
    for which, event in drawer.run_together([request for _, request in jobs]):
        yield jobs[which][0], event


def _draw_alone(pipe: Connection, drawer: Engine, job: str, request: dict) -> None:
    def events() -> Iterator[tuple[str, object]]:
        inner = drawer.run({**request, "job": job})
        try:
            for event in inner:
                yield job, event
        finally:
            inner.close() if hasattr(inner, "close") else None  # pyright: ignore
        yield job, None

    try:
        _follow(pipe, events(), [job], set())
    except FewerError as error:
        code = _CODES.get(type(error).__name__, "invalid_request")
        pipe.send(("failed", job, (str(error), code)))
    except (BrokenPipeError, EOFError):
        raise
    except Exception as error:
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        _free_memory()
        if memory:
            said = "not enough memory for this picture; try a smaller size"
            pipe.send(("failed", job, (said, "capacity")))
        else:
            # The text of a stranger's exception may hold paths: it goes to the log, not to the client.
            logger.exception("job %s failed", job)
            pipe.send(("failed", job, (f"the job could not be done ({type(error).__name__})", "internal")))


def _follow(pipe: Connection, events: Any, jobs: list[str], ended: set[str]) -> None:
    """Passes events on until all jobs have ended. A cancelled one is silent from then on; when none is
    left, the drawing stops."""
    for job, event in events:
        if job not in ended:
            kind = "done" if event is None else _KINDS[type(event)]
            if kind == "done":
                ended.add(job)
            pipe.send((kind, job, event))
        # After the last job's end the next message is new work, and not for us to read.
        for cancelled in _cancelled(pipe) if len(ended) < len(jobs) else ():
            if cancelled in jobs and cancelled not in ended:
                ended.add(cancelled)
                pipe.send(("cancelled", cancelled, None))
        if len(ended) == len(jobs):
            events.close()
            return


def _cancelled(pipe: Connection) -> list[str]:
    cancelled = []
    while pipe.poll():
        message: Any = pipe.recv()
        if message[0] == "cancel":
            cancelled.append(message[1])
    return cancelled


def _free_memory() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
