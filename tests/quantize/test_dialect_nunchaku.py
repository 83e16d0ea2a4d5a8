import copy
import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.quantize import dialect_nunchaku as dialect
from fewer.quantize.checkpoint import apply_checkpoint
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer

FORMS = ["int4", "nvfp4"]


@pytest.mark.parametrize("form", FORMS)
def test_a_single_file_round_trips_byte_for_byte(
    flux_checkpoint, same_layers, tmp_path: Path, form: str
) -> None:
    checkpoint, _ = flux_checkpoint(form)
    path = tmp_path / dialect.file_name(checkpoint, "tiny")
    assert path.name == f"svdq-{'int4' if form == 'int4' else 'fp4'}_r16-tiny.safetensors"
    dialect.write_file(checkpoint, path)
    again = dialect.read_file(path)
    assert same_layers(checkpoint, again) and again.model_class == "FluxTransformer2DModel"
    assert all(torch.equal(again.plain[name], tensor) for name, tensor in checkpoint.plain.items())
    second = tmp_path / "second.safetensors"
    dialect.write_file(again, second)
    assert second.read_bytes() == path.read_bytes()


def test_names_and_metadata_are_the_published_ones(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    dialect.write_file(checkpoint, tmp_path / "a.safetensors")
    header, metadata = tensor_header(tmp_path / "a.safetensors")
    joint, single = "transformer_blocks.0", "single_transformer_blocks.0"
    assert header[f"{joint}.attn.to_qkv.qweight"].shape == (384, 64)
    assert header[f"{joint}.attn.to_qkv.wscales"].shape == (2, 384)
    for layer in (
        "attn.add_qkv_proj",
        "attn.to_out.0",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff_context.net.2",
    ):
        assert f"{joint}.{layer}.qweight" in header
    for layer in ("attn.to_qkv", "attn.to_out", "mlp_fc1", "mlp_fc2", "norm.linear"):
        assert f"{single}.{layer}.qweight" in header
    assert not any(".to_q." in name or "proj_out.mlp" in name for name in header)
    assert header[f"{joint}.norm1.linear.qweight"].dtype == "I32"
    assert metadata["model_class"] == "NunchakuFluxTransformer2dModel"
    settings = json.loads(metadata["quantization_config"])
    assert settings["method"] == "svdquant" and settings["rank"] == 16
    assert settings["weight"] == {"dtype": "int4", "scale_dtype": None, "group_size": 64}
    assert json.loads(metadata["config"])["num_layers"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_legacy_folder_round_trips_under_its_old_names(
    flux_checkpoint, same_layers, tmp_path: Path, form: str
) -> None:
    checkpoint, _ = flux_checkpoint(form)
    dialect.write_legacy(checkpoint, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "transformer_blocks.safetensors", "unquantized_layers.safetensors", "config.json",
        "comfy_config.json",
    }  # fmt: skip
    header, _ = tensor_header(tmp_path / "transformer_blocks.safetensors")
    for name in (
        "qkv_proj.smooth",
        "out_proj_context.lora_down",
        "mlp_context_fc2.qweight",
        "norm_added_q.weight",
    ):
        assert f"transformer_blocks.0.{name}" in header
    assert "single_transformer_blocks.0.out_proj.lora_up" in header
    again = dialect.read_legacy(tmp_path)
    assert same_layers(checkpoint, again) and set(again.plain) == set(checkpoint.plain)


def test_files_of_others_load_by_their_names_alone(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, skeleton = flux_checkpoint("int4")
    dialect.write_file(checkpoint, tmp_path / "a.safetensors")
    _, metadata = tensor_header(tmp_path / "a.safetensors")
    del metadata[dialect.EXTRA]
    write_tensors(tmp_path / "b.safetensors", read_tensors(tmp_path / "a.safetensors"), metadata)
    guessed = dialect.read_file(tmp_path / "b.safetensors")
    assert set(guessed.layers) == set(checkpoint.layers)
    for name, layer in checkpoint.layers.items():
        assert guessed.layers[name].unsigned == layer.unsigned
        assert torch.equal(guessed.layers[name].weight(), layer.weight())
    apply_checkpoint(skeleton, guessed)


def test_damage_names_the_layer(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    path = tmp_path / "a.safetensors"
    dialect.write_file(checkpoint, path)
    tensors, (_, metadata) = read_tensors(path), tensor_header(path)
    del tensors["transformer_blocks.0.attn.to_out.0.wscales"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(FileError, match=r"transformer_blocks\.0\.attn\.to_out\.0.*wscales"):
        dialect.read_file(path)
    write_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(FileError, match="no quantized layer"):
        dialect.read_file(path)


def test_formats_the_engine_lacks_are_refused(flux_checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h8 rank 16"):
        dialect.write_file(flux_checkpoint("h8")[0], tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunks", [2, 6, 9])
def test_modulation_of_other_models_keeps_the_order_of_its_rows(
    flux_checkpoint, same_layers, tmp_path: Path, chunks: int
) -> None:
    """SD3's last block has two chunks and its doubled attention nine; only FLUX's six are interleaved."""
    checkpoint = copy.deepcopy(flux_checkpoint("int4")[0])
    name = "transformer_blocks.0.norm1_context.linear"
    codes, scales = encode_weight(torch.randn(chunks * 64, 64), FORMATS["w4a16"])
    checkpoint.layers[name] = QuantizedLayer(
        format="w4a16", shape=(chunks * 64, 64), codes=codes, scales=scales,
        bias=torch.rand(chunks * 64).bfloat16(),
    )  # fmt: skip
    path = tmp_path / dialect.file_name(checkpoint, "other")
    dialect.write_file(checkpoint, path)
    assert same_layers(dialect.read_file(path), checkpoint)
    stored = read_tensors(path)[f"{name}.wscales"].mT
    assert torch.equal(stored, scales.group.bfloat16()) == (chunks != 6)


def test_a_part_of_a_layer_without_its_codes_is_named(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    path = tmp_path / "svdq-int4_r16-x.safetensors"
    dialect.write_file(checkpoint, path)
    metadata = tensor_header(path)[1]
    metadata.pop(dialect.EXTRA)
    tensors = read_tensors(path)
    del tensors["transformer_blocks.0.attn.to_qkv.qweight"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(FileError, match=r"to_qkv' is not whole: the file has proj_down, proj_up, wscales"):
        dialect.read_file(path)
