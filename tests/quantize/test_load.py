from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.quantize import Recipe, quantize
from fewer.quantize.checkpoint import checkpoint_of, save_quantized
from fewer.quantize.dialect_nunchaku import write_file
from fewer.quantize.load import load_model, read_checkpoint
from fewer.quantize.models import open_model


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
