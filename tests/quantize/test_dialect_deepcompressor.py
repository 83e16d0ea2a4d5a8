from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.quantize import dialect_deepcompressor as dialect


@pytest.mark.parametrize("form", ["int4", "nvfp4"])
def test_codes_and_factors_come_back_from_dequantized_weights(
    flux_checkpoint, tmp_path: Path, form: str
) -> None:
    checkpoint, _ = flux_checkpoint(form)
    dialect.write_folder(checkpoint, tmp_path)
    for path in tmp_path.glob("*.safetensors"):  # their tensors are in 16 bits
        tensors = read_tensors(path)
        if path.stem == "model":
            write_tensors(path, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    unsigned = frozenset(name for name, layer in checkpoint.layers.items() if layer.unsigned)
    again = dialect.read_folder(tmp_path, unsigned)
    assert set(again.layers) == set(checkpoint.layers) and set(again.plain) == set(checkpoint.plain)
    for name, layer in checkpoint.layers.items():
        other = again.layers[name]
        assert torch.equal(other.codes, layer.codes) or form == "nvfp4"
        assert torch.allclose(other.weight(), layer.weight(), atol=1e-6), name
        assert other.facts() == layer.facts()
        if layer.bias is not None:
            assert torch.allclose(other.bias.float(), layer.bias.float(), rtol=0.02, atol=2e-3)


def test_a_layer_without_weight_and_an_empty_folder_are_refused(flux_checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no model and scale"):
        dialect.read_folder(tmp_path)
    dialect.write_folder(flux_checkpoint("int4")[0], tmp_path)
    model = read_tensors(tmp_path / "model.safetensors")
    del model["transformer_blocks.0.attn.to_q.weight"]
    write_tensors(tmp_path / "model.safetensors", model)
    with pytest.raises(FileError, match=r"'transformer_blocks\.0\.attn\.to_q' has scales"):
        dialect.read_folder(tmp_path)
