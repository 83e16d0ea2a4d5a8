"""Many pictures from prompts encoded beforehand, for parallel_quality.py and scaling.py's item `quality`.

The language model is large and stays behind: a file holds the prompts' tokens, the scenes they describe are
drawn anew from their seed. Each prompt is drawn from several noises.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.model_folder import Parts
from fewer.generate.sampling import sample
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.pool import Vocabulary, draw_scenes

SEED = 900


def scenes_of(vocabulary: Vocabulary, prompts: int) -> list[Scene]:
    """Half of combinations that training has seen, half held out."""
    halves = ((prompts + 1) // 2, prompts // 2)
    return [
        scene
        for split, count in zip(("train", "held-out"), halves, strict=True)
        for scene in draw_scenes(vocabulary, count, split, seed=SEED)  # pyright: ignore[reportArgumentType]
    ]


@torch.no_grad()
def write_texts(path: Path, parts: Parts, scenes: list[Scene]) -> None:
    """The prompts' tokens, one behind the other, with their lengths; the empty prompt comes first."""
    tokens, lengths = [], []
    for prompt in ["", *map(full_caption, scenes)]:
        text = parts.encoder.encode([prompt])
        kept = text.tokens[0] if text.mask is None else text.tokens[0][text.mask[0].bool()]
        tokens.append(kept.to(torch.bfloat16))
        lengths.append(len(kept))
    settings = parts.settings
    write_tensors(
        path,
        {"tokens": torch.cat(tokens), "lengths": torch.tensor(lengths),
         "settings": torch.tensor([settings.guidance, settings.shift])},
    )  # fmt: skip


class Texts:
    """What `write_texts` wrote, as padded batches on a device."""

    def __init__(self, path: Path, device: torch.device) -> None:
        held = read_tensors(path)
        parts = held["tokens"].float().split(held["lengths"].tolist())
        self.tokens = nn.utils.rnn.pad_sequence(list(parts), batch_first=True).to(device)
        self.mask = (torch.arange(self.tokens.shape[1]) < held["lengths"][:, None]).to(device)
        self.guidance, self.shift = (float(value) for value in held["settings"])

    def __len__(self) -> int:
        return len(self.tokens) - 1

    def guided(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of as many empty prompts as there are rows, then of these prompts."""
        chosen = [0] * len(rows) + [row + 1 for row in rows]
        return self.tokens[chosen], self.mask[chosen]


@torch.no_grad()
def drawn_latents(transformer: nn.Module, texts: Texts, noises: int, steps: int, batch: int) -> Tensor:
    """Latents of prompt 0 from all its noises, then of prompt 1, and so on: the same noise on any device."""
    rows = [row for row in range(len(texts)) for _ in range(noises)]
    starts = range(0, len(rows), batch)
    return torch.cat([drawn_batch(transformer, texts, rows[at : at + batch], steps, at) for at in starts])


@torch.no_grad()
def drawn_batch(transformer: nn.Module, texts: Texts, rows: list[int], steps: int, seed: int) -> Tensor:
    """Latents of these prompts, side by side."""
    params, device, count = transformer.params, texts.tokens.device, len(rows)
    prepared = transformer.prepare(*texts.guided(rows))  # pyright: ignore

    def velocity(latents: Tensor, timestep: float) -> Tensor:
        times = torch.full((2 * count,), float(timestep), device=device)
        both = transformer.denoise(latents.repeat(2, 1, 1, 1), times, prepared)  # pyright: ignore
        without, conditioned = both.chunk(2)
        return without + texts.guidance * (conditioned - without)

    side, generator = int(params.sample_size), torch.Generator().manual_seed(seed)  # pyright: ignore
    latents = torch.randn(count, int(params.in_channels), side, side, generator=generator)  # pyright: ignore
    latents = latents.to(device)
    for step in sample(velocity, latents, steps=steps, shift=texts.shift):
        latents = step.latents
    return latents


@torch.no_grad()
def decoded(autoencoder: nn.Module, latents: Tensor, batch: int) -> Tensor:
    """Pictures in [-1, 1], on the CPU, where they are judged."""
    parts = [autoencoder.decode(part, tile=None) for part in latents.split(batch)]  # pyright: ignore
    return torch.cat([part.clamp(-1, 1).float().cpu() for part in parts])


def psnr(pictures: Tensor, expected: Tensor) -> Tensor:
    """Of each picture, in dB, for values in [-1, 1]."""
    return 10 * torch.log10(4 / (pictures - expected).square().mean((1, 2, 3)).clamp(min=1e-10))
