"""GRU4Rec (Hidasi et al. 2016): a recurrent network over the history; learns from every position at once."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.kernels.recurrence import HIDDEN_SIZES, recurrent_walk
from fewer.recommend.baselines.recurrence import recurrent_states
from fewer.recommend.baselines.transformer import initialise
from fewer.recommend.dropout import Dropout

WALK_ROWS = 256  # on a GPU our own walk takes batches from here on; a few rows leave it too few programs


@dataclass(frozen=True, slots=True, kw_only=True)
class GRUShape:
    """Sizes; RecBole's defaults are 128 hidden, one layer."""

    items: int
    length: int = 50
    dim: int = 64
    layers: int = 1
    hidden: int = 128
    dropout: float = 0.2


class GRU4Rec(nn.Module):
    """Padding never reaches the recurrent state: torch's unit gets histories moved to the left edge, and
    the ones that train (on a CPU, on a GPU) begin each history at its own first item."""

    learns_from: Literal["positions"] = "positions"

    def __init__(self, shape: GRUShape) -> None:
        super().__init__()
        self.shape = shape
        self.item_embedding = nn.Embedding(shape.items + 1, shape.dim, padding_idx=0)
        self.dropout = Dropout(shape.dropout)
        self.recurrent = nn.GRU(shape.dim, shape.hidden, shape.layers, batch_first=True)
        self.output = nn.Linear(shape.hidden, shape.dim)
        self.apply(initialise)

    def encode_all(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch kept dim"]:
        """The state after every item, at the item's own (right-aligned) place."""
        return self.output(self._states(histories[:, -self.shape.length :]))

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        return self.output(self._states(histories[:, -self.shape.length :], last_only=True)[:, -1])

    def _states(
        self, histories: Int[Tensor, "batch length"], last_only: bool = False
    ) -> Float[Tensor, "batch kept hidden"]:
        rows = self.dropout(self.item_embedding(histories))
        if self.training and self.shape.layers == 1:
            lengths = (histories > 0).sum(1)
            if rows.device.type == "cpu":
                return recurrent_states(self.recurrent, rows, lengths, last_only)
            if self.shape.hidden in HIDDEN_SIZES and len(rows) >= WALK_ROWS and rows.dtype == torch.float32:
                unit = self.recurrent
                weights = (unit.weight_ih_l0, unit.weight_hh_l0, unit.bias_ih_l0, unit.bias_hh_l0)
                return recurrent_walk(rows, lengths, weights, last_only)
        length = histories.shape[1]
        padding = (histories == 0).sum(1, keepdim=True)
        places = torch.arange(length, device=histories.device)
        to_left = (places + padding).clamp(max=length - 1)[:, :, None].expand(-1, -1, rows.shape[2])
        states, _ = self.recurrent(rows.gather(1, to_left))
        back = (places - padding).clamp(min=0)[:, -1 if last_only else 0 :]
        return states.gather(1, back[:, :, None].expand(-1, -1, states.shape[2]))
