"""A block of a Sana transformer forward, and all its gradients backward, written out.

Queries, keys and values are one product, and so is their gradient; a gated sum, the norm and the modulation
behind it are one pass in each direction; what a product's gradient is added to is its own first operand;
gradients of biases come out of passes that are made anyway.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewer.generate.transformer.block_tensors import BlockTensors, joint_rows
from fewer.kernels.gated_depthwise import gated_depthwise, gated_depthwise_backward
from fewer.kernels.joint_attention import (
    inverse_roots,
    joint_attention,
    joint_attention_backward,
    norms_backward_,
)
from fewer.kernels.joint_text_attention import joint_text_attention, joint_text_attention_backward
from fewer.kernels.modulation import gated_norm, gated_norm_backward

EPSILON = 1e-5
"""Of the RMS norms of queries and keys."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the blocks have in common."""

    grid: tuple[int, int]
    heads: int
    text_heads: int
    eps: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What a block's backward pass needs of its forward pass."""

    start: Tensor
    read: Tensor
    joint: Tensor
    inverse: Tensor | None
    states: Tensor
    attended: Tensor
    first: Tensor
    middle: Tensor
    text_query: Tensor
    text_inverse: Tensor | None
    text_attended: Tensor
    last: Tensor
    last_read: Tensor
    wide: Tensor
    mixed: Tensor
    update: Tensor


def forward_block(
    w: BlockTensors, shape: Shape, total: Tensor, read: Tensor, modulation: Tensor, keys: Tensor,
    values: Tensor, visible: Tensor,
) -> Kept:  # fmt: skip
    batch, tokens, dim = total.shape
    rows = batch * tokens
    joint = read.view(rows, dim) @ joint_rows(w.query).t()
    inner = joint.shape[1] // 3
    inverse = None if w.norm_query is None else inverse_roots(joint, inner, 2, EPSILON)
    joint = joint.view(batch, tokens, -1)
    attended, states = joint_attention(joint, inverse, _present(w.norm_query, w.norm_key), shape.heads)
    first = torch.addmm(w.out_bias, attended.view(rows, inner), w.out.t()).view_as(total)
    middle, _ = gated_norm(total, first, modulation[2], None, None)
    text_query = torch.addmm(w.text_query_bias, middle.view(rows, dim), w.text_query.t())
    text_inverse = (
        None if w.text_norm is None else inverse_roots(text_query, text_query.shape[1], 1, EPSILON)[:, 0]
    )
    text_query = text_query.view(batch, tokens, -1)
    text_attended = joint_text_attention(
        text_query, text_inverse, w.text_norm, keys, values, visible, shape.text_heads
    )
    second = torch.addmm(w.text_out_bias, text_attended.view(rows, -1), w.text_out.t()).view_as(total)
    last, last_read = gated_norm(middle, second, None, modulation[3], modulation[4], shape.eps)
    wide = torch.addmm(w.inverted_bias, last_read.view(rows, dim), w.inverted.flatten(1).t())
    wide = wide.view(batch, *shape.grid, -1)
    mixed = gated_depthwise(wide, w.depth, w.depth_bias, True)
    update = (mixed.view(rows, -1) @ w.point.flatten(1).t()).view_as(total)
    return Kept(
        total, read, joint, inverse, states, attended, first, middle, text_query, text_inverse,
        text_attended, last, last_read, wide, mixed, update,
    )  # fmt: skip


def backward_block(
    w: BlockTensors, kept: Kept, shape: Shape, g: Tensor, g_update: Tensor, modulation: Tensor,
    texts: tuple[Tensor, Tensor, Tensor, Tensor], visible: Tensor, of_modulation: Tensor,
) -> tuple[Tensor, Tensor, BlockTensors]:  # fmt: skip
    """Gradients of the block's start but for its first norm, of what that norm made, of the parameters."""
    batch, tokens = g.shape[:2]
    flat = (batch * tokens, -1)
    above = g_update.view(flat)
    g_mixed = (above @ w.point.flatten(1)).view_as(kept.mixed)
    of_point = above.t() @ kept.mixed.view(flat)
    g_wide, of_depth, of_depth_bias, of_inverted_bias = gated_depthwise_backward(
        g_mixed, kept.wide, w.depth, w.depth_bias, True
    )
    del g_mixed
    g_last = (g_wide.view(flat) @ w.inverted.flatten(1)).view_as(g)
    of_inverted = g_wide.view(flat).t() @ kept.last_read.view(flat)
    del g_wide
    g, _, sums = gated_norm_backward(g, g_last, kept.last, None, None, modulation[4], shape.eps)
    of_modulation[3:5], of_text_out_bias = sums[:2], sums[3].sum(0)

    rows = g.view(flat)
    of_text_out = rows.t() @ kept.text_attended.view(flat)
    g_query = joint_text_attention_backward(
        (rows @ w.text_out).view(batch, tokens, -1), kept.text_query, kept.text_inverse, w.text_norm,
        *texts[:2], visible, shape.text_heads, texts[2:],
    ).view(flat)  # fmt: skip
    of_text_norm, of_text_query_bias = None, None
    if w.text_norm is not None and kept.text_inverse is not None:
        of_norms, sums = norms_backward_(
            g_query, kept.text_query.view(flat), kept.text_inverse[:, None], (w.text_norm,)
        )
        of_text_norm, of_text_query_bias = of_norms[0], sums[0]
    else:
        of_text_query_bias = g_query.sum(0)
    of_text_query = g_query.t() @ kept.middle.view(flat)
    g = torch.addmm(rows, g_query, w.text_query).view_as(g)

    _, g_first, sums = gated_norm_backward(g, None, kept.first, kept.first, modulation[2], None)
    of_modulation[2], of_out_bias = sums[2], sums[3].sum(0)
    of_out = g_first.view(flat).t() @ kept.attended.view(flat)
    g_attended = (g_first.view(flat) @ w.out).view_as(kept.attended)
    norms = _present(w.norm_query, w.norm_key)
    g_joint = joint_attention_backward(g_attended, kept.joint, kept.inverse, norms, kept.states).view(flat)
    of_norms = [None, None]
    if kept.inverse is not None:
        of_norms = norms_backward_(g_joint, kept.joint.view(flat), kept.inverse, norms)[0].unbind(0)
    of_query, of_key, of_value = (g_joint.t() @ kept.read.view(flat)).chunk(3)
    g_read = (g_joint @ joint_rows(w.query)).view_as(g)
    return g, g_read, BlockTensors(
        of_query, of_key, of_value, *of_norms, of_out, of_out_bias, of_text_query, of_text_query_bias,
        of_text_norm, of_text_out, of_text_out_bias, of_inverted.view_as(w.inverted), of_inverted_bias,
        of_depth, of_depth_bias, of_point.view_as(w.point),
    )  # fmt: skip


def _present(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)
