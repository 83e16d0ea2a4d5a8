"""AutoMLP (WWW 2023, arXiv 2303.06337): histories -> long and short interest -> scores -> next items.

1. A history of item numbers is cut to the last m and padded on the left, so that "the last n items" is
   always the last n rows; every item becomes its vector, padding becomes zero.
2. The long branch mixes all m rows; its last row, normalised, is the long-term interest.
3. The short branch mixes only the last n rows. Which n? During the search every candidate has its own
   stack and a probability p = softmax(a / tau); `search.py` learns `a` on validation targets.
4. One linear layer joins both; an item's score is the inner product with its vector.
5. After the search the most likely n stays and the model is trained anew with it alone.

The paper's formulas could not be read; what is inferred is marked so in docs/recommend.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.recommend.data.features import FeatureTable, ItemFeatures
from fewer.recommend.dropout import Dropout
from fewer.recommend.mixers import NORM_EPSILON, MixerShape, MixerStack

if TYPE_CHECKING:
    from fewer.recommend.fitting import FitSettings
    from fewer.recommend.recommender import Recommender

CANDIDATES = (1, 2, 3, 5, 8, 12, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoMLPShape:
    """Sizes and switches of the network. Defaults: spec 2.9."""

    items: int
    """V, the number of items."""
    length: int = 50
    """m, how much of a history is read."""
    candidates: tuple[int, ...] = CANDIDATES
    """Lengths of the short branch; one of them after the search."""
    dim: int = 64
    long_layers: int = 2
    short_layers: int = 2
    hidden_sequence: int = 64
    hidden_channel: int = 128
    hidden_feature: int = 16
    dropout: float = 0.2
    long_branch: bool = True
    short_branch: bool = True
    share_layers: bool = False
    share_candidates: bool = False
    """One short stack for all candidates, its first rows masked: fewer parameters."""
    mask_padding: bool = True
    readout: Literal["last", "mean"] = "last"
    feature_branch: Literal["short", "both"] = "short"
    """Where item features are mixed in."""


class AutoMLPNetwork(nn.Module):
    """history (batch, length) -> interest (batch, dim); scores are inner products with `item_embedding`."""

    learns_from: Literal["prefixes"] = "prefixes"

    def __init__(self, shape: AutoMLPShape, features: ItemFeatures | None = None) -> None:
        super().__init__()
        candidates = tuple(sorted({n for n in shape.candidates if n <= shape.length}))
        if shape.short_branch and not candidates:
            raise ConfigError(
                f"no short-term length of {shape.candidates} is within the history length {shape.length}"
            )
        if not (shape.long_branch or shape.short_branch):
            raise ConfigError("both branches are off; keep the long or the short one")
        self.shape, self.candidates = shape, candidates
        self.item_embedding = nn.Embedding(shape.items + 1, shape.dim, padding_idx=0)
        self.features = FeatureTable(features, shape.dim) if features else None
        self.dropout = Dropout(shape.dropout)
        streams = 1 + (self.features.count if self.features else 0)
        if shape.long_branch:
            self.long = MixerStack(
                _stack(
                    shape, shape.length, shape.long_layers, streams if shape.feature_branch == "both" else 1
                )
            )
            self.long_norm = nn.LayerNorm(shape.dim, eps=NORM_EPSILON)
        if shape.short_branch:
            widths = candidates[-1:] if shape.share_candidates else candidates
            self.short = nn.ModuleList(
                MixerStack(_stack(shape, width, shape.short_layers, streams)) for width in widths
            )
            self.short_norm = nn.LayerNorm(shape.dim, eps=NORM_EPSILON)
            # zero mean, tiny spread: ties are broken, nobody is favoured (spec 2.7)
            self.architecture = nn.Parameter(torch.randn(len(candidates)) * 1e-3)
        self.temperature = 1.0
        self.join = nn.Linear(shape.dim * (shape.long_branch + shape.short_branch), shape.dim)
        self.apply(_initialise)

    def probabilities(self) -> Float[Tensor, "candidates"]:
        """p = softmax(a / tau), one entry per candidate length."""
        return torch.softmax(self.architecture / self.temperature, dim=0)

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """`histories` are item numbers padded with 0 on the left; at most the last m columns are read.
        With several candidates: s = sum_j p_j s_j (the continuous relaxation)."""
        streams, mask = self._streams(histories)
        readouts = self._readouts(streams, mask) if self.shape.short_branch else []
        if len(readouts) > 1:
            short = torch.einsum("c,cbd->bd", self.probabilities(), torch.stack(readouts))
        else:
            short = readouts[0] if readouts else None
        return self._joined(self._long_interest(streams, mask), short)

    def encode_each(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "candidates batch dim"]:
        """The interest under every candidate length alone; the long branch is computed once."""
        streams, mask = self._streams(histories)
        long = self._long_interest(streams, mask)
        return torch.stack([self._joined(long, short) for short in self._readouts(streams, mask)])

    def encode_in_turn(
        self, histories: Int[Tensor, "batch length"], first: int = 0
    ) -> Float[Tensor, "batch dim"]:
        """Row r takes candidate (first + r) mod k alone, so that every length learns from an equal share of a
        batch, at the cost of one length."""
        streams, mask = self._streams(histories)
        count = len(self.candidates)
        shares = [torch.arange(c, len(streams), count, device=streams.device) for c in range(count)]
        parts = [
            self._readout((first + c) % count, streams[rows], mask[rows])
            for c, rows in enumerate(shares)
            if len(rows)
        ]
        back = torch.argsort(torch.cat(shares))
        return self._joined(self._long_interest(streams, mask), torch.cat(parts)[back])

    def _streams(
        self, histories: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch kept streams dim"], Float[Tensor, "batch kept"]]:
        """Vectors of the items and, where there are any, of their features; and which rows are real."""
        histories = histories[:, -self.shape.length :]
        mask = (histories > 0).to(self.item_embedding.weight.dtype)
        rows = self.dropout(self.item_embedding(histories))[:, :, None]
        if self.features is not None:
            rows = torch.cat([rows, self.features(histories)], dim=2)
        return rows, mask

    def _long_interest(
        self, streams: Float[Tensor, "batch length streams dim"], mask: Float[Tensor, "batch length"]
    ) -> Float[Tensor, "batch dim"] | None:
        if not self.shape.long_branch:
            return None
        own = streams if self.shape.feature_branch == "both" else streams[:, :, :1]
        return self.long_norm(self.long(own, mask))

    def _readouts(
        self, streams: Float[Tensor, "batch length streams dim"], mask: Float[Tensor, "batch length"]
    ) -> list[Float[Tensor, "batch dim"]]:
        return [self._readout(candidate, streams, mask) for candidate in range(len(self.candidates))]

    def _readout(
        self,
        candidate: int,
        streams: Float[Tensor, "batch length streams dim"],
        mask: Float[Tensor, "batch length"],
    ) -> Float[Tensor, "batch dim"]:
        """s_j: the last n_j rows through their stack."""
        width = self.candidates[candidate]
        stack = self.short[0 if self.shape.share_candidates else candidate]
        return stack(streams[:, -width:], mask[:, -width:])

    def _joined(
        self, long: Float[Tensor, "batch dim"] | None, short: Float[Tensor, "batch dim"] | None
    ) -> Float[Tensor, "batch dim"]:
        """One linear layer over [long ; normalised short]."""
        parts = [] if long is None else [long]
        if short is not None:
            parts.append(self.short_norm(short))
        return self.join(torch.cat(parts, dim=1))


class AutoMLP:
    """The door for Python: `AutoMLP.fit(interactions).suggest(histories, k=10)`."""

    @staticmethod
    def fit(interactions: object, settings: "FitSettings | None" = None, **options: object) -> "Recommender":
        """Searches the short-term length, trains, and returns a `Recommender`.

        `interactions` is an `Interactions` or the path of a file. `options` are flat settings
        (`epochs=20, length=50, seed=0, penalty=0.1, ...`; see `settings_from`) instead of an object.
        """
        from fewer.recommend.fitting import fit, settings_from

        return fit(interactions, settings or settings_from("automlp", **options))  # pyright: ignore

    @staticmethod
    def load(folder: Path | str) -> "Recommender":
        """A recommender that `Recommender.save` wrote. Raises `FileError`."""
        from fewer.recommend.recommender import Recommender

        return Recommender.load(folder)


def _stack(shape: AutoMLPShape, length: int, layers: int, streams: int) -> MixerShape:
    return MixerShape(
        length=length,
        dim=shape.dim,
        layers=layers,
        hidden_sequence=shape.hidden_sequence,
        hidden_channel=shape.hidden_channel,
        hidden_feature=shape.hidden_feature,
        streams=streams,
        dropout=shape.dropout,
        share_layers=shape.share_layers,
        mask_padding=shape.mask_padding,
        readout=shape.readout,
    )


def _initialise(module: nn.Module) -> None:
    """Normal, std 0.02, as MLP4Rec and RecBole; zero biases; the padding vector stays zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
