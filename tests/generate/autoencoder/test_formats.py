"""Files: diffusers as the oracle for outputs, names and bytes; native names both ways; strict reports."""

import json
import logging
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder import DCAutoencoder, published_config
from fewer.generate.autoencoder.formats import (
    Shapes,
    config_by_tensors,
    config_from_mapping,
    config_to_mapping,
    state_shapes,
)

from .conftest import perturb, tiny_config


def _oracle(tiny_name: str, folder: Path):
    """A diffusers model with perturbed parameters, saved by diffusers."""
    from diffusers import AutoencoderDC

    mapping = config_to_mapping(tiny_config(tiny_name, scaling_factor=0.5))
    oracle = AutoencoderDC(**{key: value for key, value in mapping.items() if not key.startswith("_")}).eval()
    perturb(oracle, seed=3)
    oracle.save_pretrained(folder)
    return oracle


# 2 x 2 latents are fewer than the head dimension of 8, 3 x 5 are more: diffusers switches its formula.
@pytest.mark.parametrize("side", [(8, 8), (12, 20)])
def test_outputs_equal_diffusers(tiny_name: str, side: tuple[int, int], tmp_path: Path) -> None:
    oracle = _oracle(tiny_name, tmp_path)
    ours = DCAutoencoder.load(tmp_path)
    image = (
        torch.rand(2, oracle.config.in_channels, *side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    )
    with torch.no_grad():
        latents = oracle.encode(image).latent
        picture = oracle.decode(latents).sample
    assert ((ours.encode(image) / 0.5 - latents).abs().max() / latents.std()) <= 1e-5
    assert ((ours.decode(latents * 0.5) - picture).abs().max() / picture.std()) <= 1e-5


def test_saved_again_is_the_same_file_content(tiny_name: str, tmp_path: Path) -> None:
    from diffusers import AutoencoderDC

    oracle = _oracle(tiny_name, tmp_path / "theirs")
    DCAutoencoder.load(tmp_path / "theirs").save(tmp_path / "ours")
    name = "diffusion_pytorch_model.safetensors"
    theirs, ours = read_tensors(tmp_path / "theirs" / name), read_tensors(tmp_path / "ours" / name)
    assert theirs.keys() == ours.keys()
    assert all(theirs[key].dtype == ours[key].dtype and torch.equal(theirs[key], ours[key]) for key in theirs)
    again = AutoencoderDC.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in oracle.state_dict().items())
    assert again.config.scaling_factor == 0.5


def test_one_report_lists_everything_that_does_not_fit(tmp_path: Path) -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts"))
    model.save(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(path)
    del tensors["encoder.conv_out.bias"]
    tensors["decoder.surprise"] = torch.zeros(2)
    tensors["encoder.conv_in.bias"] = torch.zeros(5)
    write_tensors(path, tensors)
    with pytest.raises(FileError, match="3 tensors") as caught:
        DCAutoencoder.load(tmp_path)
    for part in (
        "missing: encoder.conv_out.bias",
        "unexpected: decoder.surprise",
        "shape of encoder.conv_in.bias",
    ):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_keys_warn_and_unknown_blocks_raise(caplog: pytest.LogCaptureFixture) -> None:
    mapping = config_to_mapping(tiny_config("no_latent_shortcuts"))
    with caplog.at_level(logging.WARNING):
        assert config_from_mapping({**mapping, "flux_capacitor": 1}) == tiny_config("no_latent_shortcuts")
    assert "flux_capacitor" in caplog.text
    with pytest.raises(ConfigError, match="encoder_block_types"):
        config_from_mapping({**mapping, "encoder_block_types": ["ResBlock", "MambaBlock", "ResBlock"]})


def test_old_configs_without_the_last_keys_get_defaults() -> None:
    mapping = config_to_mapping(published_config("f32c32-in"))
    for key in ("encoder_out_shortcut", "decoder_in_shortcut", "decoder_conv_act_fn"):
        del mapping[key]
    assert config_from_mapping(json.loads(json.dumps(mapping))) == published_config("f32c32-in")


def test_shards_variants_and_missing_files(tmp_path: Path) -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts"))
    model.save(tmp_path)
    whole = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(whole)
    whole.rename(tmp_path / "diffusion_pytorch_model.bf16.safetensors")
    assert torch.equal(
        DCAutoencoder.load(tmp_path).state_dict()["encoder.conv_in.bias"], tensors["encoder.conv_in.bias"]
    )
    assert DCAutoencoder.load(tmp_path, dtype=torch.bfloat16).encoder.conv_out.weight.dtype == torch.bfloat16
    (tmp_path / "diffusion_pytorch_model.bf16.safetensors").unlink()
    with pytest.raises(FileError, match="holds no") as caught:
        DCAutoencoder.load(tmp_path)
    assert caught.value.exit_code == 4

    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        write_tensors(tmp_path / shard, {name: tensors[name] for name in members})
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: shard for shard, group in shards.items() for name in group}})
    )
    assert DCAutoencoder.load(tmp_path).state_dict().keys() == tensors.keys()
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(FileError, match="out of its folder"):
        DCAutoencoder.load(tmp_path)


def test_shards_of_a_variant_are_found_and_saving_leaves_nothing_older_to_read(tmp_path: Path) -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts"))
    model.save(tmp_path)
    whole = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(whole)
    whole.unlink()
    for variant in ("", ".fp16"):  # names of diffusers, both kinds
        shard = f"diffusion_pytorch_model{variant}-00001-of-00001.safetensors"
        write_tensors(tmp_path / shard, {n: t + (1 if variant else 0) for n, t in tensors.items()})
        index = tmp_path / f"diffusion_pytorch_model.safetensors.index{variant}.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    name = "encoder.conv_in.bias"
    for dtype, plus in ((None, 0), (torch.float16, 1)):
        loaded = DCAutoencoder.load(tmp_path, dtype=dtype).state_dict()[name].float()
        assert torch.allclose(loaded, tensors[name] + plus, atol=1e-2)
    (tmp_path / "diffusion_pytorch_model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FileError, match="shards that are not there") as caught:
        DCAutoencoder.load(tmp_path)
    assert caught.value.exit_code == 4

    model.save(tmp_path)
    for dtype in (None, torch.float16):
        loaded = DCAutoencoder.load(tmp_path, dtype=dtype).state_dict()[name].float()
        assert torch.allclose(loaded, tensors[name], atol=1e-2)


def test_channel_statistics_survive_saving(tmp_path: Path) -> None:
    config = tiny_config(
        "no_latent_shortcuts", latents_mean=(0.5, -1.0, 0.0, 2.0), latents_std=(1.0, 2.0, 3.0, 4.0)
    )
    model = DCAutoencoder(config).eval()
    model.save(tmp_path)
    assert DCAutoencoder.load(tmp_path).config == config


def _published_shapes(name: str) -> Shapes:
    with torch.device("meta"):
        return state_shapes(DCAutoencoder(published_config(name)))


def test_without_a_config_the_tensors_tell_the_model_where_only_one_has_them() -> None:
    for name in ("f32c32-sana", "lite-f32c32", "1.5-f64c128"):
        assert config_by_tensors(_published_shapes(name), "folder") == published_config(name)
    # Two models share these tensors, but not the factor of their latents: never guessed.
    with pytest.raises(FileError, match=r"f32c32-in \(scaling_factor 0.3189\) or f32c32-mix .*0.4552"):
        config_by_tensors(_published_shapes("f32c32-in"), "folder")
    with pytest.raises(FileError, match="no published model") as caught:
        config_by_tensors({"encoder.conv_in.weight": (1, 1, 3, 3)}, "folder")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "place", ["dc-ae-tiny-mix-1.0", "models--owner--dc-ae-tiny-mix-1.0/snapshots/0a1b", "any"]
)
def test_a_native_folder_is_known_by_its_name_or_its_model_name(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts"))

    def known(name: str):
        if name != "dc-ae-tiny-mix-1.0":
            raise ConfigError(name)
        return model.config

    monkeypatch.setattr("fewer.generate.autoencoder.formats.published_config", known)
    model.save(tmp_path / place, naming="native")
    (tmp_path / place / "config.json").unlink()
    if place == "any":
        (tmp_path / place / "config.json").write_text('{"model_name": "dc-ae-tiny-mix-1.0"}')
    assert state_shapes(DCAutoencoder.load(tmp_path / place)) == state_shapes(model)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.bool]
)
def test_mixed_formats_open_in_one_and_whole_numbers_are_no_weights(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts"))
    model.save(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(path)
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"].to(dtype)
    write_tensors(path, tensors)
    if not dtype.is_floating_point:
        with pytest.raises(FileError, match=r"1 tensors .*encoder\.conv_in\.weight \((I8|BOOL)\)"):
            DCAutoencoder.load(tmp_path)
        return
    again = DCAutoencoder.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.encoder.conv_in.weight, tensors["encoder.conv_in.weight"].float())


def test_a_config_that_cannot_be_is_named_with_its_folder(tmp_path: Path) -> None:
    DCAutoencoder(tiny_config("no_latent_shortcuts")).save(tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    for wrong in ({"latent_channels": 0}, {"encoder_layers_per_block": [0, 0, 1]}):
        (tmp_path / "mine" / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ConfigError, match=r"config\.json of 'mine': (latent|encoder)_"):
            DCAutoencoder.load(tmp_path / "mine")


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    DCAutoencoder(tiny_config("no_latent_shortcuts")).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(FileError, match=r"AutoencoderKL, not an AutoencoderDC"):
        DCAutoencoder.load(tmp_path)
