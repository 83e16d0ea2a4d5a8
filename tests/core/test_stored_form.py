from pathlib import Path

import pytest
import torch

from fewer.core.files import write_json
from fewer.core.stored_form import stored_form
from fewer.core.tensors import write_tensors
from fewer.generate.compact import compact, deflated

WEIGHT = torch.randn(64, 128)


@pytest.mark.parametrize("part", ["", "transformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ordinary_weights_are_told_by_most_of_their_numbers(
    tmp_path: Path, part: str, dtype: torch.dtype
) -> None:
    write_tensors(tmp_path / part / "a.safetensors", {"w": WEIGHT.to(dtype), "b": torch.zeros(3).half()})
    assert stored_form(tmp_path) == {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]


def test_packaged_weights_are_told_with_their_bits(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", compact({"w": WEIGHT}))
    bits = 8 * (tmp_path / "a.safetensors").stat().st_size / WEIGHT.numel()
    assert stored_form(tmp_path).startswith(f"packaged: {bits:.1f} bits a weight")
    coarse = deflated("w", (WEIGHT / 2).round().to(torch.int8), torch.ones(64), (64, 128))
    write_tensors(tmp_path / "a.safetensors", coarse)
    bits = 8 * (tmp_path / "a.safetensors").stat().st_size / WEIGHT.numel()
    assert bits < 4 and stored_form(tmp_path).startswith(f"packaged: {bits:.1f} bits a weight")


def test_quantized_empty_and_damaged_folders(tmp_path: Path) -> None:
    assert stored_form(tmp_path) == "no weights"
    layers = {"a": {"format": "w4a16"}, "b": {"format": "h8"}, "c": 5}
    write_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "fewer", "layers": layers}})
    assert stored_form(tmp_path) == "quantized: h8, w4a16"
    write_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "nunchaku_lite"}})
    assert stored_form(tmp_path) == "quantized: nunchaku_lite"
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    assert stored_form(tmp_path) == "damaged"
