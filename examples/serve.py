"""A server in this process, asked through its OpenAI door, with an engine that paints instead of a model."""

import base64
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastapi.testclient import TestClient
from PIL import Image

from fewer.serve.app import build_app
from fewer.serve.engine import ImageEvent, StepEvent
from fewer.serve.job_store import JobStore
from fewer.serve.results import Results
from fewer.serve.workers import Workers


class Painter:
    """What a worker runs; `fewer serve` uses the real model's engine."""

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        yield StepEvent(0, 1, 1)
        stream = io.BytesIO()
        Image.new("RGB", (64, 64), "teal").save(stream, "PNG")
        yield ImageEvent(0, stream.getvalue(), request["generate"]["seed"], 64, 64)


def painter(options: dict) -> Painter:
    return Painter()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, results = JobStore(Path(folder) / "jobs.sqlite"), Results(Path(folder) / "results")
        workers = Workers(store, results, f"{Path(__file__).stem}:painter", {}, 1)
        with TestClient(build_app(store, results, workers), base_url="http://127.0.0.1") as client:
            answer = client.post("/v1/images/generations", json={"prompt": "teal", "seed": 7}).json()
            raw = base64.b64decode(answer["data"][0]["b64_json"])
            print(f"{len(raw)} bytes, {answer['size']}, seed {answer['data'][0]['seed']}")


if __name__ == "__main__":
    main()
