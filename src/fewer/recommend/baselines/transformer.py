"""The pre-norm transformer blocks that SASRec, gSASRec and BERT4Rec share."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.errors import ConfigError
from fewer.recommend.dropout import Dropout


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Sizes of an attention baseline."""

    items: int
    length: int = 50
    dim: int = 64
    layers: int = 2
    heads: int = 2
    hidden: int = 256
    """Width of the feed-forward layer."""
    dropout: float = 0.2
    full_histories: bool = False
    """No history has padding: attention runs its causal kernel without a mask (SASRec)."""


class AttentionBlock(nn.Module):
    """Self-attention and a feed-forward layer, each with its own norm and residual."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        if shape.dim % shape.heads:
            raise ConfigError(f"dim {shape.dim} must be a multiple of the {shape.heads} heads of attention")
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.dim)
        self.queries_keys_values = nn.Linear(shape.dim, 3 * shape.dim)
        self.output = nn.Linear(shape.dim, shape.dim)
        self.feed_norm = nn.LayerNorm(shape.dim)
        self.widen = nn.Linear(shape.dim, shape.hidden)
        self.narrow = nn.Linear(shape.hidden, shape.dim)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self,
        rows: Float[Tensor, "batch length dim"],
        allowed: Bool[Tensor, "batch 1 length length"] | None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch kept dim"]:
        """Without `allowed`, every row sees itself and all before it. With `last_only` all rows are looked
        at, but only the last one is computed."""
        kept, dim = 1 if last_only else rows.shape[1], rows.shape[2]
        normed, weights, biases = (
            self.attention_norm(rows), self.queries_keys_values.weight, self.queries_keys_values.bias
        )  # fmt: skip
        if last_only:
            asked = functional.linear(normed[:, -1:], weights[:dim], biases[:dim])
            queries = rearrange(asked, "b l (h d) -> b h l d", h=self.heads)
            seen = functional.linear(normed, weights[dim:], biases[dim:])
            keys, values = rearrange(seen, "b l (two h d) -> two b h l d", two=2, h=self.heads)
            allowed = None if allowed is None else allowed[:, :, -1:].contiguous()
        else:
            joined = functional.linear(normed, weights, biases)
            queries, keys, values = rearrange(
                joined, "b l (three h d) -> three b h l d", three=3, h=self.heads
            )
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=allowed,
            dropout_p=self.dropout.rate if self.training else 0.0,
            is_causal=allowed is None and not last_only,
        )
        rows = rows[:, -kept:] + self.dropout(self.output(rearrange(mixed, "b h l d -> b l (h d)")))
        return rows + self.dropout(
            self.narrow(self.dropout(functional.gelu(self.widen(self.feed_norm(rows)))))
        )


def allowed_pairs(items: Int[Tensor, "batch length"], causal: bool) -> Bool[Tensor, "batch 1 length length"]:
    """Who may look at whom: real items, earlier ones only if causal; everyone may look at itself."""
    length = items.shape[1]
    allowed = (items > 0)[:, None, None, :].expand(-1, 1, length, -1)
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    return allowed | torch.eye(length, dtype=torch.bool, device=items.device)


def initialise(module: nn.Module) -> None:
    """Normal, std 0.02; zero biases; the padding vector stays zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
