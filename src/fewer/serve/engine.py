"""What a worker runs: a request in, events out. The local engine draws with `TextToImage`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


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


@runtime_checkable
class Engine(Protocol):
    """Draws what a job's request says. Stopping the iteration cancels before the next step."""

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]: ...


def local_engine(options: dict) -> "LocalEngine":
    """The engine of `fewer serve`: models by name, loaded when first asked for, the last one kept."""
    return LocalEngine(options)


class LocalEngine:
    """Keeps one pipeline in memory and swaps it when another model is asked for."""

    def __init__(self, options: dict) -> None:
        self._options = options
        self._pipeline: tuple[str, object] | None = None

    def run(self, request: dict) -> Iterator[StepEvent | ImageEvent]:
        from fewer.core.config import validate
        from fewer.generate.pipeline import Denoised, Finished, TextToImage
        from fewer.generate.request import GenerateRequest

        partial = int(request.get("partial_images", 0))
        wanted = validate(GenerateRequest, request["generate"])
        pipe = self._load(wanted.model)
        assert isinstance(pipe, TextToImage)
        for event in pipe.accelerate().iterate(wanted):
            if isinstance(event, Denoised):
                step, total = event.step.index + 1, event.step.total
                preview = None
                if partial and step < total and _shows(step, total, partial):
                    preview = self._preview(pipe, event)
                yield StepEvent(event.index, step, total, preview)
            elif isinstance(event, Finished):
                picture = event.picture
                width, height = picture.image.size
                yield ImageEvent(event.index, picture.png(), picture.seed, width, height)

    def _load(self, model: str) -> object:
        from fewer.generate.pipeline import TextToImage

        if self._pipeline is None or self._pipeline[0] != model:
            self._pipeline = None  # frees the old one before the new one is loaded
            paths: dict = self._options.get("models", {})
            pipe = TextToImage.load(
                paths.get(model, model), device=self._options.get("device", "auto"),
                dtype=self._options.get("dtype", "auto"),
            )  # fmt: skip
            self._pipeline = (model, pipe)
        return self._pipeline[1]

    def _preview(self, pipe: object, event: object) -> bytes:
        import io

        from PIL import Image

        autoencoder, clean = pipe.autoencoder, event.step.clean  # pyright: ignore
        dtype = next(autoencoder.parameters()).dtype
        pixels = autoencoder.decode(clean.to(dtype)).float()
        levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).cpu().numpy()
        stream = io.BytesIO()
        Image.fromarray(levels).save(stream, "PNG")
        return stream.getvalue()


def _shows(step: int, total: int, partial: int) -> bool:
    """Whether one of `partial` evenly spaced previews falls on this step."""
    marks = {max(1, round(total * (index + 1) / (partial + 1))) for index in range(partial)}
    return step in marks
