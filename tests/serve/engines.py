"""Engines that stand in for the model where a test is about the server: importable by worker processes."""

import io
import os
import time
from collections.abc import Iterator, Sequence

from PIL import Image

from fewer.core.errors import CapacityError
from fewer.serve.engine import ImageEvent, StepEvent


def quick(options: dict) -> "Quick":
    return Quick(options)


def batching(options: dict) -> "Batching":
    return Batching(options)


class Quick:
    """`seconds` a step; words in the prompt make it fail, run out of memory, or die."""

    def __init__(self, options: dict) -> None:
        self.seconds = options.get("seconds", 0.0)
        self.log = options.get("log")

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        wanted = request["generate"]
        prompt, steps = wanted["prompt"][0], wanted.get("steps") or 3
        if "too big" in prompt:
            raise CapacityError("needs about 23 GB, 14 GB free; try size 1024")
        if "out of memory" in prompt:
            raise MemoryError
        if "broken" in prompt:
            raise RuntimeError("secret path /home/somebody")
        for image in range(wanted.get("count", 1)):
            for step in range(steps):
                time.sleep(self.seconds)
                if (
                    "die" in prompt
                    and step == 1
                    and (("once" not in prompt) or not os.path.exists(self.log + ".died"))
                ):
                    open(self.log + ".died", "w").close()
                    os.kill(os.getpid(), 9)
                preview = self._png() if request.get("partial_images") and step == 0 else None
                yield StepEvent(image, step + 1, steps, preview)
            if self.log:
                with open(self.log, "a") as stream:
                    stream.write(f"{prompt}\n")
            read = "a dog" if prompt == "a puppy" and not wanted.get("as_written") else None
            yield ImageEvent(image, self._png(), wanted.get("seed", 0) + image, 8, 8, read)

    def _png(self) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(stream, "PNG")
        return stream.getvalue()


class Batching(Quick):
    """Draws up to four at once: one log line a batch. A prompt "bad" spoils the batch, not its neighbours."""

    together = 4

    def run_together(self, requests: Sequence[dict]) -> Iterator[tuple[int, StepEvent | ImageEvent | None]]:
        prompts = [request["generate"]["prompt"][0] for request in requests]
        if "bad" in prompts:
            raise MemoryError
        with open(self.log, "a") as stream:
            stream.write("+".join(prompts) + "\n")
        for step in range(requests[0]["generate"].get("steps") or 3):
            time.sleep(self.seconds)
            for which in range(len(requests)):
                yield which, StepEvent(0, step + 1, 3)
        for which in range(len(requests)):
            yield which, ImageEvent(0, self._png(), 0, 8, 8)
            yield which, None

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        if "bad" in request["generate"]["prompt"][0]:
            raise MemoryError
        yield from super().run(request)
