"""Pictures of a class, as jobs: the prompt is the name of one, or its number."""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fewer.serve.engine import EngineEvent, ImageEvent, StepEvent

if TYPE_CHECKING:
    from fewer.generate.class_pictures import ClassModel
    from fewer.generate.request import GenerateRequest

_TOGETHER = 16
"""As `fewer generate --class-name` draws them, so that the pictures are the same."""
_GUIDANCE = 1.5


def draw_classes(
    model: "ClassModel", wanted: Sequence["GenerateRequest"]
) -> Iterator[tuple[int, EngineEvent | None]]:
    """Events as of `LocalEngine.run_together`. Raises `ConfigError` for an unknown class, before drawing."""
    from fewer.generate.class_pictures import label_of

    labels = [label_of(one.prompt[0], model.names) for one in wanted]
    for which, (label, one) in enumerate(zip(labels, wanted, strict=True)):
        for first in range(0, one.count, _TOGETHER):
            seeds = [one.seed + number for number in range(first, min(first + _TOGETHER, one.count))]
            for event in _draw(model, label, one, seeds, first):
                yield which, event
        yield which, None


def _draw(
    model: "ClassModel", label: int, one: "GenerateRequest", seeds: list[int], first: int
) -> Iterator[EngineEvent]:
    from fewer.generate.conditional.draw import draw_class, to_pictures

    guidance = _GUIDANCE if one.guidance is None else one.guidance
    steps = one.steps or 20
    for step in draw_class(model.network, label, seeds, steps, guidance, one.shift or 1.0):
        yield StepEvent(first, step.index + 1, steps)
    pixels = step.latents if model.autoencoder is None else model.autoencoder.decode(step.latents)
    for number, (picture, seed) in enumerate(zip(to_pictures(pixels), seeds, strict=True)):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        yield ImageEvent(first + number, stream.getvalue(), seed, *picture.size)
