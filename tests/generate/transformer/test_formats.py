"""Files of Sana transformers: diffusers and native, both ways, and what is refused."""

import json

import pytest
import torch
from diffusers import SanaTransformer2DModel

from fewer.core.errors import ConfigError, FewerError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.transformer import PUBLISHED, SanaTransformer
from fewer.generate.transformer.formats import _recognise, read_params, write_params
from fewer.generate.transformer.names import from_native, to_native

VARIANTS = [{}, {"qk_norm": True}, {"qk_norm": True, "guidance_embeds": True}, {"interpolation_scale": 2.0}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_diffusers_loads_what_we_save(tiny, tmp_path, changes):
    ours = tiny(**changes)
    ours.save(tmp_path)
    theirs, info = SanaTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)


@pytest.mark.parametrize("changes", VARIANTS)
def test_native_round_trip_is_exact(tiny, tmp_path, changes):
    ours = tiny(**changes)
    native = to_native(ours.state_dict())
    assert {"x_embedder.proj.weight", "blocks.0.attn.qkv.weight", "final_layer.linear.bias"} <= native.keys()
    assert "blocks.1.cross_attn.kv_linear.bias" in native
    back = from_native(native)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
    ours.save(tmp_path, native=True)
    loaded = SanaTransformer.load(tmp_path)
    assert loaded.params == ours.params
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in ours.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_round_trip(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(write_params(PUBLISHED[name])))
    assert read_params(tmp_path / "config.json") == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", ["sana-0.6b-512", "sana-1.6b-4096", "sana-1.5-4.8b-1024", "sprint-1.6b-1024"]
)
def test_a_native_file_without_config_is_recognised_by_its_shapes(name):
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in SanaTransformer(PUBLISHED[name]).state_dict().items()}
    size = {"512": "512px", "1024": "1024px", "2048": "2Kpx", "4096": "4Kpx"}[name.rpartition("-")[2]]
    assert _recognise(shapes, f"Sana_{size}_MultiLing.safetensors") == PUBLISHED[name]
    with pytest.raises(ConfigError, match=r"config\.json"):
        _recognise({"patch_embed.proj.weight": (3, 4, 1, 1)}, "odd.safetensors")


def test_one_report_lists_all_that_is_missing_extra_and_misshapen(tiny, tmp_path):
    ours = tiny()
    ours.save(tmp_path)
    tensors = ours.state_dict()
    del tensors["proj_out.bias"], tensors["caption_norm.weight"]
    tensors |= {"stranger": torch.zeros(1), "scale_shift_table": torch.zeros(2, 3)}
    write_tensors(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(FileError) as caught:
        SanaTransformer.load(tmp_path)
    for part in ("missing proj_out.bias", "missing caption_norm.weight", "extra stranger", "[2, 3]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": -1},
        {"num_layers": 10**12},
        {"num_layers": 65_536},
        {"num_attention_heads": "4"},
        {"stranger": 1},
        {"qk_norm": "layer_norm"},
        {"dropout": 0.1},
        {"cross_attention_dim": 5},
        {"quantization_config": {}},
        {"patch_size": 3},
        {"mlp_ratio": float("nan")},
    ],
)
def test_hostile_configurations_are_refused(tiny, tmp_path, change):
    tiny().save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(FewerError):
        SanaTransformer.load(tmp_path)


def test_paths_that_hold_no_model(tmp_path):
    with pytest.raises(FileError, match="neither a folder nor a file") as caught:
        SanaTransformer.load(tmp_path / "absent")
    assert caught.value.exit_code == 4
    with pytest.raises(FileError, match="no safetensors file"):
        SanaTransformer.load(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileError, match="fewer convert"):
        SanaTransformer.load(tmp_path)
    with pytest.raises(FileError, match="fewer convert"):
        SanaTransformer.load(tmp_path / "model.pth")
