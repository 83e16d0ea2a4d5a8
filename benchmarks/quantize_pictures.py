"""The built-in model's prompts and pictures for a comparison of quantizations: one noise for all methods.

With `few_steps` it is the model's few-step edition, its adapter merged into the weights before anything else
happens: one to four evaluations a picture and no guidance, so a twentieth of the work.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.image_metrics import ssim
from fewer.generate.lora import linear_shape, read_lora
from fewer.generate.model_folder import DEFAULT_MODEL, open_parts, read_settings
from fewer.generate.sampling import sample
from fewer.generate.sampling.few_steps import open_few_steps
from fewer.generate.scenes.judges import SpriteJudge
from fewer.generate.scenes.pool import Vocabulary
from fewer.generate.scenes.presets import preset
from fewer.generate.transformer import SanaTransformer


class Model:
    """The parts of a built-in model; its text encoder is opened only where prompts are new."""

    def __init__(self, name: str, device: torch.device, few_steps: int = 0) -> None:
        self.folder, self.device = DEFAULT_MODEL if name == "default" else Path(name), device
        self.transformer = SanaTransformer.load(self.folder, torch.float32, device)
        self.autoencoder = DCAutoencoder.load(self.folder / "vae", torch.float32, device)
        self.settings = read_settings(self.folder)
        self.levels: tuple[float, ...] | None = None
        if few_steps:
            edition = open_few_steps(self.folder)
            assert edition is not None and edition.weights is not None
            self.levels = edition.levels[few_steps - 1]
            merge(self.transformer, edition.weights)

    def read(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the text encoder makes of prompts and of the empty one, without the common padding."""
        encoder = open_parts(self.folder, dtype=torch.float32, device=self.device).encoder
        texts = [encoder.encode(["", *prompts[start : start + 16]]) for start in range(0, len(prompts), 16)]
        mask = torch.cat([texts[0].mask[:1], *(text.mask[1:] for text in texts)])
        tokens = torch.cat([texts[0].tokens[:1], *(text.tokens[1:] for text in texts)])
        used = int(mask.any(dim=0).nonzero().max()) + 1
        return {"tokens": tokens[:, :used].bfloat16().cpu(), "mask": mask[:, :used].cpu()}

    def velocity(self, transformer: nn.Module, tokens: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype):
        """The function that a sampler asks: guided, or the few-step edition's own."""
        prepared = transformer.prepare(tokens.to(dtype), mask)

        def evaluate(latents: torch.Tensor, timestep: float) -> torch.Tensor:
            times = torch.full((len(latents),), float(timestep), device=latents.device)
            return transformer.denoise(latents.to(dtype), times, prepared).float()

        def guided(latents: torch.Tensor, timestep: float) -> torch.Tensor:
            without, conditioned = evaluate(latents.repeat(2, 1, 1, 1), timestep).chunk(2)
            return without + self.settings.guidance * (conditioned - without)

        return guided if self.levels is None else evaluate


def merge(transformer: nn.Module, file: Path) -> None:
    """Adds an adapter to the weights it belongs to."""
    for name, low_rank in read_lora(file).items():
        layer = transformer.get_submodule(name)
        added = low_rank.strength * low_rank.up.float() @ low_rank.down.float()
        assert linear_shape(layer) == tuple(added.shape)
        layer.weight.data += added.reshape(layer.weight.shape).to(layer.weight)


class Prompts:
    """Prompts read once, in batches, with the noise their pictures start from."""

    def __init__(self, options: argparse.Namespace, model: Model, name: str, prompts: list[str]) -> None:
        path = options.text and options.text / f"{name}-{len(prompts)}-{options.seed}.safetensors"
        known = read_tensors(path) if path and path.exists() else model.read(prompts)
        if path and not path.exists():
            write_tensors(path, known)
        tokens, mask = known["tokens"].float().to(model.device), known["mask"].to(model.device)
        generator = torch.Generator().manual_seed(options.seed + (0 if name == "held-out" else 1_000_000))
        params, self.model, self.batches = model.transformer.params, model, []
        for start in range(0, len(prompts), options.batch):
            own = [1 + index for index in range(start, min(start + options.batch, len(prompts)))]
            size = (len(own), params.in_channels, params.sample_size, params.sample_size)
            noise = torch.randn(size, generator=generator).to(model.device)
            texts = own if model.levels is not None else [0] * len(own) + own  # guidance needs the empty one
            self.batches.append((tokens[texts], mask[texts], noise))

    def latents(self, transformer: nn.Module, steps: int, dtype: torch.dtype) -> torch.Tensor:
        """One latent image for each prompt."""
        model, drawn = self.model, []
        for tokens, mask, noise in self.batches:
            velocity, latents = model.velocity(transformer, tokens, mask, dtype), noise
            walk = (
                sample(velocity, noise, steps=steps, shift=model.settings.shift, method="flow-dpm")
                if model.levels is None
                else sample(velocity, noise, levels=model.levels, order=1)
            )
            for step in walk:
                latents = step.latents
            drawn.append(latents)
        return torch.cat(drawn)


def pictures(autoencoder: DCAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decoded in fp32 for every method, so that only the transformer differs."""
    return torch.cat([autoencoder.decode(part, tile=None).clamp(-1, 1) for part in latents.split(16)])


def judge_of(path: Path, device: torch.device) -> tuple[Vocabulary, SpriteJudge]:
    """The built-in model's vocabulary and the judge of it."""
    chosen = preset("emoji")
    vocabulary = Vocabulary(tuple((chosen.concepts or {}).values()), chosen.styles)
    return vocabulary, SpriteJudge.load(path, vocabulary.words, vocabulary.styles).to(device)


def against(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Means over pictures in 8-bit steps (SSIM is the library's own, tested against torchmetrics).

    `psnr_deviation` is the standard deviation of one picture's PSNR.
    """
    first, second = (((p + 1) * 127.5).round() for p in (found, expected))
    squared = (first - second).square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
    each = 10 * torch.log10(255**2 / squared)
    return {
        "psnr": round(each.mean().item(), 3),
        "psnr_deviation": round(each.std().item(), 3) if len(each) > 1 else 0.0,
        "psnr_of_the_mean_square": round((10 * torch.log10(255**2 / squared.mean())).item(), 3),
        "ssim": round(ssim(first, second, 255.0).mean().item(), 4),
    }
