"""`fewer train autoencoder`: a DC-AE on one's own pictures, in three phases, stopped and resumed at will."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress

if TYPE_CHECKING:
    from fewer.generate.autoencoder.dc_ae import DCAutoencoder
    from fewer.generate.autoencoder.phases import PhasePlan

Count = Annotated[int, Field(ge=0, le=100_000_000)]
Side = Annotated[int, Field(ge=0, le=8192)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainAutoencoderRequest:
    """What `fewer train autoencoder` is asked. A phase of 0 steps is left out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: Path
    """Folder of PNG, JPEG or WebP pictures; `train/` and `test/` inside are respected."""
    output: Path
    """Folder for the model (diffusers' layout) and its checkpoints."""
    preset: Literal["f16", "f32", "f64", "f128"] = "f32"
    """Size of a new model: pixels per latent, each way."""
    model: Path | None = None
    """Fine-tune the autoencoder in this folder instead of starting a new one."""
    grey: bool = False
    """One channel instead of three."""
    structured: bool = False
    """Structured latents (DC-AE 1.5): the first channels hold structure, any listed prefix decodes."""
    steps: Count = 20_000
    """Steps of phase 1: everything, small crops."""
    adapt_steps: Count = 2_000
    """Steps of phase 2: the layers around the latents, large crops."""
    refine_steps: Count = 4_000
    """Steps of phase 3: the head of the decoder against a critic, small crops."""
    crop: Side = 0
    """Crop side of phases 1 and 3 in pixels; 0 takes 4 latents each way, at least 128."""
    adapt_crop: Side = 0
    """Crop side of phase 2; 0 takes four times `crop`."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 16
    """Crops a step in phases 1 and 3, over all processes."""
    adapt_batch: Annotated[int, Field(ge=1, le=65536)] = 4
    """Crops a step in phase 2."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` learns far more a step, and each is more work. Phase 3 keeps AdamW."""
    quiet_start: bool = True
    """A new model's blocks start without effect, so that it first learns what a linear one can."""
    rate: Rate = 5e-4
    """Learning rate of phase 1; phases 2 and 3 take the paper's share of it (1/4 and 27/32)."""
    adapt_depth: Annotated[int, Field(ge=0, le=12)] = 1
    """Deepest stages trained in phase 2; 0 trains the two latent projections alone."""
    refine_depth: Annotated[int, Field(ge=0, le=12)] = 1
    """Shallowest stages trained in phase 3; 0 trains the last layer alone."""
    lpips: Path | None = None
    """Weight file (VGG16 + LPIPS heads, safetensors) for the perceptual loss; without it, none is needed."""
    adversarial_weight: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Weight of the critic in phase 3."""
    adaptive_adversarial: bool = False
    """Balance the critic by gradient norms instead."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of weights; 0 keeps none."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""
    latent_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Crops from which the latents' mean and spread are measured at the end."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Same seed, same weights (on one machine's CPU)."""
    device: DeviceName = "auto"
    """Where to train."""
    dtype: DtypeName = "fp32"
    """`bf16` runs the networks under autocast; fp16 is not offered (activations overflow)."""


def train_autoencoder_command(request: TrainAutoencoderRequest, progress: Progress) -> dict[str, object]:
    """Trains, measures the latents' scale, saves, and reports on held-out pictures."""
    import torch

    from fewer.core.checkpoint import refuse_earlier_run
    from fewer.core.device import pick_device
    from fewer.core.ranks import rank, ranks_of_launcher
    from fewer.generate.autoencoder.crops import PictureFolder
    from fewer.generate.autoencoder.perceptual import LPIPS
    from fewer.generate.autoencoder.report import reconstruction_report
    from fewer.generate.autoencoder.training import TrainingOptions, measure_latents, train_autoencoder

    if request.dtype == "fp16":
        raise ConfigError("dtype fp16 overflows in this autoencoder; allowed: fp32, bf16")
    device = pick_device(request.device)
    refuse_earlier_run(request.output / "checkpoints", request.resume)
    began = time.monotonic()
    with ranks_of_launcher(device.type):
        model = _start(request)
        plans = _plans(request, model)
        pictures = PictureFolder(request.data, model.config.in_channels)
        options = TrainingOptions(
            seed=request.seed,
            device=str(device),
            dtype=torch.bfloat16 if request.dtype == "bf16" else torch.float32,
            perceptual=LPIPS.load(request.lpips).to(device) if request.lpips else None,
            adversarial_weight=request.adversarial_weight,
            adaptive_adversarial=request.adaptive_adversarial,
            ema_decay=request.ema or None,
            optimizer=request.optimizer,
            gradient_checkpointing=request.gradient_checkpointing,
            checkpoint_folder=request.output / "checkpoints",
            checkpoint_every=request.checkpoint_every,
            resume=request.resume,
            identity={"pictures": pictures.fingerprint()},
        )
        results = train_autoencoder(model, pictures.crops, plans, options, progress)
        # The refinement alone moves no latent; measured on other pictures their scale would move them all.
        if request.model is None or results.keys() != {3}:
            measure_latents(model, pictures.crops, plans[0].crop, request.latent_samples)
        if rank() == 0:
            model.save(request.output)
    held_out = bool(pictures.held_out)
    crops = pictures.crops(64, plans[0].crop, torch.Generator().manual_seed(1), held_out=held_out)
    return {
        "output": str(request.output),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pictures": len(pictures.train),
        "held_out_pictures": len(pictures.held_out),
        "phases": {
            str(phase): {"steps": result.step, "loss": result.losses[-1] if result.losses else None}
            for phase, result in results.items()
        },
        **reconstruction_report(model, crops),
        "seconds": round(time.monotonic() - began, 3),
    }


def _start(request: TrainAutoencoderRequest) -> "DCAutoencoder":
    from fewer.core.device import isolated_randomness
    from fewer.generate.autoencoder.dc_ae import DCAutoencoder
    from fewer.generate.autoencoder.presets import preset_config
    from fewer.generate.autoencoder.quiet_start import start_quietly

    if request.model is not None:
        if request.structured or request.grey:
            raise ConfigError("--structured and --grey shape a new model; they do not go with --model")
        return DCAutoencoder.load(request.model).float()
    channels = 1 if request.grey else 3
    with isolated_randomness(request.seed % 2**32):
        model = DCAutoencoder(
            preset_config(request.preset, in_channels=channels, structured=request.structured)
        )
    return start_quietly(model) if request.quiet_start else model


def _plans(request: TrainAutoencoderRequest, model: "DCAutoencoder") -> "list[PhasePlan]":
    from fewer.generate.autoencoder.phases import PhasePlan

    ratio = model.config.spatial_compression_ratio
    crop = request.crop or max(4 * ratio, 128)
    batch, rate = request.batch, request.rate
    plans = []
    if request.steps:
        plans.append(PhasePlan(phase=1, steps=request.steps, crop=crop, batch=batch, rate=rate))
    if request.adapt_steps:
        plans.append(
            PhasePlan(
                phase=2, steps=request.adapt_steps, crop=request.adapt_crop or 4 * crop,
                batch=request.adapt_batch, rate=rate / 4, weight_decay=0.001, depth=request.adapt_depth,
            )
        )  # fmt: skip
    if request.refine_steps:
        plans.append(
            PhasePlan(
                phase=3, steps=request.refine_steps, crop=crop, batch=batch, rate=rate * 27 / 32,
                betas=(0.5, 0.9), depth=request.refine_depth,
            )
        )  # fmt: skip
    if not plans:
        raise ConfigError("steps, adapt_steps and refine_steps are all 0; give at least one phase some steps")
    return plans
