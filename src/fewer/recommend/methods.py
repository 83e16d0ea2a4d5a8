"""Every network of the room by name: AutoMLP and the models it is compared with, built with equal sizes."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from pydantic import Field
from torch import nn

from fewer.core.errors import ConfigError
from fewer.recommend.automlp import CANDIDATES, AutoMLPNetwork, AutoMLPShape
from fewer.recommend.baselines.bert4rec import BERT4Rec
from fewer.recommend.baselines.fmlp_rec import FilterShape, FMLPRec
from fewer.recommend.baselines.gru4rec import GRU4Rec, GRUShape
from fewer.recommend.baselines.mlp_mixer import mlp4rec, mlp_mixer
from fewer.recommend.baselines.sasrec import SASRec
from fewer.recommend.baselines.transformer import TransformerShape
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.training.losses import LossName

MethodName = Literal[
    "automlp", "sasrec", "sasrec-binary", "gsasrec", "gru4rec", "bert4rec", "fmlp-rec", "mlp-mixer", "mlp4rec"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What all methods share."""

    length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """How much of a history is read (m)."""
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    candidates: tuple[int, ...] = CANDIDATES
    """Short-term lengths (AutoMLP)."""
    hidden_sequence: Annotated[int, Field(ge=1, le=4096)] = 64
    """Width of the sequence mixer (AutoMLP)."""
    hidden_channel: Annotated[int, Field(ge=1, le=16384)] = 128
    """Width of the channel mixer (AutoMLP)."""
    share_candidates: bool = False
    mask_padding: bool = True
    feature_branch: Literal["short", "both"] = "short"
    long_branch: bool = True
    short_branch: bool = True


def build_network(method: str, sizes: Sizes, items: int, features: ItemFeatures | None = None) -> nn.Module:
    """A fresh network; weights come from torch's global generator. Raises `ConfigError`."""
    transformer = TransformerShape(
        items=items, length=sizes.length, dim=sizes.dim, layers=sizes.layers, dropout=sizes.dropout
    )
    if method == "automlp":
        return AutoMLPNetwork(automlp_shape(sizes, items), features)
    if method in ("sasrec", "sasrec-binary", "gsasrec"):
        return SASRec(transformer)
    if method == "bert4rec":
        return BERT4Rec(transformer)
    if method == "gru4rec":
        return GRU4Rec(GRUShape(items=items, length=sizes.length, dim=sizes.dim, dropout=sizes.dropout))
    if method == "fmlp-rec":
        return FMLPRec(
            FilterShape(
                items=items, length=sizes.length, dim=sizes.dim, layers=sizes.layers, dropout=sizes.dropout
            )
        )
    if method == "mlp-mixer":
        return mlp_mixer(items, sizes.length, sizes.dim, sizes.layers, sizes.dropout)
    if method == "mlp4rec":
        return mlp4rec(items, sizes.length, sizes.dim, sizes.layers, sizes.dropout, features)
    raise ConfigError(f"method {method!r} is not known; allowed: {', '.join(get_args(MethodName))}")


def automlp_shape(sizes: Sizes, items: int) -> AutoMLPShape:
    """AutoMLP's own sizes from the shared ones."""
    return AutoMLPShape(
        items=items,
        length=sizes.length,
        candidates=sizes.candidates,
        dim=sizes.dim,
        long_layers=sizes.layers,
        short_layers=sizes.layers,
        hidden_sequence=sizes.hidden_sequence,
        hidden_channel=sizes.hidden_channel,
        dropout=sizes.dropout,
        long_branch=sizes.long_branch,
        short_branch=sizes.short_branch,
        share_candidates=sizes.share_candidates,
        mask_padding=sizes.mask_padding,
        feature_branch=sizes.feature_branch,
    )


def own_loss(method: str, asked: LossName) -> LossName:
    """SASRec's original loss and gSASRec are the same network with a loss of their own."""
    return {"sasrec-binary": "binary", "gsasrec": "generalised-binary"}.get(method, asked)  # pyright: ignore


def fitting_candidates(sizes: Sizes) -> tuple[Sizes, list[str]]:
    """Drops short-term lengths beyond the history length, with a sentence about it.

    Raises `ConfigError` when a length is below 1 or none is left.
    """
    if any(n < 1 for n in sizes.candidates):
        raise ConfigError(f"short-term lengths must be at least 1, got {list(sizes.candidates)}")
    kept = tuple(sorted({n for n in sizes.candidates if n <= sizes.length}))
    if not kept:
        raise ConfigError(
            f"no short-term length of {list(sizes.candidates)} is within --length {sizes.length}"
        )
    dropped = sorted(set(sizes.candidates) - set(kept))
    notes = (
        [f"short-term lengths {dropped} exceed the history length {sizes.length}: dropped"] if dropped else []
    )
    return replace(sizes, candidates=kept), notes
