"""Trains a Sana transformer on an encoded set: flow loss, buckets, CAME or AdamW, EMA, resume.

The loop is `fewer.core.train.fit`; this file says what a step is. Under torchrun every rank draws the same
batch and takes its own rows, so that N processes have the losses of one at the same total batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fewer.core.checkpoint import refuse_earlier_run
from fewer.core.device import DtypeName, pick_dtype
from fewer.core.errors import ConfigError
from fewer.core.progress import Progress
from fewer.core.train import FitPlan, FitResult, fit, rank, world_size
from fewer.generate.training.buckets import BucketSampler
from fewer.generate.training.came import CAME
from fewer.generate.training.encoded import EncodedSet
from fewer.generate.training.flow import FlowBatch, draw_flow, flow_loss
from fewer.generate.training.on_device import DeviceSet
from fewer.generate.training.quick_step import make_quick, precision
from fewer.generate.transformer.sana import SanaTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerTraining:
    """How a transformer is trained."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2000
    """Optimizer steps in all, those before a resume included."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """Pictures a step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    optimizer: Literal["adamw", "came"] = "adamw"
    """CAME keeps half of AdamW's state; its learning rates are about the same or lower."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Shift of the noise levels: 1 for few tokens, 3 at 512 px, 4 at 1024, 6 at 4096."""
    caption_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of captions replaced by the empty one, which guidance needs."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.999
    dtype: DtypeName = "auto"
    """fp32 weights always; bf16 computes the products in bf16."""
    recompute: bool = False
    """Gradient checkpointing: about a third more work for a fraction of the memory."""
    compiled: bool = False
    """On a GPU, where the quickest form of the step does not serve (`quick_step`): each block compiled."""
    minutes: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Ends after so much time, or after `steps` if that is sooner; the learning rate falls with the time."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 250
    seed: Annotated[int, Field(ge=0)] = 0


def train_transformer(
    transformer: nn.Module,
    data: EncodedSet | DeviceSet,
    training: TransformerTraining,
    *,
    device: torch.device | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Trains in place and leaves the averaged weights (EMA) in the transformer.

    `transformer` is a SanaTransformer, or one with LoRA added: only parameters that ask for gradients move.
    Raises `ConfigError` when nothing does, `DataError` when the loss is no longer finite.
    """
    device = device or torch.device("cpu")
    moving = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    if not moving:
        raise ConfigError("no parameter of the transformer is trainable")
    transformer.to(device).train()
    if isinstance(transformer, SanaTransformer):
        transformer.recompute_blocks = training.recompute
    dtype = refuse_fp16(training.dtype, device)
    draw = _drawing(data, training)
    undecided = device.type == "cuda" and isinstance(transformer, SanaTransformer)

    def batch_at(step: int, generator: torch.Generator) -> FlowBatch:
        return draw(step, generator).share(rank(), world_size()).to(device)

    def step(batch: FlowBatch, generator: torch.Generator) -> Tensor:
        nonlocal undecided
        if undecided:  # with a batch at hand: what is quickest is used once it has shown that it is right
            make_quick(transformer, batch, dtype, training.compiled)  # type: ignore[arg-type]
            undecided = False
        with precision(dtype, device):
            return flow_loss(transformer, batch)

    plan = fit_plan(training, device, checkpoints, resume)
    modules = {"transformer": transformer}
    result = fit(plan, modules, _optimizer(moving, training, device), step, batch_at, progress)
    with torch.no_grad():
        for name, average in result.averages.get("transformer", {}).items():
            transformer.get_parameter(name).copy_(average)
    transformer.eval()
    if isinstance(transformer, SanaTransformer):
        transformer.whole = False
        transformer.fuse_attention(False)
    return result


def fit_plan(
    training: TransformerTraining, device: torch.device, checkpoints: Path | None, resume: bool
) -> FitPlan:
    """How the training loop goes through these settings on a device.

    Raises `ConfigError` where `checkpoints` holds an earlier run that is not to be resumed.
    """
    if checkpoints is not None:
        refuse_earlier_run(checkpoints, resume)
    return FitPlan(
        steps=training.steps,
        schedule=training.schedule,
        warmup=min(training.warmup, training.steps),
        final_rate=0.02,
        clip_norm=training.clip_norm,
        ema_decay=training.ema_decay,
        checkpoint_folder=checkpoints,
        checkpoint_every=training.checkpoint_every,
        look_every=20 if device.type == "cuda" else 1,
        resume=resume,
        seconds=None if training.minutes is None else 60 * training.minutes,
        seed=training.seed,
    )


def _drawing(
    data: EncodedSet | DeviceSet, training: TransformerTraining
) -> Callable[[int, torch.Generator], FlowBatch]:
    """How the whole batch of a step is drawn."""
    if isinstance(data, DeviceSet):
        own = torch.Generator(data.latents.device)

        def on_device(step: int, generator: torch.Generator) -> FlowBatch:
            own.manual_seed(generator.initial_seed())
            return data.flow_batch(training.batch, training.shift, training.caption_drop, own)

        return on_device
    sampler = BucketSampler(data.shapes, training.batch, training.seed)

    def from_lists(step: int, generator: torch.Generator) -> FlowBatch:
        latents, text, mask = data.batch(sampler.at(step), training.caption_drop, generator)
        return draw_flow(latents, text, mask, training.shift, generator)

    return from_lists


def _optimizer(
    parameters: list[nn.Parameter], training: TransformerTraining, device: torch.device
) -> torch.optim.Optimizer:
    if training.optimizer == "came":
        return CAME(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    # Norms, biases and modulation tables are not decayed: they carry scale, not features.
    matrices = [parameter for parameter in parameters if parameter.ndim > 1 and min(parameter.shape[:2]) > 8]
    known = set(map(id, matrices))
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if id(p) not in known], "weight_decay": 0.0},
    ]
    fused = device.type == "cuda"  # one kernel for all tensors instead of ten for each
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95), fused=fused)


def refuse_fp16(dtype: DtypeName, device: torch.device) -> torch.dtype:
    chosen = pick_dtype(dtype, device)
    if chosen == torch.float16:
        raise ConfigError("fp16 training overflows without loss scaling; use --dtype bf16 or fp32")
    return chosen
