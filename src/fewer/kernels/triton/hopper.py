"""When the kernels for Hopper run: the door to `hopper_product`.

The kernels are written in Gluon, Triton's lower level; where that or the GPU is missing, the portable
kernels do the work.
"""

import functools
import importlib.util

import torch
from torch import Tensor

ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2}
RANKS = (16, 32, 64)


@functools.cache
def has_hopper(device: torch.device) -> bool:
    """Whether it is a GPU of compute capability 9.0 and Triton can address it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    return importlib.util.find_spec("triton.experimental.gluon") is not None


def fits_hopper(
    rows: Tensor, weight: Tensor, projected: Tensor | None = None, up: Tensor | None = None
) -> bool:
    """Whether `hopper_product` takes these operands: copies of tiles need rows of whole 16 bytes."""
    if not has_hopper(rows.device) or not rows.shape[0]:
        return False
    if rows.dtype not in (torch.int8, torch.bfloat16) or weight.dtype != rows.dtype:
        return False
    if rows.shape[1] * rows.element_size() % 16 or weight.shape[0] % 8:
        return False
    if any(tensor.is_contiguous() and tensor.data_ptr() % 16 for tensor in (rows, weight)):
        return False  # a view from the middle of other memory
    if projected is None or up is None:
        return True
    return projected.dtype == up.dtype == torch.bfloat16 and up.shape[1] in RANKS


def hopper_product(
    rows: Tensor,
    weight: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    projected: Tensor | None = None,
    up: Tensor | None = None,
    activation: str = "none",
    out: Tensor | None = None,
) -> Tensor:
    """activation((rows weightᵀ) · scales + projected upᵀ + bias) in bf16, for int8 or bf16 operands.

    `out`, contiguous bf16, takes the result.
    """
    from fewer.kernels.triton.hopper_product import launch_product

    low_rank = (None, None) if projected is None or up is None else (projected.contiguous(), up.contiguous())
    return launch_product(
        rows.contiguous(), weight.contiguous(), scales, bias, *low_rank, ACTIVATIONS[activation], out
    )
