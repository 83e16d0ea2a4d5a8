"""Queries, keys and values in 8 bits together with the linear attention that they are for, as one operator.

All that this attention needs of keys and values is a small sum over the tokens (`linear_attention`). Where
the product that makes them can add it up itself, they are never written, nor read again (svdquant §2.9, K2).
"""

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.kernels.h8 import reference_int8_linear
from fewer.kernels.linear_attention import reference_linear_attention

HEAD = 32
"""Numbers of a head."""
TOKENS = 128
"""Rows of a tile, which must all be of one picture."""


def attended_int8(
    codes: Int8[Tensor, "rows dim"],
    row_scale: Float[Tensor, " rows"],
    weight: Int8[Tensor, "outputs dim"],
    column_scale: Float[Tensor, " outputs"],
    bias: Float[Tensor, " outputs"] | None,
    heads: int,
    batch: int,
    eps: float = 1e-15,
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "rows inner"]:
    """Linear attention of batches that follow one another in the rows, given the codes of its input.

    Outputs are in the order of `order_of_heads`; where `fits_attended`.
    """
    return torch.ops.fewer.attended_int8(
        codes, row_scale, weight, column_scale, bias, heads, batch, eps, dtype
    )


def order_of_heads(heads: int) -> Tensor:
    """Which row of [queries; keys; values], `heads` · 32 of each, stands where: two heads' keys and values
    side by side, and all queries at the end."""
    query, key, value = torch.arange(3 * heads * HEAD).view(3, heads // 2, 2 * HEAD).unbind(0)
    return torch.cat([torch.cat([key, value], dim=1).flatten(), query.flatten()])


def fits_attended(rows: Tensor, heads: int, batch: int) -> bool:
    """Whether the operator takes this many heads (of 32) and rows here."""
    if heads % 2 or not len(rows):
        return False
    if not rows.is_cuda:
        return True
    from fewer.kernels.triton.hopper import has_hopper

    return has_hopper(rows.device) and len(rows) % (TOKENS * batch) == 0 and rows.dtype == torch.bfloat16


def reference_attended_int8(
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
    """Plain torch: the oracle."""
    arguments = (codes, row_scale, weight, column_scale, bias, None, None, "none", None, None, dtype)
    joint = torch.empty(len(codes), len(weight), dtype=dtype, device=codes.device)
    joint[:, order_of_heads(heads).to(codes.device)] = reference_int8_linear(*arguments)
    parts = joint.view(batch, -1, 3, heads, HEAD).unbind(2)
    return reference_linear_attention(*parts, eps).flatten(2).flatten(0, 1)


_operator = torch.library.custom_op(
    "fewer::attended_int8", reference_attended_int8, mutates_args=(), device_types="cpu"
)


@_operator.register_fake
def _(codes: Tensor, row_scale: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return codes.new_empty((codes.shape[0], weight.shape[0] // 3), dtype=others[-1])


@_operator.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from fewer.kernels.triton.attended import launch_attended

    return launch_attended(*arguments)
