import dataclasses
from pathlib import Path

import pytest
import torch

from fewer.core.progress import SilentProgress
from fewer.core.tensors import tensor_header
from fewer.quantize import command, working
from fewer.quantize.command import QuantizeRequest, quantize_command
from fewer.quantize.load import load_model
from fewer.quantize.working import round_weights, stored_in, working_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpu_that_emulates_16_bits_works_in_fp32_where_there_is_room(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, sana_folder: Path
) -> None:
    monkeypatch.setattr(working, "_has_units", lambda _: False)
    assert working_dtype("default", dtype, CPU) == torch.float32
    assert working_dtype(str(sana_folder), dtype, torch.device("cuda")) == dtype
    monkeypatch.setattr(working, "available_memory", lambda _: 100)
    assert working_dtype(str(sana_folder), dtype, CPU) == dtype
    monkeypatch.setattr(working, "_has_units", lambda _: True)
    assert working_dtype("default", dtype, CPU) == dtype


def test_fp32_asked_for_is_fp32() -> None:
    assert working_dtype("default", torch.float32, CPU) == torch.float32


def test_rounded_weights_are_those_of_the_16_bit_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    sixteen = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    round_weights(model, torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), sixteen[name].float())


def test_working_in_fp32_stores_16_bits_and_gives_the_16_bit_models_layers(
    sana_folder: Path, sana_inputs: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, results = [], []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(command, "working_dtype", lambda *_, dtype=dtype: dtype)
        output = sana_folder.parent / str(dtype)
        request = QuantizeRequest(model=str(sana_folder), output=output, format="h8", rank=4, dtype="bf16")
        results.append(quantize_command(request, SilentProgress()))
        with torch.no_grad():
            outputs.append(load_model(output)(*(tensor.bfloat16() for tensor in sana_inputs)))
    header = tensor_header(sana_folder.parent / "torch.float32" / "model.safetensors")[0]
    assert header == tensor_header(sana_folder.parent / "torch.bfloat16" / "model.safetensors")[0]
    assert torch.allclose(*(output.float() for output in outputs), atol=0.02 * outputs[0].abs().max().item())
    for name in ("bytes_before", "bytes_after", "layers_quantized"):
        assert results[0][name] == results[1][name]


def test_only_fp32_tensors_beside_the_layers_change() -> None:
    checkpoint = command.QuantizedCheckpoint({}, {"a": torch.ones(2), "b": torch.arange(3)})
    kept = stored_in(checkpoint, torch.float16)
    assert kept.plain["a"].dtype == torch.float16 and kept.plain["b"].dtype == torch.int64
    assert dataclasses.replace(kept, plain={}) == dataclasses.replace(checkpoint, plain={})
