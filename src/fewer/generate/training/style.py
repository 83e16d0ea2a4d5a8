"""Trains a style: a CAN adapter (generated weights, arXiv 2404.01143) for a frozen transformer."""

from pathlib import Path

import torch

from fewer.core.device import isolated_randomness
from fewer.core.progress import Progress
from fewer.core.train import FitResult
from fewer.generate.conditional.adapter import AtCondition, adapter
from fewer.generate.conditional.condition import ConditionAware
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.training.encoded import EncodedSet
from fewer.generate.training.transformer import TransformerTraining, train_transformer
from fewer.generate.transformer.sana import SanaTransformer

CONDITION_WIDTH = 16
"""Width of the style's vector: one style needs no more."""


def train_style(
    transformer: SanaTransformer,
    name: str,
    data: EncodedSet,
    training: TransformerTraining,
    *,
    rank: int = 1,
    device: torch.device | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[ConditionAware, FitResult]:
    """An adapter of one style; the transformer becomes its frozen base, no bit of it changes.

    Its depthwise convolutions, its patch embedding and its attention's outputs follow the style.
    """
    with isolated_randomness(training.seed):
        model = adapter(transformer, [name], ConditionPlan(rank=rank), width=CONDITION_WIDTH)
    result = train_transformer(
        AtCondition(model, name), data, training,
        device=device, checkpoints=checkpoints, resume=resume, progress=progress,
    )  # fmt: skip
    return model, result
