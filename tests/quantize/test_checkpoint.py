import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.quantize import Recipe, quantize
from fewer.quantize.checkpoint import WEIGHTS, apply_checkpoint, checkpoint_of, load_quantized, save_quantized

Tiny = tuple[nn.Module, torch.Tensor]


@pytest.fixture
def quantized(tiny: Tiny) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model, inputs = tiny
    skeleton = copy.deepcopy(model).to("meta")
    quantize(model, "h8", 4, lambda: model(inputs), recipe=Recipe(grid=2, refine_rounds=1))
    return model, skeleton, inputs


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_a_saved_model_loads_into_an_empty_one_with_the_same_outputs(
    tiny: Tiny, tmp_path: Path, form: str
) -> None:
    model, inputs = tiny
    skeleton = copy.deepcopy(model).to("meta")
    quantize(model, form, 4, lambda: model(inputs), recipe=Recipe(grid=2, refine_rounds=1))
    save_quantized(checkpoint_of(model, {"hidden": 64}), tmp_path)
    checkpoint = load_quantized(tmp_path)
    assert checkpoint.config == {"hidden": 64} and checkpoint.model_class == "TinyModel"
    assert torch.equal(apply_checkpoint(skeleton, checkpoint)(inputs), model(inputs))
    first = (tmp_path / "model.safetensors").read_bytes()
    save_quantized(checkpoint, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


def test_missing_extra_and_misshapen_tensors_are_listed_and_nothing_changes(
    quantized: tuple[nn.Module, nn.Module, torch.Tensor],
) -> None:
    model, skeleton, _ = quantized
    good = checkpoint_of(model)
    for text, change in [
        (r"missing \['embed.weight'\]", lambda c: c.plain.pop("embed.weight")),
        (r"unexpected \['more'\]", lambda c: c.plain.update(more=torch.zeros(1))),
        (r"misshapen or mistyped \['head.bias", lambda c: c.plain.update({"head.bias": torch.zeros(3)})),
        (r"\['other'\], which TinyModel", lambda c: c.layers.update(other=c.layers["blocks.0.up"])),
    ]:
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(FileError, match=text):
            apply_checkpoint(skeleton, bad)
        assert all(type(module).__name__ != "QuantizedLinear" for module in skeleton.modules())


def test_folders_that_are_not_ours_or_damaged_are_refused(
    quantized: tuple[nn.Module, nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    save_quantized(checkpoint_of(quantized[0]), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = read_tensors(weights)
    del tensors["blocks.0.up.group_scale"]
    write_tensors(weights, tensors)
    with pytest.raises(FileError, match=r"blocks\.0\.up"):
        load_quantized(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="not written by fewer"):
        load_quantized(tmp_path)
    with pytest.raises(FileError, match="not there"):
        load_quantized(tmp_path / "nowhere")


def test_dialects_ask_for_one_format_and_one_rank(
    quantized: tuple[nn.Module, nn.Module, torch.Tensor],
) -> None:
    checkpoint = checkpoint_of(quantized[0])
    assert checkpoint.uniform("x", "h8") == ("h8", 4) and checkpoint.names("h8")
    with pytest.raises(ConfigError, match="h8 rank 4; quantize it again with --format int4"):
        checkpoint.uniform("a file", "int4", "nvfp4")
    assert checkpoint.byte_count() == sum(
        tensor.numel() * tensor.element_size() for tensor in quantized[0].state_dict().values()
    )


@pytest.mark.parametrize("whole", [True, False])
def test_what_stands_in_two_places_is_quantized_and_stored_once(
    tiny: Tiny, tmp_path: Path, whole: bool
) -> None:
    model, inputs = tiny
    if whole:
        model.blocks.append(model.blocks[0])
    else:
        model.blocks[1].up = model.blocks[0].up
    skeleton = copy.deepcopy(model).to("meta")
    quantize(model, "h8", 4, lambda: model(inputs), recipe=Recipe(grid=2, refine_rounds=1))
    alias = model.blocks[-1].up
    assert alias is model.blocks[0].up and type(alias).__name__ == "QuantizedLinear"
    save_quantized(checkpoint_of(model), tmp_path)
    assert not any(
        name.startswith((f"blocks.{2 if whole else 1}.up.",)) for name in read_tensors(tmp_path / WEIGHTS)
    )
    assert torch.equal(apply_checkpoint(skeleton, load_quantized(tmp_path))(inputs), model(inputs))
