"""The two attentions of a block: linear over the image tokens, softmax from image tokens to text tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, relu, scaled_dot_product_attention

from fewer.kernels.short_attention import MOST_TOKENS, short_attention
from fewer.kernels.text_attention import LONGEST_TEXT, text_attention

_FP16_LARGEST = 65504.0


def relu_linear_attention(
    query: Float[Tensor, "*batch tokens head_dim"],
    key: Float[Tensor, "*batch others head_dim"],
    value: Float[Tensor, "*batch others value_dim"],
    eps: float = 1e-15,
    exact: bool = False,
) -> Float[Tensor, "*batch tokens value_dim"]:
    """Attention with weights relu(q)·relu(k), normalised over the keys, in time linear in the tokens.

    Section 2.2 of arXiv 2410.10629: the sum over keys of [v; 1] kᵀ is a small state, and one row of ones
    gives the normaliser. Both products run in fp32 whatever comes in: fp16 sums overflow at 16k tokens.
    A query that is nowhere positive yields zeros.
    """
    return read_state(query, attention_state(key, value, exact), eps)


def attention_state(
    key: Float[Tensor, "*batch others head_dim"],
    value: Float[Tensor, "*batch others value_dim"],
    exact: bool = False,
) -> Float[Tensor, "*batch head_dim value_dim_and_one"]:
    """The sum over keys, in fp32 (fp64 stays fp64). States of disjoint keys add up to that of their union.

    `exact` sums in fp64, so that after the rounding in `read_state` the order of the keys has left no trace.
    """
    wide = torch.float64 if exact else torch.promote_types(key.dtype, torch.float32)
    return relu(key).to(wide).transpose(-1, -2) @ pad(value.to(wide), (0, 1), value=1.0)


def read_state(
    query: Float[Tensor, "*batch tokens head_dim"],
    state: Float[Tensor, "*batch head_dim value_dim_and_one"],
    eps: float = 1e-15,
) -> Float[Tensor, "*batch tokens value_dim"]:
    """What each query reads from a state."""
    state = state.to(torch.promote_types(query.dtype, torch.float32))
    summed = relu(query).to(state.dtype) @ state
    return summed[..., :-1] / (summed[..., -1:] + eps)


class LinearAttention(nn.Module):
    """Self-attention over the image tokens. Attribute names are those of the published checkpoints."""

    def __init__(
        self, width: int, heads: int, head_dim: int, *, qk_norm: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(width, inner, bias=bias)
        self.to_v = nn.Linear(width, inner, bias=bias)
        # Across all heads together and before the ReLU, unlike the per-head norm of other models.
        self.norm_q = nn.RMSNorm(inner, eps=1e-5) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(inner, eps=1e-5) if qk_norm else nn.Identity()
        self.to_out = nn.Sequential(nn.Linear(inner, width))
        self.fused = False
        """Training on a GPU: one kernel forward and one backward. The same result, up to rounding."""

    @property
    def exact(self) -> bool:
        """Whether sums leave no trace of their order: where layers round to few bits and would amplify it."""
        return hasattr(self.to_k, "fuse")

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Order-independent: permuting the tokens permutes the result."""
        if self.fused and tokens.shape[1] <= MOST_TOKENS:
            value = self.to_v(tokens)
            both = (self.norm_q(self.to_q(tokens)), self.norm_k(self.to_k(tokens)))
            apart = (part.to(value.dtype).unflatten(2, (self.heads, -1)) for part in (*both, value))
            return self.to_out(short_attention(*apart).flatten(2))
        query = _split(self.norm_q(self.to_q(tokens)), self.heads)
        key = _split(self.norm_k(self.to_k(tokens)), self.heads)
        value = _split(self.to_v(tokens), self.heads)
        attended = relu_linear_attention(query, key, value, exact=self.exact)
        result = self.to_out(_merge(attended).to(tokens.dtype))
        if result.dtype == torch.float16:
            result = result.clamp(-_FP16_LARGEST, _FP16_LARGEST)
        return result


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What one cross-attention needs of the text. Depends on neither the step nor the image: made once."""

    keys: Float[Tensor, "batch heads length head_dim"]
    values: Float[Tensor, "batch heads length head_dim"]
    alone: int = 0
    """So many leading texts are one token, the first: the softmax over one is 1, whatever the query."""
    folded: Float[Tensor, "words_of_heads dim"] | None = None
    """Values of the one prompt behind them through the output layer; see `drawing.fold_text`."""


class CrossAttention(nn.Module):
    """Softmax attention from image tokens to text tokens, with the text's half computed beforehand."""

    def __init__(self, width: int, heads: int, head_dim: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(width, inner)
        self.to_v = nn.Linear(width, inner)
        self.norm_q = nn.RMSNorm(inner, eps=1e-5) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(inner, eps=1e-5) if qk_norm else nn.Identity()
        self.to_out = nn.Sequential(nn.Linear(inner, width))
        self.fused = False
        """Training on a GPU: one kernel forward and one backward. The same result, up to rounding."""

    def prepare(self, text: Float[Tensor, "batch length dim"]) -> KeysValues:
        """Keys and values of projected text."""
        keys = _split(self.norm_k(self.to_k(text)), self.heads)
        return KeysValues(keys, _split(self.to_v(text), self.heads))

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        text: KeysValues,
        mask: Bool[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """`mask` is true where a text token counts; None when all do."""
        if text.alone:  # the empty negative prompt of guidance: no query to ask, one row to project
            lone = self.to_out(_merge(text.values[: text.alone, :, :1])).expand(-1, tokens.shape[1], -1)
            if text.alone == len(tokens):
                return lone
            rest = KeysValues(text.keys[text.alone :], text.values[text.alone :])
            others = None if mask is None else mask[text.alone :]
            return torch.cat([lone, self(tokens[text.alone :], rest, others)])
        if self.fused and mask is not None and text.keys.shape[2] <= LONGEST_TEXT:
            query = self.norm_q(self.to_q(tokens)).unflatten(2, (self.heads, -1))
            apart = (part.transpose(1, 2).to(text.values.dtype) for part in (text.keys, text.values))
            return self.to_out(text_attention(query.to(text.values.dtype), *apart, mask).flatten(2))
        query = _split(self.norm_q(self.to_q(tokens)), self.heads)
        visible = None if mask is None else mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, text.keys, text.values, attn_mask=visible)
        return self.to_out(_merge(attended))


def _split(
    tokens: Float[Tensor, "batch tokens inner"], heads: int
) -> Float[Tensor, "batch {heads} tokens head_dim"]:
    return rearrange(tokens, "batch tokens (heads dim) -> batch heads tokens dim", heads=heads)


def _merge(tokens: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens inner"]:
    return rearrange(tokens, "batch heads tokens dim -> batch tokens (heads dim)")
