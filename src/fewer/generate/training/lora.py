"""Trains a low-rank adapter (LoRA) on a few pictures; the model itself stays as it is."""

from pathlib import Path

import torch

from fewer.core.device import seeded
from fewer.core.progress import Progress
from fewer.core.train import FitResult
from fewer.generate.lora import LowRank, attach, collect, detach, fresh
from fewer.generate.training.encoded import EncodedSet
from fewer.generate.training.transformer import TransformerTraining, train_transformer
from fewer.generate.transformer.sana import SanaTransformer

_NAME = "trained"


def train_lora(
    transformer: SanaTransformer,
    data: EncodedSet,
    training: TransformerTraining,
    *,
    rank: int = 16,
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v"),
    device: torch.device | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, LowRank], FitResult]:
    """A new adapter for the layers called `targets`; the transformer is afterwards what it was before.

    Raises `ConfigError` for a rank below 1 or targets that the transformer does not have.
    """
    trainable = {name: parameter.requires_grad for name, parameter in transformer.named_parameters()}
    transformer.requires_grad_(False)
    try:
        adapter = fresh(transformer, rank, seeded(training.seed, 11), targets=targets)
        attach(transformer, adapter, name=_NAME)
        result = train_transformer(
            transformer,
            data,
            training,
            device=device,
            checkpoints=checkpoints,
            resume=resume,
            progress=progress,
        )
        adapter = {path: _on_cpu(found) for path, found in collect(transformer, _NAME).items()}
    finally:
        detach(transformer)
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(trainable[name])
    return adapter, result


def _on_cpu(found: LowRank) -> LowRank:
    return LowRank(found.down.float().cpu().clone(), found.up.float().cpu().clone(), found.alpha)
