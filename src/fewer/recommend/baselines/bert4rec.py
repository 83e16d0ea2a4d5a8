"""BERT4Rec (Sun et al. 2019): bidirectional attention fills in hidden items; a mask stands for the next."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fewer.recommend.baselines.transformer import AttentionBlock, TransformerShape, allowed_pairs, initialise
from fewer.recommend.dropout import Dropout


class BERT4Rec(nn.Module):
    """`item_embedding` has V + 2 rows: padding, the items, and the mask."""

    learns_from: Literal["cloze"] = "cloze"

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape, self.mask_token = shape, shape.items + 1
        self.item_embedding = nn.Embedding(shape.items + 2, shape.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(shape.length + 1, shape.dim)
        self.dropout = Dropout(shape.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.dim)
        self.head_norm = nn.LayerNorm(shape.dim)
        self.apply(initialise)

    def _rows(
        self, items: Int[Tensor, "batch length"], last_only: bool = False
    ) -> Float[Tensor, "batch kept dim"]:
        most = self.shape.length + 1
        slots = torch.arange(most - items.shape[1], most, device=items.device)
        rows = self.dropout(self.item_embedding(items) + self.position_embedding(slots))
        allowed = allowed_pairs(items, causal=False)
        for depth, block in enumerate(self.blocks, start=1):
            rows = block(rows, allowed, last_only=last_only and depth == len(self.blocks))
        return self.norm(rows)

    def encode_masked(
        self, items: Int[Tensor, "batch length"], hidden: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "masked dim"]:
        """Vectors at the hidden places of whole sequences (at most length + 1 items)."""
        rows = self._rows(items.masked_fill(hidden, self.mask_token))
        return self.head_norm(functional.gelu(self.head(rows[hidden])))

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        asked = functional.pad(histories[:, -self.shape.length :], (0, 1), value=self.mask_token)
        return self.head_norm(functional.gelu(self.head(self._rows(asked, last_only=True)[:, -1])))
