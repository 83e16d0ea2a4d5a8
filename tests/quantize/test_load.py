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
