import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors
from fewer.quantize import dialect_lite as dialect
from fewer.quantize.checkpoint import apply_checkpoint
from fewer.quantize.formats import Scales


@pytest.mark.parametrize("form", ["int4", "nvfp4"])
def test_a_folder_round_trips_and_what_does_not_fit_is_dense(
    flux_checkpoint, tmp_path: Path, form: str
) -> None:
    checkpoint, skeleton = flux_checkpoint(form)
    dense = dialect.write_folder(checkpoint, tmp_path)
    single = "single_transformer_blocks.0.proj_out"
    unsigned = (
        {"transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.2"}
        if form == "int4"
        else set()
    )
    assert set(dense) == {f"{single}.attention", f"{single}.mlp"} | unsigned
    again = dialect.read_folder(tmp_path)
    assert set(again.layers) == set(checkpoint.layers) - set(dense)
    for name, layer in again.layers.items():
        assert torch.equal(layer.weight(), checkpoint.layers[name].weight())
    joined = torch.cat(
        [checkpoint.layers[f"{single}.{half}"].weight() for half in ("attention", "mlp")], dim=1
    )
    assert torch.equal(again.plain[f"{single}.weight"], joined.bfloat16())
    apply_checkpoint(skeleton.__class__.from_config(skeleton.config), again)
    first = (tmp_path / dialect.WEIGHTS).read_bytes()
    dialect.write_folder(again, tmp_path / "second")
    assert (tmp_path / "second" / dialect.WEIGHTS).read_bytes() == first


def test_keys_are_exactly_those_of_diffusers_modules(flux_checkpoint, tmp_path: Path) -> None:
    """diffusers' loader cannot be imported here (it downloads kernels), so its parameter list is repeated."""
    checkpoint, _ = flux_checkpoint("nvfp4")
    dialect.write_folder(checkpoint, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    from diffusers import NunchakuLiteQuantizationConfig

    parsed = NunchakuLiteQuantizationConfig.from_dict(settings)
    assert parsed.svdq_w4a4["precision"] == "nvfp4" and parsed.awq_w4a16["group_size"] == 64
    tensors = read_tensors(tmp_path / dialect.WEIGHTS)
    target = "transformer_blocks.0.attn.to_q"
    own = {
        name.removeprefix(f"{target}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{target}.")
    }
    shapes = {
        "qweight": (128, 64), "bias": (128,), "wscales": (8, 128), "smooth_factor": (128,),
        "proj_down": (128, 16),         "proj_up": (128, 16), "wcscales": (128,), "wtscale": (1,),
    }  # fmt: skip
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == shapes
    assert isinstance(nn.Parameter(own["wscales"], requires_grad=False), nn.Parameter)


def test_a_module_in_two_lists_and_a_missing_layer_are_refused(flux_checkpoint, tmp_path: Path) -> None:
    dialect.write_folder(flux_checkpoint("int4")[0], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    lists = config["quantization_config"]
    lists["awq_w4a16"]["targets"].append(lists["svdq_w4a4"]["targets"][0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="more than once"):
        dialect.read_folder(tmp_path)
    lists["awq_w4a16"]["targets"][-1] = "proj_out"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="'proj_out' is listed as quantized"):
        dialect.read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileError, match="nunchaku_lite"):
        dialect.read_folder(tmp_path)


@pytest.mark.parametrize("damage", [{"precision": "int9"}, {"rank": "x"}, {"targets": 5}, {"targets": [5]}])
def test_a_configuration_of_other_types_says_what_it_needs(
    flux_checkpoint, tmp_path: Path, damage: dict[str, object]
) -> None:
    dialect.write_folder(flux_checkpoint("int4")[0], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["svdq_w4a4"] |= damage
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="svdq_w4a4 of its quantization_config needs"):
        dialect.read_folder(tmp_path)


def test_number_formats_are_the_models_own(flux_checkpoint, tmp_path: Path) -> None:
    """What goes back to ordinary weights has the format of its neighbours, or the model could not run."""
    checkpoint = copy.deepcopy(flux_checkpoint("int4")[0])
    checkpoint.plain = {name: tensor.half() for name, tensor in checkpoint.plain.items()}
    for layer in checkpoint.layers.values():
        layer.scales = Scales(layer.scales.group.half())
    dialect.write_folder(checkpoint, tmp_path)
    tensors = read_tensors(tmp_path / dialect.WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["compute_dtype"] == "float16"


def test_a_model_of_which_nothing_fits_is_refused(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint = copy.deepcopy(flux_checkpoint("int4")[0])
    unsigned = {name: layer for name, layer in checkpoint.layers.items() if layer.unsigned}
    checkpoint.layers = unsigned
    with pytest.raises(ConfigError, match="no layer of this model fits"):
        dialect.write_folder(checkpoint, tmp_path)
