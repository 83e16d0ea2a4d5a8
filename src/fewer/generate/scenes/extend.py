"""Trains one stage more on a finished autoencoder: the same latents, pictures of twice the side.

Half of the pictures of a step reach the decoder through the old encoder, from the picture at half its side:
those are the latents that the transformer was trained to draw. The other half come through the new encoder,
which learns to give the same latents and, within them, what helps the decoder.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fewer.core.device import isolated_randomness
from fewer.core.progress import Progress
from fewer.core.train import FitResult, fit
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.extended import extended, extended_config, own_parts
from fewer.generate.autoencoder.losses import reconstruction_loss
from fewer.generate.scenes.autoencode import compile_blocks, finish, fit_plan
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.pool import crops
from fewer.generate.scenes.presets import AutoencoderTraining
from fewer.generate.scenes.table import SceneTable

_TETHER = 0.3
"""Weight of the distance between new and old latents, in spreads."""


def train_extension(
    base: DCAutoencoder,
    renderer: SceneRenderer,
    table: SceneTable,
    training: AutoencoderTraining,
    *,
    width: int = 64,
    checkpoints: Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[DCAutoencoder, FitResult]:
    """The larger autoencoder, which shares the modules of `base`; those are not changed."""
    device = device or torch.device("cpu")
    gpu = device.type == "cuda"
    placed = table.placed(renderer)
    base = base.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    with isolated_randomness(seed):
        larger = extended(base, extended_config(base.config, width))
    parts = nn.ModuleList(own_parts(larger)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parts.requires_grad_(True).parameters(),
        lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=1e-3, fused=gpu,
    )  # fmt: skip
    if gpu and training.compiled:
        compile_blocks(base, larger)
    loss_of = torch.compile(reconstruction_loss, dynamic=False) if gpu else reconstruction_loss
    spread = base.scale(torch.ones(1, base.config.latent_channels, 1, 1, device=device))
    spread = (spread - base.scale(torch.zeros_like(spread))).detach()  # 1 / spread of each channel

    def batch_at(step: int, generator: torch.Generator) -> Tensor:
        return crops(renderer, placed, training.batch, training.crop, generator)

    def step(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            with torch.no_grad():
                old = base.encoder(avg_pool2d(images, 2).contiguous(memory_format=torch.channels_last))
            new = larger.encoder(images)
            apart = ((new.float() - old.float()) * spread).square().mean()
            half = len(images) // 2
            latents = torch.cat([old[:half], new[half:]])
            noise = torch.randn(latents.shape, generator=generator).to(device) / spread
            noisy = latents + (training.latent_noise * noise).to(latents.dtype)
            again = larger.decoder(noisy.contiguous(memory_format=torch.channels_last))
        loss = loss_of(again.float(), images)
        return {"loss": loss + _TETHER * apart, "apart": apart.detach()}

    plan = fit_plan(training, device, warmup=100, checkpoints=checkpoints, resume=resume, seed=seed)
    result = fit(plan, {"extension": parts}, optimizer, step, batch_at, progress)
    finish(parts, result, base, larger)
    return larger.eval().requires_grad_(False), result
