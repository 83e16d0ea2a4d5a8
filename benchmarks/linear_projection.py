"""What the best linear projection of blocks of pixels keeps: a net of as many numbers that keeps less has not
learned yet.
"""
# bench: by hand: residual_curve.py --linear prints it

import torch
from residual_autoencoding import LATENTS


def linear(ratios: list[int], pool: torch.Tensor, *others: torch.Tensor) -> None:
    """What the best linear projection of as many numbers keeps (principal components of blocks of ratio x
    ratio pixels of crops to train on): PSNR on the others."""
    for ratio in ratios:
        vectors = blocks(pool, ratio)
        vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:4000]]
        mean = vectors.mean(0)
        count = LATENTS[ratio]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, basis = torch.svd_lowrank(vectors - mean, q=count + 20, niter=3)
        basis = basis[:, :count]
        found = []
        for crops in others:
            rest = blocks(crops, ratio) - mean
            error = (rest - rest @ basis @ basis.T).square().mean(1).view(len(crops), -1).mean(1)
            found.append(round(float((10 * torch.log10(4 / error)).mean()), 2))
        print(f"f{ratio}, linear: {found[0]} dB on validation crops, {found[1]} on test crops", flush=True)


def blocks(crops: torch.Tensor, ratio: int) -> torch.Tensor:
    """Every block of ratio x ratio pixels as a vector in [-1, 1], crop by crop."""
    columns = torch.nn.functional.unfold(crops.float() / 127.5 - 1, ratio, stride=ratio)
    return columns.transpose(1, 2).flatten(0, 1)
