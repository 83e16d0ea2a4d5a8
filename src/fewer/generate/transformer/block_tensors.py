"""What of a block moves in training, by its part in the block; which blocks have nothing but that."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from fewer.generate.transformer.attention import CrossAttention, LinearAttention
from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.feed_forward import MixFFN
from fewer.kernels.short_attention import MOST_TOKENS
from fewer.kernels.text_attention import LONGEST_TEXT


@dataclass(frozen=True, slots=True)
class BlockTensors:
    """What of a block moves, or the gradients of it. `None` where the model has no such thing."""

    query: Tensor
    key: Tensor
    value: Tensor
    norm_query: Tensor | None
    norm_key: Tensor | None
    out: Tensor
    out_bias: Tensor
    text_query: Tensor
    text_query_bias: Tensor
    text_norm: Tensor | None
    text_out: Tensor
    text_out_bias: Tensor
    inverted: Tensor
    inverted_bias: Tensor
    depth: Tensor
    depth_bias: Tensor
    point: Tensor

    def listed(self) -> list[Tensor | None]:
        """In the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]


COUNT = len(fields(BlockTensors))


def tensors_of(block: SanaBlock) -> BlockTensors:
    """The parameters of a block, but for the modulation table and what makes keys and values of the text."""
    attention, text, ff = block.attn1, block.attn2, block.ff
    return BlockTensors(
        attention.to_q.weight, attention.to_k.weight, attention.to_v.weight,
        getattr(attention.norm_q, "weight", None), getattr(attention.norm_k, "weight", None),
        attention.to_out[0].weight, attention.to_out[0].bias,  # type: ignore[arg-type]
        text.to_q.weight, text.to_q.bias, getattr(text.norm_q, "weight", None),
        text.to_out[0].weight, text.to_out[0].bias,  # type: ignore[arg-type]
        ff.conv_inverted.weight, ff.conv_inverted.bias, ff.conv_depth.weight, ff.conv_depth.bias,  # type: ignore[arg-type]
        ff.conv_point.weight,
    )  # fmt: skip


def fits_whole(blocks: Iterable[nn.Module], tokens: int, length: int) -> bool:
    """Whether `whole_blocks` takes these blocks: plain ones, few tokens, a short text."""
    return tokens <= MOST_TOKENS and length <= LONGEST_TEXT and all(_is_plain(block) for block in blocks)


def _is_plain(block: nn.Module) -> bool:
    """Nothing is attached to it, and heads are of a size that the kernels take."""
    parts = (SanaBlock, MixFFN, LinearAttention, CrossAttention, nn.Sequential, nn.Identity)
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.RMSNorm)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in block.modules())
    if hooked or type(block) is not SanaBlock or any(type(x) not in parts + layers for x in block.modules()):
        return False
    attentions = (block.attn1, block.attn2)
    if any(type(layer) is not nn.Linear for a in attentions for layer in (a.to_q, a.to_k, a.to_v)):
        return False
    dims = [attention.to_q.out_features // attention.heads for attention in attentions]
    return block.attn1.to_q.bias is None and all(dim >= 16 and dim & (dim - 1) == 0 for dim in dims)


def rounded(parameters: Sequence[Tensor | None], dtype: torch.dtype) -> list[BlockTensors]:
    """Copies in the tokens' dtype, made together; q, k and v of a block follow one another in memory."""
    made: list[Tensor | None] = []
    for first in range(0, len(parameters), COUNT):
        query = parameters[first]
        assert query is not None
        joint = torch.empty((3, *query.shape), dtype=dtype, device=query.device)
        rest = parameters[first + 3 : first + COUNT]
        made += [*joint, *(None if p is None else torch.empty_like(p, dtype=dtype) for p in rest)]
    pairs = [
        (to, p.detach()) for to, p in zip(made, parameters, strict=True) if to is not None and p is not None
    ]
    torch._foreach_copy_([to for to, _ in pairs], [p for _, p in pairs])
    return [BlockTensors(*made[first : first + COUNT]) for first in range(0, len(made), COUNT)]  # type: ignore[arg-type]


def as_kinds(gradients: list[Tensor | None], kinds: list[torch.dtype | None]) -> list[Tensor | None]:
    """Each in its parameter's dtype."""
    made = [
        g
        if g is None or g.dtype == kind
        else torch.empty_like(g, dtype=kind, memory_format=torch.contiguous_format)
        for g, kind in zip(gradients, kinds, strict=True)
    ]
    pairs = [
        (to, g)
        for to, g in zip(made, gradients, strict=True)
        if to is not g and to is not None and g is not None
    ]
    if pairs:
        torch._foreach_copy_([to for to, _ in pairs], [g for _, g in pairs])
    return made


def joint_rows(query: Tensor) -> Tensor:
    """q, k and v below one another, of which `query` is the first: see `rounded`."""
    return query.as_strided((3 * query.shape[0], query.shape[1]), (query.shape[1], 1))
