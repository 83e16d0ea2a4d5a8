"""`fewer train sana` and `fewer train lora`: a request, a folder of pictures, a model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName, pick_device
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.core.ranks import ranks_of_launcher
from fewer.generate.training.captions import WeightMode
from fewer.generate.training.transformer import TransformerTraining

EmojiName = Literal["emoji", "emoji-cpu", "emoji-test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSanaRequest:
    """What `fewer train sana` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output: Path
    """Folder for checkpoints and, in `model`, the finished model."""
    data: Path | None = None
    """Folder of pictures with captions (a.png and a.txt, or metadata.jsonl)."""
    preset: EmojiName | None = None
    """Instead of --data: train the built-in model on composed emoji, in its GPU or its CPU size."""
    start: str | None = None
    """With --preset: instead of from nothing, go on from this model: default, or a folder that the same
    preset made. Its autoencoder stays, and all --minutes are the transformer's."""
    model: str = "default"
    """With --data: the model to go on from: default, or a folder in diffusers' layout."""
    fresh: Annotated[int, Field(ge=0, le=128)] = 0
    """Start a new transformer of this many blocks instead, with the model's autoencoder and text encoder."""
    width: Annotated[int, Field(ge=32, le=8192, multiple_of=32)] = 192
    """Width of a new transformer."""
    conditioning: Literal["adaln", "adaln+can"] = "adaln"
    """With `adaln+can` weights also follow time and text (CAN); goes with --data alone."""
    can_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Bottleneck of the generators of `adaln+can`."""
    size: Annotated[int, Field(ge=32, le=8192)] | None = None
    """Side of the pictures in pixels; the model's own by default. Other shapes keep its area."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps; the preset's own if absent, without one 2000."""
    minutes: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """End after so much time, or after --steps if that is sooner; a preset shares it among its stages."""
    batch: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Pictures a step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the optimizer; the preset's own if absent, without one 5e-4."""
    optimizer: Literal["adamw", "came"] = "adamw"
    """CAME keeps half of the state of AdamW."""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """Shift of the noise levels; the model's own by default."""
    caption_mode: WeightMode = "power"
    """How scores of several captions become probabilities."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more work."""
    packages: Path | None = None
    """With --preset: the node_modules folder that holds the emoji packages."""
    download: bool = False
    """With --preset: fetch those packages with npm."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLoraRequest:
    """What `fewer train lora` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Folder of pictures with captions (a.png and a.txt, or metadata.jsonl)."""
    output: Path
    """Folder for checkpoints and the finished `pytorch_lora_weights.safetensors`."""
    model: str = "default"
    """The model to adapt: default, or a folder in diffusers' layout."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Size of the adapter."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "0", "conv_inverted", "conv_point")
    """Last names of the layers that are adapted; `0` is an attention's output, `to_out.0`. Queries, keys and
    values alone learn where things go, but hardly a new thing."""
    size: Annotated[int, Field(ge=32, le=8192)] | None = None
    """Side of the pictures in pixels; the model's own by default."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 8
    """Pictures a step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Of the optimizer."""
    optimizer: Literal["adamw", "came"] = "adamw"
    """CAME keeps half of the state of AdamW."""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    """Shift of the noise levels; the model's own by default."""
    caption_mode: WeightMode = "power"
    """How scores of several captions become probabilities."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more work."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Makes a run repeatable."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


def train_sana_command(request: TrainSanaRequest, progress: Progress) -> dict[str, object]:
    """Trains a transformer and writes a model folder: `output`, `loss`, `steps`, `seconds`."""
    if (request.preset is None) == (request.data is None):
        raise ConfigError("give either --data DIR (your own pictures) or --preset emoji, and not both")
    if request.preset and request.conditioning != "adaln":
        raise ConfigError(f"--conditioning {request.conditioning} goes with --data, not with --preset")
    if request.start is not None and request.data is not None:
        raise ConfigError("--start goes with --preset; with --data the model to go on from is --model")
    with ranks_of_launcher(pick_device(request.device).type):
        return _train_emoji(request, progress) if request.preset else _train_on_folder(request, progress)


def _train_emoji(request: TrainSanaRequest, progress: Progress) -> dict[str, object]:
    import torch

    from fewer.generate.model_folder import open_parts
    from fewer.generate.scenes.presets import preset, within
    from fewer.generate.scenes.recipe import build_model
    from fewer.generate.scenes.sprites import fetch_packages
    from fewer.generate.text.prompt import PromptEncoder
    from fewer.generate.text.smollm2 import smollm2_folder

    chosen = preset(request.preset or "emoji")
    given = _given(request, ("steps", "batch", "learning_rate", "shift"))
    if request.dtype != "auto":
        given["dtype"] = request.dtype
    training = dataclasses.replace(
        chosen.training, **given, optimizer=request.optimizer, recompute=request.recompute, seed=request.seed
    )
    packages = request.packages
    if packages is None and request.download:
        packages = fetch_packages(request.output / "packages")
    device = pick_device(request.device)
    start = None
    if request.start is not None:
        start = open_parts(request.start, dtype=torch.float32, device=device)
    encoder = PromptEncoder.load(
        smollm2_folder(),
        length=chosen.text_length,
        instruction=None,
        layers=chosen.text_layers,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )
    return build_model(
        within(dataclasses.replace(chosen, training=training), request.minutes, 0.0 if start else 0.3),
        request.output,
        encoder,
        start=start,
        packages=packages,
        resume=request.resume,
        device=device,
        seed=request.seed,
        progress=progress,
    )


def _train_on_folder(request: TrainSanaRequest, progress: Progress) -> dict[str, object]:
    from fewer.generate.training.own_pictures import train_sana_on_folder

    return train_sana_on_folder(request, progress)


def train_lora_command(request: TrainLoraRequest, progress: Progress) -> dict[str, object]:
    """Trains an adapter and writes one PEFT file: `output`, `loss`, `steps`, `seconds`."""
    from fewer.generate.training.own_pictures import train_lora_on_folder

    with ranks_of_launcher(pick_device(request.device).type):
        return train_lora_on_folder(request, progress)


def training_of(request: TrainSanaRequest | TrainLoraRequest, shift: float) -> TransformerTraining:
    """How to train on a folder; `shift` is the model's own."""
    names = ("steps", "batch", "learning_rate", "minutes")
    fields = _given(request, tuple(name for name in names if hasattr(request, name)))
    return TransformerTraining(
        **fields,  # type: ignore[arg-type]
        optimizer=request.optimizer,
        shift=request.shift or shift,
        dtype=request.dtype,
        recompute=request.recompute,
        seed=request.seed,
        # An adapter has few steps and small weights: averaging them would only delay it.
        ema_decay=None if isinstance(request, TrainLoraRequest) else 0.999,
    )


def _given(request: object, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(request, name) for name in names if getattr(request, name) is not None}
