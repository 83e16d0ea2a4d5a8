"""The whole recipe in its smallest size: runs, resumes, and says what is missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.model_folder import Parts, read_settings
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.pool import encode_pool
from fewer.generate.scenes.presets import EmojiPreset, preset
from fewer.generate.scenes.recipe import build_model
from fewer.generate.scenes.sprites import SpriteSheet, save_sprites
from fewer.generate.scenes.table import draw_table
from fewer.generate.scenes.vocabulary import Vocabulary
from fewer.generate.training.flow import flow_loss
from fewer.generate.transformer.sana import SanaTransformer


def test_it_builds_a_model_and_a_second_call_has_nothing_left_to_do(sheet, letters, tmp_path) -> None:
    chosen = preset("emoji-test")
    chosen = replace(chosen, transformer=replace(chosen.transformer, caption_channels=letters.channels))
    save_sprites(sheet, tmp_path / "sprites.safetensors")
    first = build_model(chosen, tmp_path, letters)
    assert first["steps"] == 4 and first["output"] == str(tmp_path / "model")
    assert read_settings(tmp_path / "model").default_size == (32, 32)
    weights = SanaTransformer.load(tmp_path / "model").state_dict()
    again = build_model(chosen, tmp_path, letters, resume=True)
    assert again["steps"] == 4 and again["psnr"] == pytest.approx(first["psnr"])
    after = SanaTransformer.load(tmp_path / "model").state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_without_emoji_it_says_how_to_get_them(letters, tmp_path) -> None:
    with pytest.raises(FileError, match="--download") as error:
        build_model(preset("emoji-test"), tmp_path, letters)
    assert error.value.exit_code == 4


def two_words(sheet: SpriteSheet) -> SpriteSheet:
    return replace(sheet, concepts=sheet.concepts[:2], pixels=np.ascontiguousarray(sheet.pixels[:, :2]))


def tiny(letters, steps: int, **training: object) -> EmojiPreset:
    chosen = preset("emoji-test")
    return replace(
        chosen,
        transformer=replace(chosen.transformer, caption_channels=letters.channels),
        training=replace(chosen.training, steps=steps, batch=8, learning_rate=3e-3, **training),
        scenes=48,
    )


def edition(folder: Path, letters) -> Parts:
    network = SanaTransformer.load(folder, torch.float32)
    return Parts(network, DCAutoencoder.load(folder / "vae", torch.float32), letters, read_settings(folder))


def loss_on(parts: Parts, sheet: SpriteSheet, words: tuple[str, ...]) -> float:
    """Of one fixed batch of scenes that show these words."""
    renderer = SceneRenderer(sheet, 32)
    table = draw_table(Vocabulary(words, sheet.styles), 32, "train", 3)
    data = encode_pool(table, renderer, parts.autoencoder, parts.encoder, 1, 3)
    batch = data.flow_batch(32, 1.0, 0.0, torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float(flow_loss(parts.transformer, batch))


def begun(folder: Path, sheet: SpriteSheet, letters) -> Parts:
    """An edition that knows the first two words."""
    save_sprites(two_words(sheet), folder / "sprites.safetensors")
    build_model(tiny(letters, 30), folder, letters)
    return edition(folder / "model", letters)


def test_an_edition_goes_on_to_new_words_and_keeps_its_autoencoder(sheet, letters, tmp_path) -> None:
    before = begun(tmp_path / "first", sheet, letters)
    second = tmp_path / "second"
    save_sprites(sheet, second / "sprites.safetensors")
    build_model(tiny(letters, 60), second, letters, start=edition(tmp_path / "first" / "model", letters))
    after = edition(second / "model", letters)
    for words, most in ((sheet.words()[2:], 0.9), (sheet.words()[:2], 1.0)):
        assert loss_on(after, sheet, words) < most * loss_on(before, sheet, words)
    assert not (second / "autoencoder").exists()
    kept = after.autoencoder.state_dict()
    assert all(
        torch.allclose(kept[name], value, atol=1e-6)
        for name, value in before.autoencoder.state_dict().items()
    )


def test_going_on_can_be_stopped_and_resumed(sheet, letters, tmp_path) -> None:
    begun(tmp_path / "first", sheet, letters)
    ends = []
    for name, pieces in (("whole", (8,)), ("broken", (4, 8))):
        save_sprites(sheet, tmp_path / name / "sprites.safetensors")
        for steps in pieces:
            start = edition(tmp_path / "first" / "model", letters)
            chosen = tiny(letters, steps, schedule="constant", warmup=2)
            build_model(chosen, tmp_path / name, letters, start=start, resume=steps > pieces[0])
        ends.append(SanaTransformer.load(tmp_path / name / "model").state_dict())
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


def test_an_edition_of_another_size_is_refused(sheet, letters, tmp_path) -> None:
    start = begun(tmp_path / "first", sheet, letters)
    wider = tiny(letters, 1)
    wider = replace(wider, transformer=replace(wider.transformer, depth=2))
    save_sprites(sheet, tmp_path / "second" / "sprites.safetensors")
    with pytest.raises(ConfigError, match="another size"):
        build_model(wider, tmp_path / "second", letters, start=start)
