"""How a CPU draws the blocks of a plain transformer: the numbers of `SanaBlock`, in fewer passes over memory.

A third of a step goes into what lies between the products. Here modulation and norm are one operation, gates
are added where they are multiplied, intermediate results are changed in place, and heads are read where the
products left them. Two products are smaller: guidance asks the same first attention twice, and the text's
values go through the output layer once a prompt. Adapters add to the products; one at strength 0 changes no
bit. For layers that anything else was attached to, with gradients, or for pictures at different times, the
blocks run themselves.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, silu
from torch.nn.modules.module import _has_any_global_hook

from fewer.generate.lora import AdaptedLayer, rows_through, whole_weight
from fewer.generate.transformer.attention import CrossAttention, KeysValues, LinearAttention
from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.feed_forward import MixFFN
from fewer.generate.transformer.prepared_text import PreparedText

_PLAIN = frozenset(
    {
        SanaBlock, LinearAttention, CrossAttention, MixFFN, nn.Linear, nn.Conv2d, nn.LayerNorm, nn.RMSNorm,
        nn.Identity, nn.Sequential, AdaptedLayer, nn.ParameterDict,
    }
)  # fmt: skip


def draws_on_a_cpu(blocks: nn.ModuleList, like: Tensor) -> bool:
    """Whether the blocks are as they were built, in fp32 on a CPU, and nobody wants gradients or looks on."""
    if like.device.type != "cpu" or like.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return not _has_any_global_hook() and all(
        _as_built(module) for module in blocks.modules() if module is not blocks
    )


def _as_built(module: nn.Module) -> bool:
    seen = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return type(module) in _PLAIN and not seen and module._compiled_call_impl is None


def fold_text(blocks: nn.ModuleList, text: PreparedText) -> PreparedText:
    """Adds to each block's text what its output layer makes of the values, where that saves work.

    Of one prompt behind empty ones (guidance's), with fewer than a head's channels of words.
    """
    first = text.blocks[0]
    prompts, length, dim = first.keys.shape[0] - first.alone, first.keys.shape[2], first.keys.shape[3]
    if prompts != 1 or length >= dim or not (text.mask is None or bool(text.mask[first.alone :].all())):
        return text
    return replace(
        text,
        blocks=tuple(
            replace(one, folded=_through(block.attn2, one.values[one.alone]))
            for block, one in zip(blocks, text.blocks, strict=True)
        ),
    )


def _through(attention: CrossAttention, values: Tensor) -> Tensor:
    """(heads, words, head_dim) values -> (heads · words, dim): softmax weights times this is the output."""
    weight = whole_weight(attention.to_out[0]).unflatten(1, (attention.heads, -1))
    return torch.einsum("hwd,ohd->hwo", values, weight).flatten(0, 1)


def draw_blocks(
    blocks: nn.ModuleList,
    tokens: Float[Tensor, "batch tokens dim"],
    modulation: Float[Tensor, "batch 6 dim"],
    text: PreparedText,
    grid: tuple[int, int],
) -> Float[Tensor, "batch tokens dim"]:
    """All blocks, for pictures at one time: rows of `modulation` are alike."""
    half = len(tokens) // 2
    twins = 2 * half == len(tokens) > 0 and torch.equal(tokens[:half], tokens[half:])
    for block, words in zip(blocks, text.blocks, strict=True):
        assert isinstance(block, SanaBlock)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.scale_shift_table + modulation[0]
        asked = tokens[:half] if twins else tokens
        attended = _attend(block.attn1, _normed(block.norm1, asked, scale_1, shift_1))
        tokens = torch.addcmul(asked, gate_1, attended)
        if twins:  # until a text has been read, both halves of guidance are the same
            tokens, twins = tokens.repeat(2, 1, 1), False
        tokens = _read_text(block.attn2, tokens, words, text.mask)
        tokens = tokens.addcmul_(gate_2, _mix(block.ff, _normed(block.norm2, tokens, scale_2, shift_2), grid))
    return tokens


def _normed(norm: nn.LayerNorm, tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return layer_norm(tokens, norm.normalized_shape, 1 + scale, shift, norm.eps)


def _attend(attention: LinearAttention, tokens: Tensor) -> Tensor:
    """ReLU linear attention; heads stay side by side in memory."""
    heads, count = attention.heads, tokens.shape[1]
    query = relu(attention.norm_q(attention.to_q(tokens)), inplace=True)
    key = relu(attention.norm_k(attention.to_k(tokens)), inplace=True)
    value = attention.to_v(tokens)
    read = torch.empty_like(query)
    for q, k, v, out in zip(query, key, value, read, strict=True):
        q, k, v, out = (part.view(count, heads, -1).transpose(0, 1) for part in (q, k, v, out))
        state = torch.cat([k.transpose(1, 2) @ v, k.sum(dim=1)[:, :, None]], dim=2)
        found = q @ state
        torch.div(found[:, :, :-1], found[:, :, -1:] + 1e-15, out=out)
    return attention.to_out(read)


def _read_text(attention: CrossAttention, tokens: Tensor, text: KeysValues, mask: Tensor | None) -> Tensor:
    """Adds what the tokens read of the text, in place."""
    if text.folded is None:
        return tokens.add_(attention(tokens, text, mask))
    alone, heads, last = text.alone, attention.heads, attention.to_out[0]
    if alone:
        only = text.values[:alone, :, 0].flatten(1)  # the softmax over one word is 1
        tokens[:alone].add_(rows_through(last, only)[:, None])
    asking = tokens[alone]
    query = attention.norm_q(attention.to_q(asking)).unflatten(1, (heads, -1)).transpose(0, 1)
    keys = text.keys[alone].transpose(1, 2) * query.shape[2] ** -0.5
    weights = torch.softmax(query @ keys, dim=2).transpose(0, 1).flatten(1)
    bias = last.layer.bias if isinstance(last, AdaptedLayer) else last.bias
    if bias is not None:
        asking.add_(bias)
    asking.addmm_(weights, text.folded)
    return tokens


def _mix(feed_forward: MixFFN, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    hidden = silu(rows_through(feed_forward.conv_inverted, tokens), inplace=True)
    image = hidden.unflatten(1, grid).permute(0, 3, 1, 2)  # a view, channels last
    mixed = feed_forward.conv_depth(image).permute(0, 2, 3, 1).flatten(1, 2)
    value, gate = mixed.chunk(2, dim=2)
    value.mul_(silu(gate, inplace=True))
    return rows_through(feed_forward.conv_point, value)
