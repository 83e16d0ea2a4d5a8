"""The large edition of a finished built-in model: one stage more for its autoencoder, one adapter for shapes.

The transformer is not touched: it draws as many latents as before. What it has to learn are grids that are
not square, and those are small pictures of the old autoencoder, so that learning them is cheap.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from fewer.core.progress import Progress, SilentProgress
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.extended import load_own, own_tensors
from fewer.generate.compact import compact, expand
from fewer.generate.large_edition import FOLDER, WEIGHTS, LargeEdition, write_large
from fewer.generate.lora import in_dtype, write_lora
from fewer.generate.model_folder import Parts
from fewer.generate.scenes.autoencode import reconstruction_psnr
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.extend import train_extension
from fewer.generate.scenes.pool import encode_scenes, pool_captions, signed
from fewer.generate.scenes.presets import EmojiPreset
from fewer.generate.scenes.recipe import sprites_of
from fewer.generate.scenes.sprites import SpriteSheet
from fewer.generate.scenes.table import SceneTable, draw_table
from fewer.generate.scenes.vocabulary import Vocabulary
from fewer.generate.training.encoded import encode_captions
from fewer.generate.training.merged_flow import train_merged
from fewer.generate.training.on_device import DeviceSet

SHAPES = ((512, 512), (384, 640), (640, 384), (448, 576), (576, 448))
"""(height, width): all have about as many latents as the small square."""

Part = Literal["all", "stage", "adapter"]


def build_large(
    preset: EmojiPreset,
    parts: Parts,
    output: Path,
    *,
    part: Part = "all",
    rank: int = 24,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    packages: Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Trains what `part` says and writes it into `output/adapters/large`; returns figures for the report."""
    device = device or torch.device("cpu")
    progress = progress or SilentProgress()
    sheet = sprites_of(preset, output, packages, progress)
    vocabulary = Vocabulary(sheet.words(), sheet.styles)
    table = draw_table(vocabulary, preset.scenes, "train", seed)
    report: dict[str, object] = {"output": str(output / FOLDER)}
    assert isinstance(parts.autoencoder, DCAutoencoder)
    if part != "adapter":
        renderer = SceneRenderer(sheet, preset.side, device, compiled=device.type == "cuda").prepare()
        larger, result = train_extension(
            parts.autoencoder,
            renderer,
            table,
            preset.autoencoder_training,
            checkpoints=output / "extension-run",
            resume=resume,
            device=device,
            seed=seed,
            progress=progress,
        )
        stored = expand(compact(own_tensors(larger)), torch.float32)
        load_own(larger, {name: value.to(device) for name, value in stored.items()})
        write_large(output, LargeEdition(sizes=shapes), larger)
        report |= {
            "stage_steps": result.step,
            "stage_loss": _mean(result.losses),
            "stage_seconds": result.seconds,
            "psnr_held_out": held_out_psnr(larger, renderer, vocabulary, seed),
        }
        del renderer
    if part != "stage":
        grids = tuple((h // 2, w // 2) for h, w in shapes if h != w)
        report |= _train_adapter(
            preset, parts, output, sheet, table, grids, rank, resume, device, seed, progress
        )
    return report


def held_out_psnr(larger: DCAutoencoder, renderer: SceneRenderer, vocabulary: Vocabulary, seed: int) -> float:
    """PSNR in dB of 64 held-out scenes through both halves of the larger autoencoder."""
    placed = draw_table(vocabulary, 64, "held-out", seed).placed(renderer)
    return reconstruction_psnr(larger, signed(renderer.render(placed)))


def _train_adapter(
    preset: EmojiPreset,
    parts: Parts,
    output: Path,
    sheet: SpriteSheet,
    table: SceneTable,
    halves: tuple[tuple[int, int], ...],
    rank: int,
    resume: bool,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> dict[str, object]:
    gpu = device.type == "cuda"
    texts, rows, chances = pool_captions(table, preset.captions_per_scene, seed)
    text = encode_captions(parts.encoder, texts, progress, batch=1024 if gpu else 64, device=device)
    where, often = torch.from_numpy(rows).to(device), torch.from_numpy(chances).float().to(device)
    sets: list[DeviceSet] = []
    # Half the side: the small autoencoder's latents are those from which the larger one draws.
    for half in halves:
        renderer = SceneRenderer(sheet, half, device, compiled=gpu).prepare()
        latents = encode_scenes(
            table.placed(renderer), renderer, parts.autoencoder, progress, 256 if gpu else 32
        )
        sets.append(DeviceSet(latents, where, often, text.tokens, text.mask))
    adapter, result = train_merged(
        parts.transformer,  # pyright: ignore[reportArgumentType]
        sets,
        replace(preset.training, seed=seed),
        rank,
        device=device,
        checkpoints=output / "shapes-run",
        resume=resume,
        progress=progress,
    )
    write_lora(output / FOLDER / WEIGHTS, in_dtype(adapter, torch.bfloat16))
    return {
        "adapter_steps": result.step,
        "adapter_first_loss": _mean(result.losses[:50]),
        "adapter_loss": _mean(result.losses),
        "adapter_seconds": result.seconds,
        "adapter_bytes": (output / FOLDER / WEIGHTS).stat().st_size,
    }


def _mean(losses: list[float]) -> float | None:
    last = losses[-100:]
    return sum(last) / len(last) if last else None
