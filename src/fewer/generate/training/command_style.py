"""`fewer train style`: some fifty pictures in, a style for `fewer generate --style` out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName, pick_device
from fewer.core.errors import ConfigError
from fewer.core.files import safe_name
from fewer.core.progress import Progress
from fewer.core.ranks import ranks_of_launcher
from fewer.core.train import rank
from fewer.generate.training.captions import WeightMode


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStyleRequest:
    """What `fewer train style` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Folder of pictures in the style, with captions that do not name it (a.png and a.txt, or
    metadata.jsonl)."""
    output: Path
    """Folder for checkpoints and the finished NAME.safetensors."""
    name: Annotated[str, Field(min_length=1, max_length=60)] = "style"
    """What the style and its file are called."""
    model: str = "default"
    """The model to adapt: default, or a folder in diffusers' layout."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 1
    """Bottleneck of the weight generators; one style needs no more than 1."""
    size: Annotated[int, Field(ge=32, le=8192)] | None = None
    """Side of the pictures in pixels; the model's own by default."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 240
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 10
    """Pictures a step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Of the optimizer."""
    optimizer: Literal["adamw", "came"] = "adamw"
    """CAME keeps half of the state of AdamW."""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """Shift of the noise levels; the model's own by default."""
    caption_mode: WeightMode = "power"
    """How scores of several captions become probabilities."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


def train_style_command(request: TrainStyleRequest, progress: Progress) -> dict[str, object]:
    """Trains a style and writes one file: `output`, `loss`, `steps`, `seconds`."""
    from fewer.generate.conditional.adapter import save_adapter
    from fewer.generate.conditional.for_sana import ConditionedSana
    from fewer.generate.training.own_pictures import prepare, report
    from fewer.generate.training.style import train_style
    from fewer.generate.training.transformer import TransformerTraining

    with ranks_of_launcher(pick_device(request.device).type):
        prepared = prepare(request, request.data, request.size, progress)
        transformer = prepared.parts.transformer
        if isinstance(transformer, ConditionedSana):
            raise ConfigError("this model has generated weights (adaln+can); a style needs one without")
        training = TransformerTraining(
            steps=request.steps, batch=request.batch, learning_rate=request.learning_rate,
            optimizer=request.optimizer, shift=request.shift or prepared.parts.settings.shift,
            warmup=min(10, request.steps // 10), ema_decay=None, dtype=request.dtype, seed=request.seed,
        )  # fmt: skip
        model, result = train_style(
            transformer, request.name, prepared.data, training, rank=request.rank, device=prepared.device,
            checkpoints=request.output / "run", resume=request.resume, progress=progress,
        )  # fmt: skip
        path = request.output / f"{safe_name(request.name, 'style')}.safetensors"
        if rank() == 0:
            save_adapter(model.cpu(), path)
        return report(path, result, prepared.data)
