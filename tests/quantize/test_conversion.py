import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors
from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig
from fewer.quantize.checkpoint import load_quantized, save_quantized
from fewer.quantize.conversion import convert

QUANTIZED = ["fewer", "nunchaku", "nunchaku-legacy", "nunchaku-lite", "cache-dit", "deepcompressor"]


@pytest.mark.parametrize("to", QUANTIZED)
def test_ours_becomes_every_dialect_and_comes_back(
    flux_checkpoint, same_layers, tmp_path: Path, to: str
) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    save_quantized(checkpoint, tmp_path / "ours")
    result = convert(tmp_path / "ours", tmp_path / "theirs", to)
    assert result["from"] == "fewer" and result["bytes"] > 0
    source = next((tmp_path / "theirs").iterdir()) if to == "nunchaku" else tmp_path / "theirs"
    back = convert(source, tmp_path / "back", "fewer")
    assert back["from"] == to
    again = load_quantized(tmp_path / "back")
    if to in ("fewer", "nunchaku", "nunchaku-legacy"):
        assert same_layers(checkpoint, again)
    assert 0 < len(again.layers) <= len(checkpoint.layers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours", "theirs"], (
        "nothing half-written"
    )


def test_sixteen_bit_sana_goes_between_names_and_pickles_pass_the_door(
    sana_folder: Path, tmp_path: Path
) -> None:
    convert(sana_folder, tmp_path / "native", "native")
    native = read_tensors(next((tmp_path / "native").glob("*.safetensors")))
    assert any(name.startswith("blocks.0.") for name in native)
    convert(tmp_path / "native", tmp_path / "again", "diffusers")
    first, second = (
        read_tensors(next(folder.glob("*.safetensors"))) for folder in (sana_folder, tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.save({"state_dict": native}, tmp_path / "sana.pth")
    with pytest.raises(FileError, match="--trust-pickle"):
        convert(tmp_path / "sana.pth", tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "sana.pth", tmp_path / "out", "safetensors", trust_pickle=True)
    opened = read_tensors(tmp_path / "out" / "sana.safetensors")
    assert all(torch.equal(opened[name], native[name]) for name in native)


def test_an_autoencoder_goes_between_names_from_folders_files_and_pickles(tmp_path: Path) -> None:
    config = DCAutoencoderConfig(
        latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (3,)), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    model = DCAutoencoder(config)
    model.save(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "native", "native")["model"] == "DCAutoencoder"
    native = read_tensors(tmp_path / "native" / "model.safetensors")
    assert any("op_list" in name for name in native)
    (tmp_path / "pickled").mkdir()
    torch.save({"state_dict": native}, tmp_path / "pickled" / "dc-ae.pt")
    (tmp_path / "pickled" / "config.json").write_bytes((tmp_path / "ours" / "config.json").read_bytes())
    for number, source in enumerate(("native", "native/model.safetensors", "pickled", "pickled/dc-ae.pt")):
        convert(tmp_path / source, tmp_path / f"{number}", "diffusers", trust_pickle="pickled" in source)
        again = DCAutoencoder.load(tmp_path / f"{number}").state_dict()
        assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_a_weight_file_is_known_by_its_folder_and_sixteen_bits_are_told_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DCAutoencoderConfig(
        latent_channels=4, encoder_block_out_channels=(4, 8), decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    DCAutoencoder(config).save(tmp_path / "dc-ae-tiny-in-1.0", "native")
    (tmp_path / "dc-ae-tiny-in-1.0" / "config.json").unlink()

    def known(name: str) -> DCAutoencoderConfig:
        if name != "dc-ae-tiny-in-1.0":
            raise ConfigError(name)
        return config

    monkeypatch.setattr("fewer.generate.autoencoder.formats.published_config", known)
    source = tmp_path / "dc-ae-tiny-in-1.0" / "model.safetensors"
    assert convert(source, tmp_path / "theirs", "diffusers")["model"] == "DCAutoencoder"
    for one in (source, source.parent, tmp_path / "theirs"):
        with pytest.raises(FileError, match="--to diffusers or --to native"):
            convert(one, tmp_path / "out", "fewer")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_leaves_no_output(
    flux_checkpoint, sana_folder: Path, tmp_path: Path
) -> None:
    save_quantized(flux_checkpoint("h8")[0], tmp_path / "h8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for kind, text, source, to, output in [
        (ConfigError, "h8 rank 16", tmp_path / "h8", "nunchaku", "out"),
        (FileError, "neither a Sana nor a DC-AE", tmp_path / "h8", "diffusers", "out"),
        (FileError, "no quantized model.*--to diffusers or --to native", sana_folder, "fewer", "out"),
        (FileError, "not there", tmp_path / "none", "fewer", "out"),
        (ConfigError, "no pickle", tmp_path / "h8", "safetensors", "out"),
        (ConfigError, "not empty", tmp_path / "h8", "fewer", "full"),
    ]:
        with pytest.raises(kind, match=text):
            convert(source, tmp_path / output, to)
        assert not (tmp_path / "out").exists()


def test_damaged_folders_of_ours_are_not_taken_for_sixteen_bits(flux_checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    save_quantized(flux_checkpoint("int4")[0], folder)
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(FileError, match="convert the folder"):
        convert(folder / "model.safetensors", tmp_path / "out", "nunchaku")
    for change, text in (
        ({"layers": [1]}, "no object of layers$"),
        ({"version": 2}, "has quantization version 2, not 1$"),
        ({"layers": dict([*config["quantization_config"]["layers"].items()][1:])}, "does not list$"),
    ):
        broken = config | {"quantization_config": config["quantization_config"] | change}
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(FileError, match=text):
            convert(folder, tmp_path / "out", "nunchaku")
    assert not (tmp_path / "out").exists()
