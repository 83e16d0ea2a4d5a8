"""The built-in model from nothing: sprites -> autoencoder -> encoded pool -> transformer -> folder.

Each stage writes its result into the output folder and is skipped when that is there (`resume`), so a run
may be stopped at any moment and continued. With a model to start from, its autoencoder is kept and its
transformer goes on: that is how an edition learns more names than the one before.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from fewer.core.device import isolated_randomness, seeded
from fewer.core.errors import ConfigError, FileError
from fewer.core.progress import Progress, SilentProgress
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.model_folder import ModelSettings, Parts
from fewer.generate.scenes.autoencode import reconstruction_psnr, train_autoencoder
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.concepts import CONCEPTS
from fewer.generate.scenes.package import write_model
from fewer.generate.scenes.pool import encode_pool, load_pool, save_pool, signed
from fewer.generate.scenes.presets import EmojiPreset
from fewer.generate.scenes.sprites import SpriteSheet, load_sprites, render_sprites, save_sprites
from fewer.generate.scenes.table import draw_table
from fewer.generate.scenes.vocabulary import Vocabulary, wide_vocabulary
from fewer.generate.text.prompt import PromptEncoder
from fewer.generate.training.transformer import train_transformer
from fewer.generate.transformer.initialise import initialise
from fewer.generate.transformer.sana import SanaTransformer


def build_model(
    preset: EmojiPreset,
    output: Path,
    encoder: PromptEncoder,
    *,
    start: Parts | None = None,
    packages: Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Trains everything, or what a model to `start` from leaves to do; writes `output/model`.

    `packages` is the `node_modules` folder with the emoji; not needed when `output/sprites.safetensors` is
    there. Returns figures for the report. Raises `FileError` (missing) when neither is there and
    `ConfigError` when the model to start from is of another size than the preset.
    """
    device = device or torch.device("cpu")
    progress = progress or SilentProgress()
    begun = None if start is None else _fitting(start, preset)
    began = time.monotonic()
    sheet = sprites_of(preset, output, packages, progress)
    vocabulary = Vocabulary(sheet.words(), sheet.styles)
    renderer = SceneRenderer(sheet, preset.side, device, compiled=device.type == "cuda").prepare()
    table = draw_table(vocabulary, preset.scenes, "train", seed)

    if start is not None:
        autoencoder = start.autoencoder.to(device)
    elif resume and (output / "autoencoder" / "config.json").is_file():
        autoencoder = DCAutoencoder.load(output / "autoencoder", device=device)
    else:
        autoencoder = train_autoencoder(
            preset,
            renderer,
            table,
            checkpoints=output / "autoencoder-run",
            resume=resume,
            device=device,
            seed=seed,
            progress=progress,
        )
        autoencoder.save(output / "autoencoder")

    pool = output / "pool.safetensors"
    if resume and pool.is_file():
        data = load_pool(pool, device)
    else:
        data = encode_pool(table, renderer, autoencoder, encoder, preset.captions_per_scene, seed, progress)
        if device.type == "cpu":  # a GPU encodes ten gigabytes sooner than a disk takes them
            save_pool(pool, data)
    transformer = fresh_transformer(preset, seed) if begun is None else begun
    result = train_transformer(
        transformer,
        data,
        replace(preset.training, seed=seed),
        device=device,
        checkpoints=output / "transformer-run",
        resume=resume,
        progress=progress,
    )
    held_out = draw_table(vocabulary, min(64, preset.scenes), "held-out", seed).placed(renderer)
    psnr = reconstruction_psnr(autoencoder, signed(renderer.render(held_out)))
    sizes = write_model(output / "model", transformer.cpu(), autoencoder.cpu(), settings_of(preset))
    return {
        "output": str(output / "model"),
        "steps": result.step,
        "loss": sum(result.losses[-100:]) / max(1, len(result.losses[-100:])),
        "psnr": psnr,
        "bytes": sizes,
        "seconds": time.monotonic() - began,
    }


def sprites_of(preset: EmojiPreset, output: Path, packages: Path | None, progress: Progress) -> SpriteSheet:
    """The rendered sprites: from the output folder, or made from the packages and kept there."""
    path = output / "sprites.safetensors"
    if path.is_file():
        return load_sprites(path)
    if packages is None:
        raise FileError(
            "the emoji are not there; give --packages NODE_MODULES, or --download to fetch them with npm",
            missing=True,
        )
    concepts = preset.concepts or wide_vocabulary(packages, preset.styles)
    sheet = render_sprites(packages, concepts, preset.styles, preset.sprite_side, progress)
    save_sprites(sheet, path)
    return sheet


def fresh_transformer(preset: EmojiPreset, seed: int) -> SanaTransformer:
    """A transformer with starting weights that depend on the seed alone."""
    with isolated_randomness(seed):
        return initialise(SanaTransformer(preset.transformer), seeded(seed, 5))


def _fitting(start: Parts, preset: EmojiPreset) -> SanaTransformer:
    """The transformer to go on from."""
    found, wanted = start.transformer, preset.transformer
    side = wanted.sample_size * start.autoencoder.config.spatial_compression_ratio
    if isinstance(found, SanaTransformer) and found.params == wanted and side == preset.side:
        return found
    raise ConfigError(
        "the model to start from is of another size than the preset; give one that the same preset made, "
        "or leave --start out to begin from nothing"
    )


def settings_of(preset: EmojiPreset) -> ModelSettings:
    """How the finished model wants to be used."""
    return ModelSettings(
        text_layers=preset.text_layers,
        text_length=preset.text_length,
        chi=False,
        default_size=(preset.side, preset.side),
        words="emoji" if preset.concepts == CONCEPTS else None,
        shift=preset.shift,
        guidance=preset.guidance,
    )
