"""FMLP-Rec (Zhou et al. 2022): learnable filters in the frequency domain instead of attention."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fewer.recommend.baselines.transformer import initialise
from fewer.recommend.dropout import Dropout


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterShape:
    items: int
    length: int = 50
    dim: int = 64
    layers: int = 2
    hidden: int = 256
    dropout: float = 0.2


class FilterLayer(nn.Module):
    """norm(x + irfft(rfft(x) * W)), then a feed-forward layer; the filter mixes all rows circularly."""

    def __init__(self, shape: FilterShape) -> None:
        super().__init__()
        # real and imaginary part; safetensors and Adam like real tensors
        self.filter = nn.Parameter(torch.randn(shape.length // 2 + 1, shape.dim, 2) * 0.02)
        self.filter_norm = nn.LayerNorm(shape.dim)
        self.widen = nn.Linear(shape.dim, shape.hidden)
        self.narrow = nn.Linear(shape.hidden, shape.dim)
        self.feed_norm = nn.LayerNorm(shape.dim)
        self.dropout = Dropout(shape.dropout)

    def forward(self, rows: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        spectrum = torch.fft.rfft(rows, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        filtered = torch.fft.irfft(spectrum, n=rows.shape[1], dim=1, norm="ortho")
        rows = self.filter_norm(rows + self.dropout(filtered))
        return self.feed_norm(rows + self.dropout(self.narrow(functional.gelu(self.widen(rows)))))


class FMLPRec(nn.Module):
    """The filter sees the future of inner rows, so one (prefix, next item) pair is one example."""

    learns_from: Literal["prefixes"] = "prefixes"

    def __init__(self, shape: FilterShape) -> None:
        super().__init__()
        self.shape = shape
        self.item_embedding = nn.Embedding(shape.items + 1, shape.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(shape.length, shape.dim)
        self.norm = nn.LayerNorm(shape.dim)
        self.dropout = Dropout(shape.dropout)
        self.layers = nn.ModuleList(FilterLayer(shape) for _ in range(shape.layers))
        self.apply(initialise)

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Always computed at the full length: a filter belongs to one length."""
        histories = histories[:, -self.shape.length :]
        histories = functional.pad(histories, (self.shape.length - histories.shape[1], 0))
        rows = self.dropout(self.norm(self.item_embedding(histories) + self.position_embedding.weight))
        for layer in self.layers:
            rows = layer(rows)
        return rows[:, -1]
