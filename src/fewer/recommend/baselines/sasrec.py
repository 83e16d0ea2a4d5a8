"""SASRec (Kang and McAuley 2018) under any loss: one negative (original), gBCE (gSASRec), all items."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.recommend.baselines.transformer import AttentionBlock, TransformerShape, allowed_pairs, initialise
from fewer.recommend.dropout import Dropout


class SASRec(nn.Module):
    """Causal self-attention over the history; learns from every position at once."""

    learns_from: Literal["positions"] = "positions"

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.item_embedding = nn.Embedding(shape.items + 1, shape.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(shape.length, shape.dim)
        self.dropout = Dropout(shape.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.apply(initialise)

    def encode_all(
        self, histories: Int[Tensor, "batch length"], last_only: bool = False
    ) -> Float[Tensor, "batch kept dim"]:
        """The state after every item, or after the last alone, for which the last block computes one row.
        Positions are counted from the right, where the newest item is."""
        histories = histories[:, -self.shape.length :]
        slots = torch.arange(
            self.shape.length - histories.shape[1], self.shape.length, device=histories.device
        )
        rows = self.dropout(self.item_embedding(histories) + self.position_embedding(slots))
        allowed = None if self.shape.full_histories else allowed_pairs(histories, causal=True)
        for depth, block in enumerate(self.blocks, start=1):
            rows = block(rows, allowed, last_only=last_only and depth == len(self.blocks))
        return self.norm(rows)

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        return self.encode_all(histories, last_only=True)[:, -1]
