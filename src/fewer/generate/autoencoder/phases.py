"""Which layers the three phases of decoupled high-resolution adaptation train (paper §3.3, spec §2.4).

1. Everything, on small crops: content and structure.
2. The layers around the latents, on large crops: a latent map of another size than in phase 1.
3. The head of the decoder, on small crops with a critic: local texture. The latents stay as they are.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from torch import nn

from fewer.generate.autoencoder.dc_ae import DCAutoencoder

Phase = Literal[1, 2, 3]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Depth = Annotated[int, Field(ge=0, le=12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """One phase. Learning rates of the paper, for batch 256: 6.4e-5, 1.6e-5, 5.4e-5."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    phase: Phase
    """1 everything, 2 around the latents, 3 head of the decoder with a critic."""
    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps."""
    crop: Annotated[int, Field(ge=8, le=8192)]
    """Side of the training crops in pixels; a multiple of the autoencoder's ratio."""
    batch: Annotated[int, Field(ge=1, le=65536)]
    """Crops a step, over all ranks together."""
    rate: Rate
    """Learning rate after warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """AdamW's decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments; the paper uses (0.5, 0.9) in phase 3."""
    depth: Depth = 1
    """Phase 2: deepest stages trained on each side (0: the two projections alone). Phase 3: shallowest
    stages of the decoder trained with the last layer (0: the last layer alone)."""


def trainable_modules(model: DCAutoencoder, phase: Phase, depth: int) -> list[nn.Module]:
    """The modules that `phase` trains; everything else stays frozen."""
    if phase == 1:
        return [model]
    if phase == 2:
        deepest = slice(model.config.stages - min(depth, model.config.stages), None)
        return [
            *model.encoder.down_blocks[deepest],
            model.encoder.conv_out,
            model.decoder.conv_in,
            *model.decoder.up_blocks[deepest],
        ]
    filled = [stage for stage in model.decoder.up_blocks if len(list(stage.children()))]
    return [*filled[:depth], model.decoder.norm_out, model.decoder.conv_out]


def prepare(model: DCAutoencoder, phase: Phase, depth: int) -> list[nn.Parameter]:
    """Freezes the model but for what `phase` trains, and returns those parameters.

    Frozen layers also run in eval mode, so that batch norm does not move either.
    """
    model.requires_grad_(False).eval()
    parameters: dict[int, nn.Parameter] = {}
    for module in trainable_modules(model, phase, depth):
        module.requires_grad_(True).train()
        parameters.update({id(parameter): parameter for parameter in module.parameters()})
    return list(parameters.values())
