"""`fewer train large`: a built-in model, a small folder with which it draws twice the side, in shapes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName, pick_device
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLargeRequest:
    """What `fewer train large` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output: Path
    """Folder for checkpoints and, in `adapters/large`, the edition: give the model's own folder, or copy
    `adapters` there."""
    model: str = "default"
    """The model of `fewer train sana --preset emoji` that is to draw larger: default, or a folder."""
    part: Literal["all", "stage", "adapter"] = "all"
    """The autoencoder's new stage, the adapter for shapes that are not square, or both."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 24
    """Of the adapter."""
    minutes: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """For each part; or until --steps if that is sooner."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 4000
    """Of each part."""
    batch: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Pictures a step."""
    scenes: Annotated[int, Field(ge=8, le=10_000_000)] | None = None
    """Scenes to learn from."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Of the optimizer."""
    packages: Path | None = None
    """The node_modules folder that holds the emoji packages."""
    download: bool = False
    """Fetch those packages with npm."""
    compiled: bool = True
    """On a GPU: each block compiled."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


def train_large_command(request: TrainLargeRequest, progress: Progress) -> dict[str, object]:
    """Trains the large edition and writes its folder: `output`, steps, losses and seconds of each part."""
    from fewer.generate.conditional.for_sana import ConditionedSana
    from fewer.generate.model_folder import open_parts
    from fewer.generate.scenes.presets import preset
    from fewer.generate.scenes.recipe_large import build_large
    from fewer.generate.scenes.sprites import fetch_packages

    device = pick_device(request.device)
    parts = open_parts(request.model, dtype=torch.float32, device=device)
    if isinstance(parts.transformer, ConditionedSana):
        raise ConfigError("this model has generated weights (adaln+can); a large edition needs one without")
    packages = request.packages
    if packages is None and request.download:
        packages = fetch_packages(request.output / "packages")
    chosen = preset("emoji-512")
    names = ("steps", "minutes", "learning_rate", "compiled", "batch")
    common = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    chosen = replace(
        chosen,
        scenes=request.scenes or chosen.scenes,
        autoencoder_training=replace(chosen.autoencoder_training, **common),
        training=replace(chosen.training, dtype=request.dtype, shift=parts.settings.shift, **common),
    )
    return build_large(
        chosen,
        parts,
        request.output,
        part=request.part,
        rank=request.rank,
        packages=packages,
        resume=request.resume,
        device=device,
        seed=request.seed,
        progress=progress,
    )
