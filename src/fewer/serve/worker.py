"""The process that draws. It talks over one pipe: jobs and cancellations in, events out.

It ends when the pipe does, so a killed server leaves no orphan behind.
"""

import importlib
import logging
from multiprocessing.connection import Connection
from typing import Any

from fewer.core.errors import CapacityError, FewerError
from fewer.serve.engine import Engine, StepEvent

logger = logging.getLogger(__name__)


def worker_main(pipe: Connection, engine: str, options: dict) -> None:
    """`engine` is "module:function"; the function takes `options` and gives an `Engine`."""
    module, _, function = engine.partition(":")
    drawer: Engine = getattr(importlib.import_module(module), function)(options)
    pipe.send(("ready", None))
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message[0] == "stop":
            return
        if message[0] == "run":
            try:
                _draw(pipe, drawer, *message[1:])
            except (BrokenPipeError, EOFError, OSError):
                return


def _draw(pipe: Connection, drawer: Engine, job: str, request: dict) -> None:
    try:
        events = drawer.run(request)
        for event in events:
            kind = "step" if isinstance(event, StepEvent) else "image"
            pipe.send((kind, job, event))
            if _cancelled(pipe, job):
                events.close() if hasattr(events, "close") else None  # pyright: ignore
                pipe.send(("cancelled", job, None))
                return
        pipe.send(("done", job, None))
    except FewerError as error:
        code = "capacity" if isinstance(error, CapacityError) else "invalid_request"
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
            pipe.send(
                ("failed", job, (f"the picture could not be drawn ({type(error).__name__})", "internal"))
            )


def _cancelled(pipe: Connection, job: str) -> bool:
    while pipe.poll():
        message: Any = pipe.recv()
        if message[0] == "cancel" and message[1] == job:
            return True
    return False


def _free_memory() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
