"""The large edition of a tiny model: made, opened, drawn with."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.large_edition import FOLDER, open_large
from fewer.generate.lora import read_lora
from fewer.generate.model_folder import ModelSettings, Parts
from fewer.generate.pipeline import TextToImage
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.recipe import fresh_transformer
from fewer.generate.scenes.recipe_large import build_large
from fewer.generate.scenes.sprites import save_sprites

_SHAPES = ((64, 64), (48, 80), (80, 48))
_SETTINGS = ModelSettings(chi=False, text_length=16, default_size=(32, 32), shift=1.0, guidance=2.0)


@pytest.fixture
def parts(letters) -> Parts:
    chosen = preset("emoji-test")
    chosen = replace(chosen, transformer=replace(chosen.transformer, caption_channels=letters.channels))
    torch.manual_seed(0)
    autoencoder = DCAutoencoder(chosen.autoencoder).eval()
    return Parts(fresh_transformer(chosen, 0), autoencoder, letters, ModelSettings(chi=False, text_length=16))


def test_it_writes_an_edition_and_leaves_the_model_alone(sheet, parts, tmp_path) -> None:
    chosen = replace(preset("emoji-test"), side=64)
    save_sprites(sheet, tmp_path / "sprites.safetensors")
    before = [value.clone() for part in (parts.transformer, parts.autoencoder) for value in part.parameters()]
    report = build_large(chosen, parts, tmp_path, rank=2, shapes=_SHAPES)
    after = [value for part in (parts.transformer, parts.autoencoder) for value in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert report["stage_steps"] == report["adapter_steps"] == 4
    found = open_large(tmp_path, 8)
    assert found is not None and found.sizes == _SHAPES
    larger = found.autoencoder(parts.autoencoder)
    assert larger.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)
    adapter = read_lora(found.adapter)
    assert any(bool(layer.up.abs().max() > 0) for layer in adapter.values())


def test_parts_can_be_made_one_after_the_other(sheet, parts, tmp_path) -> None:
    chosen = replace(preset("emoji-test"), side=64)
    save_sprites(sheet, tmp_path / "sprites.safetensors")
    assert "adapter_steps" not in build_large(chosen, parts, tmp_path, part="stage", shapes=_SHAPES)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "autoencoder.safetensors",
        "large.json",
    ]
    assert "stage_steps" not in build_large(chosen, parts, tmp_path, part="adapter", rank=2, shapes=_SHAPES)


def test_the_pipeline_takes_it_for_larger_pictures_and_says_so(sheet, parts, tmp_path) -> None:
    chosen = replace(preset("emoji-test"), side=64)
    save_sprites(sheet, tmp_path / "sprites.safetensors")
    build_large(chosen, parts, tmp_path, rank=2, shapes=_SHAPES)
    pipe = TextToImage(replace(parts, large=open_large(tmp_path, 8), settings=_SETTINGS))
    options = {"steps": 2, "guidance": 2.0}
    for (height, width), drawn in (
        ((32, 32), None), ((32, 28), None), ((64, 64), (64, 64)), ((40, 80), (48, 80)), ((100, 50), (80, 48))
    ):  # fmt: skip
        binning = "auto" if drawn else "off"
        picture = pipe("a cat", height=height, width=width, binning=binning, **options).pictures[0]
        assert picture.image.size == (width, height)
        assert picture.drawn == drawn
    assert "large_edition" in Image.open(io.BytesIO(picture.png())).info["fewer"]
    again = pipe("a cat", size=32, **options).images[0]
    alone = TextToImage(replace(parts, settings=_SETTINGS))("a cat", size=32, **options).images[0]
    assert again.tobytes() == alone.tobytes()  # nothing of the edition stays on the model
    plain = pipe("a cat", size=64, binning="off", **options).pictures[0]
    assert plain.drawn is None and plain.image.size == (64, 64)
