"""A server with a stand-in for the model. Arguments: FOLDER PORT SECONDS LIMIT WORKERS TOGETHER."""

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


def alike(options: dict) -> "Alike":
    """An engine that draws requests side by side."""
    return Alike(options)


class Alike(StandIn):
    """Takes the time that Sana 0.6B took on one H100 for 20 steps and decoding at 256 px: 40.1 ms for one
    picture and 82.4 ms for eight (`engine_batching.py`), and in between what lies on the line."""

    def __init__(self, options: dict) -> None:
        super().__init__(options)
        self.together: int = options["together"]

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        for _, event in self.run_together([request]):
            if event is not None:
                yield event

    def run_together(self, requests: list[dict]) -> Iterator[tuple[int, StepEvent | ImageEvent | None]]:
        for step in range(20):
            time.sleep((0.0340 + 0.00604 * len(requests)) / 20)
            for which in range(len(requests)):
                yield which, StepEvent(0, step + 1, 20)
        for which, request in enumerate(requests):
            yield which, ImageEvent(0, _picture(64, which), request["generate"]["seed"], 64, 64)
            yield which, None


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


def stand_in_app(
    folder: Path, seconds: float, limit: int, count: int, together: int = 0
):  # gives a FastAPI, imported late
    """`fewer serve`'s application with a stand-in in the model's place; `together` takes the other one."""
    from fewer.serve.app import build_app
    from fewer.serve.job_store import JobStore
    from fewer.serve.results import Results
    from fewer.serve.workers import Workers

    store, results = JobStore(folder / "jobs.sqlite", limit), Results(folder / "results")
    options = {"seconds": seconds, "log": str(folder / "log"), "together": together}
    engine = "serve_stand_in:alike" if together else "serve_stand_in:stand_in"
    return build_app(store, results, Workers(store, results, engine, options, count))


def main() -> None:
    from fewer.serve.command import listening
    from fewer.serve.stopping import run_until_stopped

    folder, port, seconds, limit, count, together = Path(sys.argv[1]), *map(float, sys.argv[2:])
    app = stand_in_app(folder, seconds, int(limit), int(count), int(together))
    run_until_stopped(app, listening("127.0.0.1", int(port)))


if __name__ == "__main__":
    main()
