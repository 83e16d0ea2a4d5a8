"""What a model is held in while it is quantized: on a CPU without 16-bit units, fp32 with 16-bit values.

Such a CPU multiplies bf16 several times slower than fp32, and calibration is nothing but running the model.
The weights are rounded to 16 bits first and everything is stored in 16 bits afterwards, so the result is that
of the 16-bit model; it takes twice the memory meanwhile, and is left out where that is not there.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.core.device import available_memory
from fewer.quantize.checkpoint import QuantizedCheckpoint

_UNITS = {
    torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    torch.float16: ("_is_amx_fp16_supported",),
}


def working_dtype(model: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """fp32 if `device` would only emulate `dtype` and has room for twice the weights, otherwise `dtype`."""
    if device.type != "cpu" or dtype not in _UNITS or _has_units(dtype):
        return dtype
    stored = sum(path.stat().st_size for path in Path(model).rglob("*.safetensors"))
    return torch.float32 if 4 * stored <= available_memory(device) else dtype


def _has_units(dtype: torch.dtype) -> bool:
    return any(getattr(torch.cpu, name, lambda: False)() for name in _UNITS[dtype])


@torch.no_grad()
def round_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Every parameter and buffer as `dtype` would hold it, in place and in its own format."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))


def stored_in(checkpoint: QuantizedCheckpoint, dtype: torch.dtype) -> QuantizedCheckpoint:
    """The checkpoint with the tensors beside the quantized layers in `dtype`."""
    plain: dict[str, Tensor] = {
        name: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
        for name, tensor in checkpoint.plain.items()
    }
    return dataclasses.replace(checkpoint, plain=plain)
