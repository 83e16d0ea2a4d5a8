"""`fewer train few-steps`: a model and prompts, a small file with which two steps are enough."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName, pick_device
from fewer.core.errors import ConfigError, DataError
from fewer.core.files import read_bytes
from fewer.core.progress import Progress
from fewer.core.ranks import rank, ranks_of_launcher
from fewer.generate.training.command import EmojiName

_MAX_PROMPT_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFewStepsRequest:
    """What `fewer train few-steps` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output: Path
    """Folder for checkpoints and, in `adapters/few-steps`, the edition: give the model's own folder, or copy
    `adapters` there."""
    model: str = "default"
    """The model that is to draw in few steps: default, or a folder in diffusers' layout."""
    prompts: Path | None = None
    """Text file, one prompt a line: what the model is asked for. The more, the better; no pictures needed."""
    preset: EmojiName | None = None
    """Instead of --prompts: captions of composed emoji, as in `fewer train sana --preset`."""
    count: Annotated[int, Field(ge=1, le=10_000_000)] = 32768
    """With --preset: how many captions."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Of the teacher, built into the edition; the model's own by default."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Size of the adapter."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2500
    """Optimizer steps."""
    seconds: Annotated[float, Field(gt=0, le=10_000_000)] | None = None
    """End after so much training time, or after --steps if that is sooner."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """Pictures a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Of the optimizer."""
    teacher_steps: Annotated[int, Field(ge=2, le=1000)] = 12
    """Steps by which the teacher reaches a target from pure noise."""
    parts: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Batches of targets made at once."""
    reuse: Annotated[int, Field(ge=1, le=1000)] = 8
    """How often each target is learned from."""
    compiled: bool = True
    """On a GPU: each block compiled (half a minute at the start, then about twice the speed)."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides prompts, noise and order."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


def train_few_steps_command(request: TrainFewStepsRequest, progress: Progress) -> dict[str, object]:
    """Trains a few-step edition and writes its folder: `output`, `loss`, `steps`, `bytes`, `seconds`."""
    if (request.preset is None) == (request.prompts is None):
        raise ConfigError("give either --prompts FILE (one prompt a line) or --preset emoji, and not both")
    with ranks_of_launcher(pick_device(request.device).type):
        return _train(request, progress)


def _train(request: TrainFewStepsRequest, progress: Progress) -> dict[str, object]:
    from fewer.generate.conditional.for_sana import ConditionedSana
    from fewer.generate.lora import in_dtype, write_lora
    from fewer.generate.model_folder import open_parts
    from fewer.generate.sampling.few_steps import FOLDER, WEIGHTS, FewSteps, few_step_levels, write_few_steps
    from fewer.generate.training.encoded import encode_captions
    from fewer.generate.training.few_steps import FewStepsTraining, Prompts, distill_few_steps

    device = pick_device(request.device)
    parts = open_parts(request.model, dtype=torch.float32, device=device)
    if isinstance(parts.transformer, ConditionedSana):
        raise ConfigError(
            "this model has generated weights (adaln+can); a few-step edition needs one without"
        )
    texts = list(dict.fromkeys(["", *prompts_of(request)]))
    table = encode_captions(
        parts.encoder, texts, progress, batch=1024 if device.type == "cuda" else 64, device=device
    )
    guidance = parts.settings.guidance if request.guidance is None else request.guidance
    training = FewStepsTraining(
        guidance=guidance,
        shift=parts.settings.shift,
        **{name: getattr(request, name) for name in _SAME},
    )
    adapter, result = distill_few_steps(
        parts.transformer,
        Prompts(table.tokens, table.mask),
        training,
        device=device,
        checkpoints=request.output / "few-steps-run",
        resume=request.resume,
        progress=progress,
    )
    folder = request.output / FOLDER
    if rank() == 0:
        levels = few_step_levels(parts.settings.shift)
        write_few_steps(request.output, FewSteps(levels=levels, guidance=guidance))
        write_lora(folder / WEIGHTS, in_dtype(adapter, torch.bfloat16))
    last = result.losses[-50:]
    return {
        "output": str(folder),
        "steps": result.step,
        "first_loss": result.losses[0] if result.losses else None,
        "loss": sum(last) / len(last) if last else None,
        "prompts": len(texts) - 1,
        "bytes": (folder / WEIGHTS).stat().st_size if rank() == 0 else 0,
        "seconds": result.seconds,
    }


_SAME = (
    "rank", "steps", "seconds", "batch", "learning_rate", "teacher_steps", "parts", "reuse", "compiled",
    "seed", "dtype",
)  # fmt: skip
"""Options that mean the same in `FewStepsTraining`."""


def prompts_of(request: TrainFewStepsRequest) -> list[str]:
    """The prompts of a file or a preset. Raises `DataError` for a file without any."""
    if request.prompts is None:
        return preset_prompts(request.preset or "emoji", request.count, request.seed)
    lines = read_bytes(request.prompts, _MAX_PROMPT_BYTES).decode("utf-8", "replace").splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{request.prompts.name!r} holds no prompt; write one a line")
    return found


def preset_prompts(name: str, count: int, seed: int) -> list[str]:
    """Captions of random scenes of a preset's training split. Raises `ConfigError` if its words are open."""
    from fewer.generate.scenes.captions import draw_captions
    from fewer.generate.scenes.presets import preset
    from fewer.generate.scenes.table import draw_table
    from fewer.generate.scenes.vocabulary import Vocabulary

    chosen = preset(name)
    if chosen.concepts is None:
        raise ConfigError(f"preset {name!r} takes its words from packages; give --prompts FILE instead")
    vocabulary = Vocabulary(tuple(chosen.concepts.values()), chosen.styles)
    random = np.random.default_rng([seed, 19])
    scenes = draw_table(vocabulary, count, "train", seed + 1).scenes()
    return [draw_captions(scene, 1, random)[0].text for scene in scenes]
