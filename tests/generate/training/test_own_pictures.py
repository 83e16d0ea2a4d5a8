"""Training on a folder from end to end: a model folder in, a model folder or an adapter out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewer.core.errors import ConfigError
from fewer.core.files import read_json
from fewer.core.progress import SilentProgress
from fewer.generate import model_folder
from fewer.generate.conditional.for_sana import ConditionedSana
from fewer.generate.lora import read_lora
from fewer.generate.model_folder import ModelSettings, read_settings
from fewer.generate.pipeline import TextToImage
from fewer.generate.scenes.package import write_model
from fewer.generate.training.command import (
    TrainLoraRequest,
    TrainSanaRequest,
    train_lora_command,
    train_sana_command,
)
from fewer.generate.transformer.sana import SanaTransformer


@pytest.fixture
def base(tiny, small_autoencoder, letters, tmp_path: Path, monkeypatch) -> Path:
    """A model folder whose text encoder is the one that reads letters."""
    settings = ModelSettings(text_length=24, chi=False, default_size=(16, 16), words="emoji")
    write_model(tmp_path / "base", tiny(), small_autoencoder, settings)
    monkeypatch.setattr(model_folder, "_open_encoder", lambda *_: letters)
    return tmp_path / "base"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("red dog.png", (20, 20)), ("wide cat.png", (60, 15)), ("blue dog.png", (17, 16))):
        Image.new("RGB", size, name.split()[0] if name[0] in "rb" else "green").save(folder / name)
    return folder


def test_a_model_is_trained_further(base: Path, pictures: Path, tmp_path: Path) -> None:
    request = TrainSanaRequest(
        data=pictures, output=tmp_path / "out", model=str(base), steps=3, batch=2, device="cpu"
    )
    report = train_sana_command(request, SilentProgress())
    assert report["steps"] == 3 and report["pictures"] == 3 and report["captions"] == 3
    assert report["buckets"] == {"4x4": 2, "2x8": 1}
    before, after = SanaTransformer.load(base), SanaTransformer.load(tmp_path / "out" / "model")
    assert not torch.equal(before.proj_out.bias.float(), after.proj_out.bias.float())
    # Its captions are others now: no prompt is said in the words of the model before.
    assert read_settings(tmp_path / "out" / "model") == replace(read_settings(base), words=None)
    assert read_json(tmp_path / "out" / "model" / "vae" / "config.json")["latent_channels"] == 4


def test_a_new_transformer_can_be_started(base: Path, pictures: Path, tmp_path: Path) -> None:
    request = TrainSanaRequest(
        data=pictures,
        output=tmp_path / "out",
        model=str(base),
        fresh=1,
        width=32,
        size=32,
        steps=2,
        device="cpu",
    )
    train_sana_command(request, SilentProgress())
    params = SanaTransformer.load(tmp_path / "out" / "model").params
    assert (params.depth, params.width, params.caption_channels) == (1, 32, 12)
    assert read_settings(tmp_path / "out" / "model").default_size == (32, 32)


def test_an_adapter_is_written_as_peft_names_it(base: Path, pictures: Path, tmp_path: Path) -> None:
    request = TrainLoraRequest(
        data=pictures, output=tmp_path / "out", model=str(base), steps=2, rank=2, device="cpu"
    )
    report = train_lora_command(request, SilentProgress())
    adapter = read_lora(str(report["output"]))
    assert "transformer_blocks.0.attn1.to_q" in adapter
    assert {found.down.shape[0] for found in adapter.values()} == {2}


def test_generated_weights_are_trained_saved_and_drawn_with(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    options = {"data": pictures, "model": str(base), "batch": 2, "device": "cpu", "conditioning": "adaln+can"}
    request = TrainSanaRequest(output=tmp_path / "out", steps=3, can_rank=2, **options)  # type: ignore
    train_sana_command(request, SilentProgress())
    folder = tmp_path / "out" / "model"
    assert (folder / "transformer" / "can.safetensors").is_file()
    pipeline = TextToImage.load(folder, device="cpu")
    assert isinstance(pipeline.transformer, ConditionedSana)
    assert any(bool(generator.b.weight.any()) for generator in pipeline.transformer.network.can.values())
    assert pipeline("red dog", steps=2).images[0].size == (16, 16)
    with pytest.raises(ConfigError, match="--recompute"):
        train_sana_command(replace(request, recompute=True), SilentProgress())
    with pytest.raises(ConfigError, match="--preset"):
        train_sana_command(replace(request, data=None, preset="emoji-test"), SilentProgress())
