"""`attended_int8` on Hopper: the product leaves states of 128 tokens each; who reads them adds them up."""

import torch
from torch import Tensor

from fewer.kernels.triton.linear_attention import launch_apply_parts

MOST_PARTS = 8
"""Of more, the sum is a kernel of its own: every program that reads would make it again."""


def launch_attended(
    codes: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    column_scale: Tensor,
    bias: Tensor | None,
    heads: int,
    batch: int,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """As `reference_attended_int8`, in bf16."""
    from fewer.kernels.triton.hopper_product import ROWS, States, launch_product

    tokens = len(codes) // batch
    sums = torch.empty((tokens // ROWS, batch, heads, 33, 32), dtype=torch.float32, device=codes.device)
    scales = (row_scale.contiguous(), column_scale.contiguous())
    query = launch_product(
        codes.contiguous(), weight.contiguous(), scales, bias, None, None, 0, states=States(sums, tokens)
    )
    parts = sums if len(sums) <= MOST_PARTS else sums.sum(0, keepdim=True)
    read = launch_apply_parts(query.view(batch, tokens, heads, 32), parts, eps)
    return read.view(len(codes), -1).to(dtype)
