"""What `calibrate` is for a model from disk: functions that run it on prompts, lines or classes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from fewer.core.errors import ConfigError
from fewer.core.progress import Progress, SilentProgress, track
from fewer.quantize.models import OpenModel
from fewer.quantize.prompts import STEPS

TOKENS = 512


def calibration(
    opened: OpenModel, lines: Sequence[str], pictures: int, seed: int, progress: Progress | None = None
) -> Callable[[], object] | None:
    """A function that runs the model; None where there is nothing to run it on.

    A pipeline draws each prompt in a few steps; a language model reads each line; a class-conditional model
    draws `pictures` of its classes in turn. Raises `ConfigError` where prompts have nothing to run through.
    """
    progress = progress or SilentProgress()
    if opened.class_names and pictures:
        return class_calibration(opened.module, len(opened.class_names), pictures, seed, progress)
    if not lines:
        return None
    if opened.pipeline is not None:
        return _drawing(opened.pipeline, lines, seed, progress)
    if opened.folder is not None and (opened.folder / "tokenizer_config.json").exists():
        return language_calibration(opened.module, opened.folder, lines, progress)
    raise ConfigError(
        "prompts need a pipeline's folder (text encoder and transformer) or a language model "
        "with its tokenizer; "
        "calibrate other models from Python: fewer.quantize.quantize(module, calibrate=...)"
    )


def _drawing(pipeline: object, lines: Sequence[str], seed: int, progress: Progress) -> Callable[[], object]:
    """Draws each prompt in a few steps; a pipeline of ours leaves the latents undecoded."""
    from fewer.generate.pipeline import Denoised, TextToImage
    from fewer.generate.request import GenerateRequest

    def run() -> None:
        for index, line in enumerate(track(lines, progress, "calibrate")):
            if not isinstance(pipeline, TextToImage):
                pipeline(line, seed=seed + index, steps=STEPS)  # pyright: ignore
                continue
            for event in pipeline.iterate(GenerateRequest(prompt=(line,), seed=seed + index, steps=STEPS)):
                if isinstance(event, Denoised) and event.step.index + 1 == event.step.total:
                    break

    return run


def class_calibration(
    module: nn.Module, classes: int, limit: int, seed: int, progress: Progress | None = None
) -> Callable[[], object]:
    """Draws `limit` pictures in a few steps each, the classes in turn, eight of a class at once."""
    from fewer.generate.conditional.draw import draw_class

    def run() -> None:
        starts = range(0, limit, 8)
        for index, start in enumerate(track(starts, progress or SilentProgress(), "calibrate")):
            seeds = [seed + start + offset for offset in range(min(8, limit - start))]
            for _ in draw_class(module, index % classes, seeds, STEPS):
                pass

    return run


def language_calibration(
    module: nn.Module, folder: Path, lines: Sequence[str], progress: Progress | None = None
) -> Callable[[], object]:
    """Reads each line with the language model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    device = next(module.parameters()).device

    def run() -> None:
        for line in track(lines, progress or SilentProgress(), "calibrate"):
            ids = tokenizer(line, return_tensors="pt", truncation=True, max_length=TOKENS).input_ids
            module(input_ids=ids.to(device))

    return run
