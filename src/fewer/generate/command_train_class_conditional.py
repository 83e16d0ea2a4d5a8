"""`fewer train class-conditional`: a network that draws the classes of one's own pictures."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from fewer.core.train import FitResult
    from fewer.generate.conditional.pictures import LabelledPictures

Count = Annotated[int, Field(ge=1, le=100_000_000)]
Preset = Literal["cat-nano", "cat-tiny", "cat-small", "cat-base", "dit-s-2", "dit-b-2", "u-vit-s-2"]


_DECISIVE = ("preset", "conditioning", "targets", "rank", "patch", "width", "depth")
"""Options that say which network is trained; a resumed run shares them with the one that was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainClassConditionalRequest:
    """What `fewer train class-conditional` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Folder `split/class/*.png` or `class/*.png`, or a MedMNIST-style .npz."""
    output: Path
    """Folder for the model and its checkpoints."""
    autoencoder: Path | None = None
    """Folder of a DC-AE: train on its latents instead of pixels; a copy goes into --output."""
    preset: Preset = "cat-nano"
    """Size and architecture."""
    conditioning: Literal["tokens", "adaln", "can", "aks", "adaln+can"] = "can"
    """How the network learns class and time: as tokens, by modulating features, by generated weights (with
    tokens, or with adaln), or by a mixture of kernels."""
    targets: tuple[Literal["patch_embed", "dwconv", "attn_out", "head", "qkv"], ...] = (
        "patch_embed", "dwconv", "attn_out",
    )  # fmt: skip
    """Layers whose weights follow the condition (with can or aks)."""
    rank: Annotated[int, Field(ge=0, le=4096)] = 64
    """Bottleneck of the weight generators; 0 leaves it out."""
    size: Annotated[int, Field(ge=4, le=1024)] = 32
    """Side of the pictures; larger ones are shrunk."""
    patch: Annotated[int, Field(ge=1, le=64)] = 2
    """Side of a token in pixels, or in latents."""
    width: Annotated[int, Field(ge=0, le=8192)] = 0
    """In place of the preset's; 0 keeps that."""
    depth: Annotated[int, Field(ge=0, le=512)] = 0
    """In place of the preset's; 0 keeps that."""
    grey: bool = False
    """One channel instead of three."""
    steps: Count = 10_000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """Pictures a step, over all processes."""
    rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-3
    """Learning rate; 3e-4 for the larger presets."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of pictures trained without their class, which guidance needs."""
    augmented: bool = True
    """With an autoencoder of structured latents: train on drawn numbers of leading channels too."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of weights; 0 keeps none."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Same seed, same weights (on one machine's CPU)."""
    device: DeviceName = "auto"
    """Where to train."""
    dtype: DtypeName = "fp32"
    """`bf16` runs the network under autocast; fp16 is not offered."""


def train_class_conditional_command(
    request: TrainClassConditionalRequest, progress: Progress
) -> dict[str, object]:
    """Trains, saves, and reports the flow error on held-out pictures and what the network costs."""
    import torch

    from fewer.core.checkpoint import refuse_earlier_run
    from fewer.core.device import pick_device
    from fewer.core.ranks import ranks_of_launcher
    from fewer.generate.conditional.accounting import profile
    from fewer.generate.conditional.training import validation_error

    if request.dtype == "fp16":
        raise ConfigError("dtype fp16 is not offered for training; allowed: fp32, bf16")
    refuse_earlier_run(request.output / "checkpoints", request.resume)
    began = time.monotonic()
    with ranks_of_launcher(pick_device(request.device).type):
        model, train, held_out, result = _train(request, progress)
    first = next(model.parameters()).device
    inputs = (train.images[:1].to(first), torch.tensor([500.0], device=first), train.labels[:1].to(first))
    return {
        "output": str(request.output),
        "classes": len(train.class_names),
        "pictures": len(train.labels),
        "held_out_pictures": len(held_out.labels),
        "steps": result.step,
        "loss": result.losses[-1] if result.losses else None,
        "held_out_flow_error": validation_error(model, held_out),
        **asdict(profile(model, *inputs)),
        "seconds": round(time.monotonic() - began, 3),
    }


def _train(
    request: TrainClassConditionalRequest, progress: Progress
) -> "tuple[nn.Module, LabelledPictures, LabelledPictures, FitResult]":
    """Reads, encodes, trains and saves; the pictures come back as what was trained on."""
    import torch

    from fewer.core.device import pick_device
    from fewer.core.ranks import rank
    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.conditional.adapter import base_digest
    from fewer.generate.conditional.formats import save_folder
    from fewer.generate.conditional.latents import encode_pictures
    from fewer.generate.conditional.pictures import read_labelled
    from fewer.generate.conditional.training import (
        TrainingOptions,
        train_class_conditional,
        use_average,
    )

    device = pick_device(request.device)
    train, held_out = read_labelled(request.data, request.size, request.grey)
    identity = {name: str(getattr(request, name)) for name in _DECISIVE}
    identity["pictures"] = train.fingerprint()  # before an autoencoder, whose rounding differs by device
    identity["autoencoder"] = "none"
    autoencoder = None
    if request.autoencoder is not None:
        autoencoder = DCAutoencoder.load(request.autoencoder, device=device).float()
        if request.grey != (autoencoder.config.in_channels == 1):
            raise ConfigError(
                f"the autoencoder takes {autoencoder.config.in_channels} channels; check --grey"
            )
        identity["autoencoder"] = base_digest(autoencoder)
        train, held_out = (encode_pictures(autoencoder, part) for part in (train, held_out))
    model = _start(request, train)
    options = TrainingOptions(
        steps=request.steps, batch=request.batch, rate=request.rate, label_dropout=request.label_dropout,
        ema_decay=request.ema or None, device=str(device), seed=request.seed, resume=request.resume,
        dtype=torch.bfloat16 if request.dtype == "bf16" else torch.float32,
        checkpoint_folder=request.output / "checkpoints", checkpoint_every=request.checkpoint_every,
        identity=identity,
        prefixes=autoencoder.config.latent_prefixes if autoencoder and request.augmented else (),
    )  # fmt: skip
    result = train_class_conditional(model, train, options, progress)
    # A moving average of fewer steps than three of its time constants still remembers the start.
    if request.ema and request.steps * (1 - request.ema) >= 3:
        use_average(model, result)
    model.eval()
    if rank() == 0:
        save_folder(model, request.output, train.class_names)
        if autoencoder is not None:
            autoencoder.save(request.output / "autoencoder")
    return model, train, held_out, result


def _start(request: TrainClassConditionalRequest, train: "LabelledPictures") -> "nn.Module":
    from fewer.core.device import pick_device
    from fewer.generate.conditional.build import build
    from fewer.generate.conditional.params import named, with_conditioning
    from fewer.generate.conditional.targets import ConditionPlan

    preset = named(request.preset)
    channels, side = train.images.shape[1], train.images.shape[-1]
    width = request.width or preset.width
    head_dim = preset.width // preset.heads
    params = replace(
        with_conditioning(preset, request.conditioning),
        channels=channels, out_channels=channels, size=side, patch=request.patch,
        width=width, heads=max(1, width // head_dim), depth=request.depth or preset.depth,
        classes=len(train.class_names), depthwise=True,
    )  # fmt: skip
    plan = None
    if request.conditioning not in ("tokens", "adaln"):
        kind = "aks" if request.conditioning == "aks" else "can"
        # Base kernels that start equal would be slow to part.
        plan = ConditionPlan(
            kind=kind,
            targets=request.targets,
            rank=request.rank or None,
            zero_init=kind == "can",
            # Groups of convolutions are slow on a GPU, and the kernel's reference is no faster on a CPU.
            form="fused" if pick_device(request.device).type == "cuda" else "split",
        )
    return build(params.check(), plan, request.seed)
