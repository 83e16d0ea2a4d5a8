"""All blocks of a Sana transformer as one function with its own backward pass: for training on a GPU.

The same numbers as calling the blocks one by one; what differs is how often memory is passed
(`block_passes`). Tensors keep the dtype of the tokens, weights are rounded to it once a step, and their
gradients return in the weights' own dtype.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.block_passes import EPSILON, Kept, Shape, backward_block, forward_block
from fewer.generate.transformer.block_tensors import as_kinds, rounded, tensors_of
from fewer.kernels.modulation import gated_norm, gated_norm_backward


def whole_blocks(
    blocks: Sequence[SanaBlock],
    tokens: Float[Tensor, "batch tokens dim"],
    modulation: Float[Tensor, "batch 6 dim"],
    text: Float[Tensor, "batch length dim"],
    visible: Bool[Tensor, "batch length"],
    last: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    grid: tuple[int, int],
) -> Float[Tensor, "batch tokens dim"]:
    """The tokens after all blocks and the last norm, whose shift and scale are `last`.

    `modulation` is what the blocks share, `text` the projected text, `visible` says which words count.
    """
    first = blocks[0]
    shape = Shape(grid, first.attn1.heads, first.attn2.heads, first.norm1.eps)
    tables = torch.stack([block.scale_shift_table for block in blocks])
    modulations = (tables[:, None] + modulation[None]).transpose(1, 2).contiguous()
    keys, values = _keys_values(blocks, text.to(tokens.dtype))
    parameters = [tensor for block in blocks for tensor in tensors_of(block).listed()]
    return _WholeBlocks.apply(
        shape, visible, tokens.contiguous(), modulations, keys, values, *last, *parameters
    )  # type: ignore[no-any-return]


def _keys_values(blocks: Sequence[SanaBlock], text: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, length, blocks, inner) of all blocks, one product each."""

    def of_all(layers: list[nn.Linear]) -> Tensor:
        weight, bias = torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers])
        made = nn.functional.linear(text, weight.to(text.dtype), bias.to(text.dtype))
        return made.unflatten(2, (len(layers), -1))

    keys, values = of_all([b.attn2.to_k for b in blocks]), of_all([b.attn2.to_v for b in blocks])
    if isinstance(blocks[0].attn2.norm_k, nn.RMSNorm):
        weight = torch.stack([block.attn2.norm_k.weight for block in blocks]).to(keys.dtype)  # type: ignore[arg-type]
        keys = nn.functional.rms_norm(keys, keys.shape[3:], eps=EPSILON) * weight
    return keys.to(text.dtype), values


class _WholeBlocks(torch.autograd.Function):
    """See `whole_blocks`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx,
        shape: Shape, visible: Tensor, tokens: Tensor, modulations: Tensor, keys: Tensor, values: Tensor,
        shift: Tensor, scale: Tensor, *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        blocks = rounded(parameters, tokens.dtype)
        kept: list[Kept] = []
        with torch.autocast(tokens.device.type, enabled=False):
            total, read = gated_norm(tokens, None, None, modulations[0, 0], modulations[0, 1], shape.eps)
            for index, block in enumerate(blocks):
                ours = modulations[index]
                kept.append(
                    forward_block(
                        block, shape, total, read, ours, keys[:, :, index], values[:, :, index], visible
                    )
                )
                following = (shift, scale) if index + 1 == len(blocks) else modulations[index + 1, :2]
                total, read = gated_norm(kept[-1].last, kept[-1].update, ours[5], *following, shape.eps)
        ctx.kept, ctx.blocks, ctx.shape = kept, blocks, shape  # type: ignore[attr-defined]
        ctx.kinds = [None if p is None else p.dtype for p in parameters]  # type: ignore[attr-defined]
        ctx.save_for_backward(visible, modulations, keys, values, scale, total)
        return read

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g_read: Tensor) -> tuple:  # type: ignore[override]
        visible, modulations, keys, values, scale, total = ctx.saved_tensors  # type: ignore[attr-defined]
        kept, blocks, shape = ctx.kept, ctx.blocks, ctx.shape  # type: ignore[attr-defined]
        of_modulations = torch.empty_like(modulations, dtype=torch.promote_types(total.dtype, torch.float32))
        of_keys, of_values = torch.empty_like(keys), torch.empty_like(values)
        found: list[list[Tensor | None]] = []
        ours, block = modulations[-1], kept[-1]
        g, g_update, sums = gated_norm_backward(
            torch.zeros_like(total), g_read.contiguous(), total, block.update, ours[5], scale, shape.eps
        )
        of_last = sums[:2].clone()
        for index in reversed(range(len(blocks))):
            of_modulations[index, 5] = sums[2]
            block, ours = kept.pop(), modulations[index]
            texts = keys[:, :, index], values[:, :, index], of_keys[:, :, index], of_values[:, :, index]
            g, g_read, of_block = backward_block(
                blocks[index], block, shape, g, g_update, ours, texts, visible, of_modulations[index]
            )
            found.append(of_block.listed())
            before = kept[-1].update if index else None
            gate = modulations[index - 1, 5] if index else None
            g, g_update, sums = gated_norm_backward(g, g_read, block.start, before, gate, ours[1], shape.eps)
            of_modulations[index, :2] = sums[:2]
        gradients = [tensor for listed in reversed(found) for tensor in listed]
        return (
            None, None, g, of_modulations.to(modulations.dtype), of_keys, of_values,
            of_last[0].to(scale.dtype), of_last[1].to(scale.dtype), *as_kinds(gradients, ctx.kinds),  # type: ignore[attr-defined]
        )  # fmt: skip
