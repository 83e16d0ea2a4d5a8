from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FewerError
from fewer.core.files import write_json
from fewer.core.tensors import read_tensors, tensor_header
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.lora import fresh, read_lora, write_lora
from fewer.generate.model_folder import DEFAULT_MODEL, ModelSettings, read_settings
from fewer.generate.scenes.package import write_model
from fewer.generate.transformer import SanaTransformer
from fewer.quantize import convert
from tests.quantize.small_pipeline import ADAPTER, AUTOENCODER

SETTINGS = ModelSettings(text_layers=1, text_length=8, chi=False, shift=1.5, guidance=2.0)


@pytest.fixture
def packaged(sana_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    transformer = SanaTransformer.load(sana_folder, torch.float32)
    write_model(folder, transformer, DCAutoencoder(AUTOENCODER), SETTINGS)
    write_lora(folder / ADAPTER, fresh(transformer, 64, torch.Generator().manual_seed(1)), small=True)
    write_json(folder / "extra.json", {"kept": True})
    return folder


@pytest.mark.parametrize("to", ["diffusers", "native"])
def test_a_packaged_pipeline_becomes_one_of_ordinary_weights(packaged: Path, tmp_path: Path, to: str) -> None:
    made = convert(packaged, tmp_path / "dense", to)  # pyright: ignore
    assert made["expanded"] == ["transformer", "vae", str(ADAPTER)]
    dense = tmp_path / "dense"
    for file in dense.rglob("*.safetensors"):
        assert not any(name.endswith(".row_scale") for name in tensor_header(file)[0])
    for kind, part in ((SanaTransformer, "transformer"), (DCAutoencoder, "vae")):
        before, after = (kind.load(folder / part).state_dict() for folder in (packaged, dense))
        assert all(torch.equal(before[name], after[name]) for name in before)
    names = read_tensors(dense / "transformer" / "diffusion_pytorch_model.safetensors")
    assert any(name.startswith("blocks." if to == "native" else "transformer_blocks.") for name in names)
    before, after = read_lora(packaged / ADAPTER), read_lora(dense / ADAPTER)
    assert all(torch.equal(before[name].down, after[name].down) for name in before)
    assert read_settings(dense) == SETTINGS and (dense / "extra.json").is_file()


def test_the_built_in_model_goes_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FewerError, match="--to diffusers writes a whole pipeline"):
        convert(Path("default"), tmp_path / "out", "fewer")
    assert (DEFAULT_MODEL / "model_index.json").is_file() and not (tmp_path / "out").exists()


def test_pipelines_of_others_are_refused(packaged: Path, tmp_path: Path) -> None:
    write_json(packaged / "model_index.json", {"_class_name": "FluxPipeline"})
    with pytest.raises(ConfigError, match="'FluxPipeline'"):
        convert(packaged, tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()
