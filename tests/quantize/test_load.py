import copy
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.quantize import Recipe, quantize
from fewer.quantize.checkpoint import checkpoint_of, save_quantized
from fewer.quantize.dialect_nunchaku import write_file
from fewer.quantize.load import load_model, read_checkpoint
from fewer.quantize.models import empty_model, open_model


def test_a_quantized_sana_folder_runs_as_it_was_saved(
    sana_folder: Path, sana_inputs: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    model = (opened := open_model(str(sana_folder), torch.float32, torch.device("cpu"))).module
    with torch.no_grad():
        quantize(model, "h8", 4, lambda: model(*sana_inputs), recipe=Recipe(grid=2, refine_rounds=1))
        save_quantized(checkpoint_of(model, opened.config), tmp_path / "q")
        assert torch.equal(load_model(tmp_path / "q")(*sana_inputs), model(*sana_inputs))


def test_the_dialect_is_told_by_content(flux_checkpoint, tmp_path: Path) -> None:
    checkpoint, _ = flux_checkpoint("int4")
    write_file(checkpoint, tmp_path / "any name")
    assert read_checkpoint(tmp_path / "any name")[1] == "nunchaku"
    assert type(load_model(tmp_path / "any name")).__name__ == "FluxTransformer2DModel"
    with pytest.raises(FileError, match="no quantized model that is known"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileError, match="neither a file nor a folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_diffusers_own_sana_comes_back_as_diffusers_own(tmp_path: Path) -> None:
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=32, cross_attention_dim=64, caption_channels=8,
        sample_size=4,
    ).eval()  # fmt: skip
    inputs = (torch.randn(1, 4, 4, 4), torch.randn(1, 3, 8), torch.tensor([500]))
    quantize(model, "h8", 4, recipe=Recipe(refine_rounds=1, smooth=False))
    save_quantized(checkpoint_of(model, dict(model.config) | {"_class_name": type(model).__name__}), tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is SanaTransformer2DModel
    with torch.no_grad():
        assert torch.allclose(loaded(*inputs).sample, model(*inputs).sample, atol=1e-6)


def test_a_configuration_of_more_layers_than_tensors_is_refused_before_they_are_built(
    flux_checkpoint, tmp_path: Path
) -> None:
    checkpoint = copy.deepcopy(flux_checkpoint("int4")[0])
    checkpoint.config["num_layers"] = 10**9
    save_quantized(checkpoint, tmp_path)
    with pytest.raises(FileError, match="num_layers 1000000000, the file holds"):
        load_model(tmp_path)


def test_layers_of_another_size_or_without_their_bias_are_named(flux_checkpoint, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    checkpoint = copy.deepcopy(flux_checkpoint("int4")[0])
    checkpoint.layers[name].bias = None
    save_quantized(checkpoint, tmp_path)
    with pytest.raises(FileError, match=rf"{name}' has no bias in the file"):
        load_model(tmp_path)
    checkpoint.layers[name] = checkpoint.layers["transformer_blocks.0.ff.net.0.proj"]
    save_quantized(checkpoint, tmp_path)
    with pytest.raises(FileError, match=rf"{name}' is 512 x 128 in the file and 128 x 128 in Flux"):
        load_model(tmp_path)


def test_a_model_that_the_file_fills_takes_no_memory_of_its_own(
    flux_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewer.quantize import load

    built = []

    def empty(config: dict[str, object], kind: str) -> torch.nn.Module:
        built.append(empty_model(config, kind))
        assert all(parameter.is_meta for parameter in built[-1].parameters())
        return built[-1]

    monkeypatch.setattr(load, "empty_model", empty)
    save_quantized(flux_checkpoint("int4")[0], tmp_path)
    module = load_model(tmp_path)
    assert len(built) == 1
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
