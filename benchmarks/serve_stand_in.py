"""A server with a stand-in for the model. Arguments: FOLDER PORT SECONDS LIMIT WORKERS."""

import io
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fewer.serve.engine import ImageEvent, StepEvent


def stand_in(options: dict) -> "StandIn":
    """What the worker processes make."""
    return StandIn(options)


class StandIn:
    """`seconds` a step, then a picture in one colour; every picture that is finished is written to `log`."""

    def __init__(self, options: dict) -> None:
        self._seconds, self._log = options["seconds"], options["log"]

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        wanted = request["generate"]
        prompt, steps, side = wanted["prompt"][0], wanted.get("steps") or 3, wanted.get("width") or 64
        if prompt == "out of memory":
            ballast = bytearray(32 * 2**20)
            raise MemoryError(len(ballast))
        seed = wanted.get("seed", 0)
        for image in range(wanted.get("count", 1)):
            for step in range(steps):
                time.sleep(self._seconds)
                shown = request.get("partial_images") and step < steps - 1
                yield StepEvent(image, step + 1, steps, _picture(side, seed + step) if shown else None)
            with open(self._log, "a") as log:
                log.write(f"{prompt}\n")
            yield ImageEvent(image, _picture(side, seed + image), seed + image, side, side)


def _picture(side: int, seed: int) -> bytes:
    stream = io.BytesIO()
    picture = Image.radial_gradient("L").resize((side, side))
    colour = tuple((seed * factor + 60) % 200 for factor in (37, 91, 153))
    Image.composite(
        Image.new("RGB", (side, side), "white"), Image.new("RGB", (side, side), colour), picture
    ).save(stream, "PNG")
    return stream.getvalue()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stand_in_app(folder: Path, seconds: float, limit: int, count: int):  # gives a FastAPI, imported late
    """`fewer serve`'s application with the stand-in in the model's place."""
    from fewer.serve.app import build_app
    from fewer.serve.job_store import JobStore
    from fewer.serve.results import Results
    from fewer.serve.workers import Workers

    store, results = JobStore(folder / "jobs.sqlite", limit), Results(folder / "results")
    options = {"seconds": seconds, "log": str(folder / "log")}
    return build_app(store, results, Workers(store, results, "serve_stand_in:stand_in", options, count))


def main() -> None:
    import uvicorn

    folder, port, seconds, limit, count = Path(sys.argv[1]), *map(float, sys.argv[2:])
    app = stand_in_app(folder, seconds, int(limit), int(count))
    uvicorn.run(app, port=int(port), log_level="error", timeout_keep_alive=10)


if __name__ == "__main__":
    main()
