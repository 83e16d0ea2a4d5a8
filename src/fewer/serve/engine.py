"""What a worker runs: a request in, events out. `LocalEngine` draws with `TextToImage`, runs other rooms."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from fewer.generate.pipeline import TextToImage
    from fewer.generate.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step is done; `preview` is a PNG where one was asked for."""

    image: int
    step: int
    steps: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImageEvent:
    """A picture is done, as PNG with its metadata."""

    image: int
    png: bytes
    seed: int
    width: int
    height: int
    read: str | None = None
    """The sentence that was drawn, where it is not the prompt word for word."""


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    """A job that draws nothing is done: its facts, and the names of the files in its result folder."""

    facts: dict[str, Any]
    files: tuple[str, ...]


EngineEvent = StepEvent | ImageEvent | OutcomeEvent


@runtime_checkable
class Engine(Protocol):
    """Does what a job's request says. Stopping the iteration cancels before the next step.

    An engine with an attribute `together` above 1 also has `run_together(requests)`, which draws several
    requests with the same `batch_key` at once and yields (which request, event); None as event ends one.
    """

    def run(self, request: dict) -> Iterator[EngineEvent]: ...


def batch_key(request: dict) -> tuple | None:
    """Requests with equal keys may share a batch; None for what is always done alone."""
    wanted = request.get("generate")
    if wanted is None:
        return None
    apart = ("prompt", "negative", "seed", "count")
    return tuple(sorted((name, repr(value)) for name, value in wanted.items() if name not in apart))


def local_engine(options: dict) -> Engine:
    """The engine of `fewer serve`: one device, or a group of them that draws a picture together."""
    if options.get("group", 1) > 1:
        from fewer.serve.group_engine import GroupEngine

        return GroupEngine(options)
    return LocalEngine(options)


class LocalEngine:
    """Models by name, loaded when first asked for and kept while memory lasts."""

    def __init__(self, options: dict) -> None:
        from fewer.core.device import pick_device
        from fewer.serve.shelf import Shelf

        self._device = pick_device(options.get("device", "auto"))
        if self._device.type == "cuda":  # several workers take the GPUs in turn
            import torch

            torch.cuda.set_device(options.get("number", 0) % torch.cuda.device_count())
        self._shelf = Shelf(
            options.get("models", {}), str(self._device), options.get("dtype", "auto"), options.get("memory")
        )
        self._results: str | None = options.get("results")
        self._classes, self._loras = frozenset(options.get("classes", ())), dict(options.get("loras", {}))
        # A batch equals pictures drawn alone only up to rounding, and gains nothing on a CPU.
        self.together: int = options.get("together") or (8 if self._device.type == "cuda" else 1)

    def run(self, request: dict) -> Iterator[EngineEvent]:
        """A picture, or another room's work."""
        if "task" in request:
            from fewer.serve.tasks import run_task

            yield from run_task(request, self._results, str(self._device))
            return
        for _, event in self.run_together([request]):
            if event is not None:
                yield event

    def admit(self, requests: Sequence[dict]) -> tuple[Any, list["GenerateRequest"]]:
        """The model, loaded, and the requests as they stand. Raises `FewerError` for what cannot be drawn."""
        from fewer.core.config import validate
        from fewer.generate.request import GenerateRequest

        wanted = [
            validate(GenerateRequest, request["generate"] | {"lora": self._files(request["generate"])})
            for request in requests
        ]
        name = wanted[0].model
        opened = self._shelf.class_model(name) if name in self._classes else self._shelf.pipeline(name)
        return opened, wanted

    def _files(self, wanted: dict) -> tuple[str, ...]:
        """Adapters by file, where the queue knows them by name. Raises `ConfigError` for one that is gone."""
        from fewer.core.errors import ConfigError

        files = []
        for text in wanted.get("lora", ()):
            name, separator, strength = text.partition(":")
            if name not in self._loras:
                raise ConfigError(f"lora {name!r} is no longer served")
            files.append(self._loras[name] + separator + strength)
        return tuple(files)

    def run_together(self, requests: Sequence[dict]) -> Iterator[tuple[int, EngineEvent | None]]:
        """Draws the pictures of all requests, alike ones side by side."""
        from fewer.generate.pipeline import Denoised

        pipe, wanted = self.admit(requests)
        if wanted[0].model in self._classes:
            from fewer.serve.class_drawing import draw_classes

            yield from draw_classes(pipe, wanted)
            return
        singles, homes = [], []
        for which, one in enumerate(wanted):
            for image, single in enumerate(one.singles()):
                singles.append(single)
                homes.append((which, image))
        together = min(self.together, len(singles))
        self.require_room(pipe, singles[0], together)
        left = [sum(which == home for home, _ in homes) for which in range(len(requests))]
        for event in pipe.draw(singles, together=together):
            which, image = homes[event.index]
            if isinstance(event, Denoised):
                step, total = event.step.index + 1, event.step.total
                partial = int(requests[which].get("partial_images") or 0)
                preview = None
                if partial and step < total and _shows(step, total, partial):
                    preview = _preview(pipe, event.step.clean)
                yield which, StepEvent(image, step, total, preview)
                continue
            picture = event.picture
            yield which, ImageEvent(image, picture.png(), picture.seed, *picture.image.size, picture.read)
            left[which] -= 1
            if left[which] == 0:
                yield which, None

    def require_room(self, pipe: "TextToImage", single: "GenerateRequest", together: int) -> None:
        """Raises `CapacityError` where a step would not fit; a group of devices asks in its own way."""
        from fewer.generate.memory import require_room

        require_room(pipe, single, together)


def _preview(pipe: Any, clean: Any) -> bytes:
    from PIL import Image

    dtype = next(pipe.autoencoder.parameters()).dtype
    pixels = pipe.autoencoder.decode(clean.to(dtype)).float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    return stream.getvalue()


def _shows(step: int, total: int, partial: int) -> bool:
    """Whether one of `partial` evenly spaced previews falls on this step."""
    marks = {max(1, round(total * (index + 1) / (partial + 1))) for index in range(partial)}
    return step in marks
