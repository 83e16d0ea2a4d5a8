"""Operators on tensors: each with a plain reference, a registered `fewer::` operator and a Triton version.

The dispatcher chooses by device: a CPU tensor takes the reference, a CUDA tensor the Triton kernel of the
same name under `kernels/triton/`. No file here knows a model.
"""

import importlib
from typing import Any

_PUBLIC = {
    "linear_attention": "fewer.kernels.linear_attention",
    "modulated_norm": "fewer.kernels.norms",
    "rms_norm_add": "fewer.kernels.norms",
    "quantize_rows": "fewer.kernels.quantize",
    "expand_h8": "fewer.kernels.h8",
    "pack_h8": "fewer.kernels.h8",
    "int8_linear": "fewer.kernels.h8",
    "depthwise_gated": "fewer.kernels.depthwise",
    "depthwise_per_sample": "fewer.kernels.depthwise_per_sample",
    "upsample_add": "fewer.kernels.resample",
}

__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fewer.kernels' has no attribute {name!r}")
