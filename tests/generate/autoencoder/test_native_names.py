"""Native names: spelled as the authors' code does, and back to ours without loss."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors
from fewer.generate.autoencoder import DCAutoencoder, published_config, published_names
from fewer.generate.autoencoder.native_names import is_native, native_name, split_native


def test_native_names_round_trip(tiny: DCAutoencoder, tmp_path: Path) -> None:
    tiny.save(tmp_path, naming="native")
    names = read_tensors(tmp_path / "model.safetensors").keys()
    assert not names & tiny.state_dict().keys()
    again = DCAutoencoder.load(tmp_path)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in tiny.state_dict().items())


def test_native_names_are_those_of_the_authors() -> None:
    """Spelled out from the structure of efficientvit's modules (spec §4.2)."""
    pixel, conv = published_config("f32c32-in"), published_config("f32c32-sana")
    assert native_name("encoder.conv_in.conv.weight", pixel) == "encoder.project_in.conv.conv.weight"
    assert native_name("encoder.conv_in.weight", conv) == "encoder.project_in.conv.weight"
    assert native_name("encoder.conv_out.bias", conv) == "encoder.project_out.main.op_list.0.conv.bias"
    assert (
        native_name("encoder.down_blocks.0.2.conv.weight", conv)
        == "encoder.stages.0.op_list.2.main.conv.weight"
    )
    assert (
        native_name("decoder.up_blocks.3.1.attn.to_qkv_multiscale.0.proj_out.weight", conv)
        == "decoder.stages.3.op_list.1.context_module.main.aggreg.0.1.weight"
    )
    assert (
        native_name("decoder.up_blocks.3.1.conv_out.conv_depth.bias", conv)
        == "decoder.stages.3.op_list.1.local_module.main.depth_conv.conv.bias"
    )
    assert native_name("decoder.conv_out.conv.bias", pixel) == "decoder.project_out.op_list.2.conv.conv.bias"


@pytest.mark.parametrize("name", published_names())
def test_every_name_of_every_model_returns(name: str) -> None:
    config = published_config(name)
    with torch.device("meta"):
        names = list(DCAutoencoder(config).state_dict())
    native = {native_name(n, config): None for n in names if not n.endswith(("to_k.weight", "to_v.weight"))}
    assert is_native(native) and not is_native(names)
    assert sorted(split_native(native, lambda value, _: value)) == sorted(names)


def test_two_native_names_for_one_tensor_are_refused() -> None:
    with pytest.raises(FileError, match="mixes layouts"):
        split_native({"decoder.norm_out.bias": 1, "decoder.project_out.op_list.0.bias": 2}, lambda v, _: v)
