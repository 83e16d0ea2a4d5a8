"""MLP-Mixer (Tolstikhin et al. 2021) and MLP4Rec (Li et al. 2022) for next-item prediction.

Both use the same bricks as AutoMLP's long branch, with what sets them apart: hidden widths that are four
times the input (hence quadratic in the length), and, for MLP4Rec, one set of mixers for all depths and
item features mixed in at every layer.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.recommend.baselines.transformer import initialise
from fewer.recommend.data.features import FeatureTable, ItemFeatures
from fewer.recommend.dropout import Dropout
from fewer.recommend.mixers import NORM_EPSILON, MixerShape, MixerStack

EXPANSION = 4


class WholeHistoryMixer(nn.Module):
    """One stack over the whole history and the vector of its last row."""

    learns_from: Literal["prefixes"] = "prefixes"

    def __init__(self, items: int, shape: MixerShape, features: ItemFeatures | None = None) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(items + 1, shape.dim, padding_idx=0)
        self.features = FeatureTable(features, shape.dim) if features else None
        self.dropout = Dropout(shape.dropout)
        self.stack = MixerStack(shape)
        self.norm = nn.LayerNorm(shape.dim, eps=NORM_EPSILON)
        self.apply(initialise)

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        rows = self.dropout(self.item_embedding(histories))[:, :, None]
        if self.features is not None:
            rows = torch.cat([rows, self.features(histories)], dim=2)
        return self.norm(self.stack(rows, (histories > 0).to(rows.dtype)))


def mlp_mixer(items: int, length: int, dim: int, layers: int, dropout: float) -> WholeHistoryMixer:
    """Own weights in every layer, item ids only."""
    return WholeHistoryMixer(items, _expanded(length, dim, layers, dropout, streams=1, share=False))


def mlp4rec(
    items: int, length: int, dim: int, layers: int, dropout: float, features: ItemFeatures | None
) -> WholeHistoryMixer:
    """Shared mixers over all depths, features mixed at every layer where there are any."""
    streams = 1 + (len(features.names) if features else 0)
    return WholeHistoryMixer(items, _expanded(length, dim, layers, dropout, streams, share=True), features)


def _expanded(length: int, dim: int, layers: int, dropout: float, streams: int, share: bool) -> MixerShape:
    return MixerShape(
        length=length,
        dim=dim,
        layers=layers,
        hidden_sequence=EXPANSION * length,
        hidden_channel=EXPANSION * dim,
        hidden_feature=EXPANSION * streams,
        streams=streams,
        dropout=dropout,
        share_layers=share,
    )
