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
    again = dialect.read_folder(tmp_path)
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


def _files(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: read_tensors(folder / f"{name}.safetensors") for name in dialect.FILES}


def test_what_layers_share_is_stored_once_and_found_by_all(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    dialect.write_folder(checkpoint, tmp_path)
    files = _files(tmp_path)
    joint, single = "transformer_blocks.0", "single_transformer_blocks.0"
    width = checkpoint.layers[f"{joint}.attn.to_q"].shape[0]
    assert len(files["branch"][f"{joint}.attn.to_q.b.weight"]) == 3 * width
    assert len(files["branch"][f"{joint}.attn.add_k_proj.b.weight"]) == 3 * width
    assert f"{joint}.attn.to_k.b.weight" not in files["branch"]
    assert {f"{single}.proj_out.linears.0.weight", f"{single}.proj_out.linears.1.linear.weight"} <= set(
        files["model"]
    )
    assert files["model"][f"{joint}.ff.net.2.shift"].item() == 0.171875
    # the published tool writes no second copy of shared scales
    shared = ("to_k", "to_v", "add_q_proj", "add_v_proj", "to_add_out", "proj_mlp")
    kept = {name: lam for name, lam in files["smooth"].items() if not name.endswith(shared)}
    write_tensors(tmp_path / "smooth.safetensors", kept)
    again = dialect.read_folder(tmp_path)
    for name, layer in checkpoint.layers.items():
        other = again.layers[name]
        assert other.facts() == layer.facts(), name
        source = name.replace("to_add_out", "to_out.0").replace("proj_mlp", "attn.to_q")
        if layer.smooth is not None:
            assert torch.equal(other.smooth, checkpoint.layers[source].smooth.bfloat16()), name
        if source == name:
            assert torch.allclose(other.weight(), layer.weight(), atol=1e-6), name


def test_scales_folded_into_the_layer_before_are_not_divided_again(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    dialect.write_folder(checkpoint, tmp_path)
    smooth = read_tensors(tmp_path / "smooth.safetensors")
    del smooth[dialect.FUSED]  # the published tool's default is true
    write_tensors(tmp_path / "smooth.safetensors", smooth)
    layers = dialect.read_folder(tmp_path).layers
    after = [name for name in layers if name.endswith(("to_out.0", "to_add_out", "proj_out.attention"))]
    assert len(after) == 3 and all(layers[name].smooth is None for name in after)
    assert all(
        layer.smooth is not None
        for name, layer in layers.items()
        if name not in after and layer.format == "int4"
    )
    files = _files(tmp_path)
    down = files["branch"]["transformer_blocks.0.attn.to_out.0.a.weight"]
    assert torch.allclose(layers["transformer_blocks.0.attn.to_out.0"].down.float(), down, rtol=0.01)


def test_a_joint_branch_of_other_heights_names_the_layer(flux_checkpoint, tmp_path: Path) -> None:
    dialect.write_folder(flux_checkpoint("int4")[0], tmp_path)
    branch = read_tensors(tmp_path / "branch.safetensors")
    key = "transformer_blocks.0.attn.to_q.b.weight"
    write_tensors(tmp_path / "branch.safetensors", branch | {key: branch[key][:-1].contiguous()})
    with pytest.raises(FileError, match=r"attn\.to_[qkv].*its branch has"):
        dialect.read_folder(tmp_path)
