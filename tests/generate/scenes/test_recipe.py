"""The whole recipe in its smallest size: runs, resumes, and says what is missing."""

from dataclasses import replace

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.model_folder import read_settings
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.recipe import build_model
from fewer.generate.scenes.sprites import save_sprites
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
