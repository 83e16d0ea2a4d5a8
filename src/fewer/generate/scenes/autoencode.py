"""Trains the scenes' autoencoder and measures its latents.

Cut-outs instead of whole scenes (the first phase of decoupled adaptation), pixels and gradients as the loss,
channels-last memory (on a CPU ten times faster for these widths), an average of the weights at the end.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.checkpoint import refuse_earlier_run
from fewer.core.device import isolated_randomness
from fewer.core.progress import Progress
from fewer.core.train import FitPlan, FitResult, fit
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.losses import reconstruction_loss
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.pool import crops, signed
from fewer.generate.scenes.presets import AutoencoderTraining, EmojiPreset
from fewer.generate.scenes.table import SceneTable


def train_autoencoder(
    preset: EmojiPreset,
    renderer: SceneRenderer,
    table: SceneTable,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DCAutoencoder:
    """An autoencoder whose latents have zero mean and unit spread in every channel.

    Trained on windows of the table's scenes, which the renderer cuts on its own device. On a GPU: products
    in bf16, blocks compiled one by one.
    """
    device = device or torch.device("cpu")
    gpu = device.type == "cuda"
    training = preset.autoencoder_training
    placed = table.placed(renderer)
    with isolated_randomness(seed):
        model = DCAutoencoder(preset.autoencoder)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=1e-3, fused=gpu
    )
    if gpu and training.compiled:
        compile_blocks(model)
    loss_of = torch.compile(reconstruction_loss, dynamic=False) if gpu else reconstruction_loss

    def batch_at(step: int, generator: torch.Generator) -> Tensor:
        return crops(renderer, placed, training.batch, training.crop, generator)

    def step(images: Tensor, generator: torch.Generator) -> Tensor:
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            latents = model.encoder(images)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
            # In the latents' own precision: noise in fp32 would make the whole decoder's stream fp32.
            noisy = latents + (training.latent_noise * spread * noise).to(latents.dtype)
            again = model.decoder(noisy)
        return loss_of(again.float(), images)

    plan = fit_plan(training, device, warmup=200, checkpoints=checkpoints, resume=resume, seed=seed)
    finish(model, fit(plan, {"autoencoder": model}, optimizer, step, batch_at, progress), model)
    few = torch.arange(min(512 if gpu else 256, len(placed)), device=device)
    return normalised(model.eval(), signed(renderer.render(placed.rows(few))))


def fit_plan(
    training: AutoencoderTraining,
    device: torch.device,
    *,
    warmup: int,
    checkpoints: Path | None,
    resume: bool,
    seed: int,
) -> FitPlan:
    """How an autoencoder of scenes, or its extension, is trained: a cosine, and an average of the weights
    over the last quarter of a short run. An earlier run is gone on with or refused, never begun beside."""
    if checkpoints is not None:
        refuse_earlier_run(checkpoints, resume)
    gpu = device.type == "cuda"
    return FitPlan(
        steps=training.steps,
        warmup=min(warmup, training.steps // 4),
        final_rate=0.02,
        ema_decay=min(0.998, 1 - 4 / max(5, training.steps)),
        checkpoint_folder=checkpoints,
        checkpoint_every=2000 if gpu else 250,
        look_every=20 if gpu else 1,
        resume=resume,
        seconds=None if training.minutes is None else 60 * training.minutes,
        seed=seed,
    )


@torch.no_grad()
def finish(trained: nn.Module, result: FitResult, *models: DCAutoencoder) -> None:
    """Puts the averages into what was trained, the only module of its run; blocks are no longer compiled."""
    (averages,) = result.averages.values()
    for name, average in averages.items():
        trained.get_parameter(name).copy_(average)
    for block in _blocks(*models):
        block._compiled_call_impl = None  # whole scenes are other shapes: each would be compiled anew


def compile_blocks(*models: DCAutoencoder) -> None:
    """Compiles every block by itself: seconds instead of the minutes that the whole network takes."""
    # Each width and size of one kind of block is a version of the same function.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in _blocks(*models):
        block.compile(dynamic=False)


def _blocks(*models: DCAutoencoder) -> Iterator[nn.Module]:
    """Every block once, also of models that share some."""
    seen: set[int] = set()
    for model in models:
        for stages in (model.encoder.down_blocks, model.decoder.up_blocks):
            for block in (block for stage in stages for block in stage.children()):
                if id(block) not in seen:
                    seen.add(id(block))
                    yield block


@torch.no_grad()
def normalised(model: DCAutoencoder, pictures: Float[Tensor, "batch 3 height width"]) -> DCAutoencoder:
    """The same autoencoder, with each channel's mean and spread over these pictures in its configuration.

    One factor for all channels would not do: their spreads differ by a factor of seven.
    """
    parameter = next(model.parameters())
    found = torch.cat([model.encoder(part.to(parameter.device)).float().cpu() for part in pictures.split(16)])
    mean, spread = found.mean(dim=(0, 2, 3)), found.std(dim=(0, 2, 3)).clamp(min=1e-4)
    config = replace(
        model.config,
        latents_mean=tuple(round(value, 5) for value in mean.tolist()),
        latents_std=tuple(round(value, 5) for value in spread.tolist()),
    )
    copied = DCAutoencoder(config)
    copied.load_state_dict(model.state_dict())
    return copied.to(parameter.device).eval()


@torch.no_grad()
def reconstruction_psnr(model: DCAutoencoder, pictures: Float[Tensor, "batch 3 height width"]) -> float:
    """Mean over pictures of the PSNR in dB of encoding and decoding, values in [-1, 1]."""
    total = 0.0
    for part in pictures.split(16):
        part = part.to(next(model.parameters()).device)
        again = model.decode(model.encode(part, tile=None), tile=None).clamp(-1, 1)
        error = ((again - part) / 2).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
        total += float((-10 * error.log10()).sum())
    return total / len(pictures)
