"""Opening a model's folder: parts, settings, and what does not fit together."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FewerError, FileError
from fewer.generate import model_folder
from fewer.generate.model_folder import open_parts, read_settings

CPU = torch.device("cpu")


@pytest.fixture
def folder(pipeline_folder, tmp_path) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def test_settings_of_the_scheduler_and_our_own(folder):
    assert read_settings(folder).shift == 3.0
    change(folder / "scheduler" / "scheduler_config.json", flow_shift=6.0)
    assert read_settings(folder).shift == 6.0
    change(
        folder / "fewer.json", text_length=16, chi=False, text_layers=2, default_size=[32, 64], guidance=3.0
    )
    parts = open_parts(folder, dtype=torch.float32, device=CPU)
    assert (parts.settings.shift, parts.settings.guidance) == (6.0, 3.0)
    assert parts.settings.default_size == (32, 64)
    assert parts.encoder.length == 16
    assert parts.encoder.instruction == ""
    assert len(parts.encoder.model.layers) == 2


def test_the_default_size_is_the_trained_one(folder):
    assert open_parts(folder, dtype=torch.float32, device=CPU).settings.default_size == (32, 32)


def test_a_text_encoder_from_the_cache(folder, gemma_folder, tmp_path):
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    change(folder / "model_index.json", text_encoder=["fewer", "smollm2-135m"])
    shutil.copytree(gemma_folder, tmp_path / "cache" / "smollm2-135m")
    parts = open_parts(folder, dtype=torch.float32, device=CPU, cache=tmp_path / "cache")
    assert parts.encoder.channels == 12


def test_a_transformer_file_beside_given_parts(folder, gemma_folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ConfigError, match="--autoencoder and --text-encoder"):
        open_parts(file, dtype=torch.float32, device=CPU)
    parts = open_parts(
        file, dtype=torch.float32, device=CPU, text_encoder=gemma_folder, autoencoder=folder / "vae"
    )
    assert parts.transformer.params.in_channels == 4


def test_half_precision_spares_what_overflows(folder):
    parts = open_parts(folder, dtype=torch.float16, device=CPU)
    assert parts.transformer.proj_out.weight.dtype == torch.float16
    assert next(parts.autoencoder.parameters()).dtype == torch.float32
    assert next(parts.encoder.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}),
        ("fewer.json", {"stranger": 1}),
        ("fewer.json", {"text_length": -1}),
        ("fewer.json", {"text_layers": 99}),
        ("fewer.json", {"default_size": [0, 0]}),
        ("fewer.json", {"default_size": [-32, 10**9]}),
        ("scheduler/scheduler_config.json", {"flow_shift": "three"}),
        ("transformer/config.json", {"caption_channels": 24}),
        ("transformer/config.json", {"num_layers": 3}),
        ("vae/config.json", {"latent_channels": 8}),
    ],
)
def test_folders_that_do_not_fit_are_named(folder, file, values):
    change(folder / file, **values)
    with pytest.raises(FewerError) as caught:
        open_parts(folder, dtype=torch.float32, device=CPU)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "model_index.json"])
def test_absent_parts_are_missing_files(folder, part):
    gone = folder / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(FileError) as caught:
        open_parts(folder, dtype=torch.float32, device=CPU)
    assert caught.value.exit_code == 4


def test_two_channel_counts_are_both_named(folder, tiny):
    tiny(caption_channels=20).save(folder / "transformer")
    with pytest.raises(ConfigError, match=r"12 channels.*20"):
        open_parts(folder, dtype=torch.float32, device=CPU)


def test_paths_that_are_no_model(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="neither a folder nor a file"):
        open_parts(tmp_path / "absent", dtype=torch.float32, device=CPU)
    monkeypatch.setattr(model_folder, "DEFAULT_MODEL", tmp_path / "absent")
    with pytest.raises(FileError, match="built-in model") as caught:
        open_parts("default", dtype=torch.float32, device=CPU)
    assert caught.value.exit_code == 4
