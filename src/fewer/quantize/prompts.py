"""Which prompts a model is calibrated on: those of a user's file, or some of its own.

A text-to-image model of ours needs no file: the built-in one and its like read captions of the scenes they
were trained on, every other one the general prompts that lie beside this file. On a CPU their number follows
from the work that drawing them is, so that nobody waits for hours; always the same number for the same model.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewer.core.errors import ConfigError, DataError
from fewer.core.files import read_bytes
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.models import OpenModel

STEPS = 8
"""Evaluations in which a calibration prompt is drawn."""
GENERAL = Path(__file__).with_name("general_prompts.txt")
MOST, FEWEST = 64, 2
CPU_WORK = 4e12
"""Multiplications and additions of drawing own prompts on a CPU: about 40 s of two cores."""
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model is run on, and where it comes from; no lines where it draws classes, or nothing."""

    lines: tuple[str, ...] = ()
    source: str = "nothing"
    own_scenes: bool = False
    """Captions of the scenes that the model was trained on, of which there are as many as one likes."""


def choose_prompts(
    opened: OpenModel, file: Path | None, most: int | None, device: torch.device, *, calibrate: bool = True
) -> Prompts:
    """The lines of `file`, or prompts of the model's own; at most `most` of them if that is given.

    Raises `DataError` for a file without prompts, `ConfigError` for one beside `calibrate=False`.
    """
    if file is not None and not calibrate:
        raise ConfigError(f"--calibration {file.name!r} contradicts --no-calibrate; give one of the two")
    if file is not None:
        return Prompts(read_prompts(file, most or MOST), file.name)
    if not calibrate:
        return Prompts()
    if opened.class_names:
        return Prompts(source=f"its {len(opened.class_names)} classes")
    settings = getattr(opened.pipeline, "settings", None)
    if settings is None or not isinstance(opened.module, SanaTransformer):
        return Prompts()
    count = most or (MOST if device.type != "cpu" else affordable(opened.module))
    if settings.chi:
        return Prompts(read_prompts(GENERAL, count), "general prompts")
    return Prompts(training_captions(count), "captions of its training scenes", own_scenes=True)


def read_prompts(file: Path, most: int) -> tuple[str, ...]:
    """The first lines of a text file that are not empty. Raises `DataError` if there are none."""
    lines = [line.strip() for line in read_bytes(file, MOST_BYTES).decode("utf-8", "replace").splitlines()]
    if not any(lines):
        raise DataError(f"{file.name!r} has no prompt; write one a line")
    return tuple(line for line in lines if line)[:most]


def affordable(transformer: SanaTransformer) -> int:
    """How many guided drawings of `STEPS` evaluations are within `CPU_WORK`."""
    params = transformer.params
    tokens = (params.sample_size // params.patch_size) ** 2
    weights = sum(layer.weight.numel() for layer in transformer.modules() if isinstance(layer, _MULTIPLIES))
    return int(min(MOST, max(FEWEST, CPU_WORK // (2 * 2 * weights * tokens * STEPS))))


_MULTIPLIES = (nn.Linear, nn.Conv2d)


def training_captions(count: int) -> tuple[str, ...]:
    """Captions of training scenes of the built-in vocabulary."""
    from fewer.generate.scenes.captions import full_caption
    from fewer.generate.scenes.pool import Vocabulary, draw_scenes
    from fewer.generate.scenes.presets import preset

    chosen = preset("emoji")
    vocabulary = Vocabulary(tuple((chosen.concepts or {}).values()), chosen.styles)
    return tuple(full_caption(scene) for scene in draw_scenes(vocabulary, count, "train", seed=100))
