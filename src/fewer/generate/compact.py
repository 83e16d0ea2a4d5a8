"""Weights in one byte each: what a model folder that travels inside a Python package is stored as.

A matrix or convolution becomes whole numbers from -127 to 127 and one scale for each of its rows (output
channels), a quarter of fp32's bytes at an error of about a hundredth of a row's largest value. Everything
smaller stays as it is, in bf16. On opening it is expanded at once: this saves bytes on disk, not in memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewer.core.errors import FileError

SCALE = ".row_scale"
_FEWEST = 4096


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large weights as int8 beside their scales, everything else in bf16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < _FEWEST or not tensor.is_floating_point():
            stored[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(dim=1).clamp(min=1e-12) / 127
        codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        stored[name], stored[name + SCALE] = codes.view(tensor.shape), scale
    return stored


def expand(stored: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Inverse of `compact`, in `dtype` (bf16 by default). A file without scales is returned as it is.

    Raises `FileError` for scales that belong to no weight or do not fit its rows.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        if scale is None:
            tensors[name] = tensor
            continue
        wide = tensor.float().flatten(1) * scale.float()[:, None]
        tensors[name] = wide.view(tensor.shape).to(dtype or torch.bfloat16)
    return tensors


def weight_shapes(stored: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a file, scales left out. Raises `FileError` for scales that fit nothing."""
    shapes = {name: shape for name, shape in stored.items() if not name.endswith(SCALE)}
    for name, shape in stored.items():
        if name.endswith(SCALE):
            owner = shapes.get(name.removesuffix(SCALE), ())
            if len(owner) < 2 or shape != owner[:1]:
                raise FileError(f"{where!r}: {name} has {list(shape)} scales for rows of {list(owner)}")
    return shapes
