"""A small autoencoder in training, for the benchmarks that compare such nets: where its crops come from, what
it is trained for, and how well it reconstructs.
"""
# bench: by hand: residual_curve.py and fewer_tokens.py train with it

from collections.abc import Callable

import torch
from fresh_crops import FreshCrops, dead_leaves
from graphed import Trainee

from fewer.generate.autoencoder import ReconstructionWeights
from fewer.generate.autoencoder.losses import reconstruction_loss
from fewer.generate.image_metrics import psnr

FLOOR = 3e-5
"""Squared error (of pictures in [-1, 1]) that is as good as none: 51 dB."""
LOSS = ReconstructionWeights(gradients=0.5, pyramid=0.0)


Draw = Callable[[torch.Generator], torch.Tensor]
"""A batch of crops in [-1, 1]."""


def from_pool(pool: torch.Tensor, batch: int, turned: bool = False) -> Draw:
    """Crops drawn from the pool; `turned`: also on their sides, with colours exchanged."""
    device = pool.device

    def draw(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pool), (batch,), generator=generator, device=device)
        images = pool[rows].float() / 127.5 - 1
        if turned:
            coins = torch.rand(2, batch, 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(coins[0], images.transpose(2, 3), images)
            colours = torch.rand(3, generator=generator, device=device).argsort()
            images = torch.where(coins[1], images[:, colours], images)
        return images

    return draw


def cut_fresh(crops: FreshCrops, batch: int, side: int, leaves: float = 0.0) -> Draw:
    """Crops that nobody has seen before; the share `leaves` of them shows dead leaves."""
    painted = round(leaves * batch)

    def draw(generator: torch.Generator) -> torch.Tensor:
        images = crops.draw(batch - painted, side, generator)
        if painted:
            device = str(images.device)
            images = torch.cat([images, dead_leaves(painted, side, generator, device)])
        return images

    return draw


def beforehand(draw: Draw, count: int, generator: torch.Generator) -> torch.Tensor:
    """At least `count` crops as bytes, drawn with large kernels instead of in every net's every step."""
    parts, found = [], 0
    while found < count:
        parts.append(((draw(generator) + 1) * 127.5).round().clamp(0, 255).byte())
        found += len(parts[-1])
    return torch.cat(parts)


def autoencoder_trainee(
    name: str,
    model: torch.nn.Module,
    draw: Draw,
    rate: float,
    steps: int,
    seed: int,
    error: str = "l1",
    final_rate: float = 0.1,
    orthogonal: bool = False,
) -> Trainee:
    """Trains on what `draw` gives, for L1 and gradients ("l1"), for the squared error ("squared"), or for the
    logarithm of each crop's squared error ("decibel"), whose mean is PSNR; bf16 products on a GPU."""
    device = next(model.parameters()).device.type

    def loss(generator: torch.Generator) -> torch.Tensor:
        images = draw(generator)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False, enabled=device == "cuda"):
            back = model(images)
        if error == "squared":
            return (back.float() - images).square().mean()
        if error == "decibel":
            return ((back.float() - images).square().flatten(1).mean(1) + FLOOR).log().mean()
        return reconstruction_loss(back, images, LOSS)

    groups = [{"params": list(model.parameters()), "weight_decay": 0.01}]
    return Trainee(
        name=name, model=model, loss=loss, groups=groups, rate=rate, steps=steps, warmup=50,
        final_rate=final_rate, seed=seed, betas=(0.9, 0.99 if orthogonal else 0.999), orthogonal=orthogonal,
    )  # fmt: skip


@torch.no_grad()
def quality(model: torch.nn.Module, test: torch.Tensor) -> float:
    """Mean PSNR in dB."""
    found = []
    for part in test.split(64):
        images = part.float() / 127.5 - 1
        found.append(psnr(model(images).float().clamp(-1, 1).cpu(), images.cpu()))
    return float(torch.cat(found).mean())
