"""Trains an adapter of every linear layer by the flow loss, through the kernels made for training.

As `fewer train lora` in what is learned; here the factors are merged into the network's own weights in every
step (`merged.py`), so that fused attention and compiled blocks serve, and the pictures of a step come from
one of several sets that differ in shape.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.core.progress import Progress
from fewer.core.train import FitResult, fit
from fewer.generate.lora import LowRank
from fewer.generate.training.flow import FlowBatch, flow_loss
from fewer.generate.training.merged import MergedFactors
from fewer.generate.training.on_device import DeviceSet
from fewer.generate.training.quick_step import is_plain, precision
from fewer.generate.training.transformer import TransformerTraining, fit_plan, refuse_fp16
from fewer.generate.transformer.sana import SanaTransformer


def train_merged(
    transformer: SanaTransformer,
    sets: Sequence[DeviceSet],
    training: TransformerTraining,
    rank: int,
    *,
    device: torch.device | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, LowRank], FitResult]:
    """The adapter (averaged factors); the transformer is not changed. Steps take the sets in turn.

    Raises `DataError` without a set.
    """
    if not sets:
        raise DataError("there is nothing to learn from; give at least one set of pictures")
    device = device or torch.device("cpu")
    network = copy.deepcopy(transformer).to(device).eval()
    factors = MergedFactors(network, rank, seeded(training.seed, 31))
    optimizer = torch.optim.AdamW(
        factors.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    dtype = refuse_fp16(training.dtype, device)
    if training.compiled and device.type == "cuda":
        network.fuse_attention(is_plain(network))
        for block in network.transformer_blocks:
            block.compile(dynamic=False)
    own = torch.Generator(device)

    def batch_at(step: int, generator: torch.Generator) -> FlowBatch:
        own.manual_seed(generator.initial_seed())
        chosen = sets[step % len(sets)]
        return chosen.flow_batch(training.batch, training.shift, training.caption_drop, own)

    def loss(batch: FlowBatch, generator: torch.Generator) -> Tensor:
        factors.merge()
        with precision(dtype, device):
            return factors.through(flow_loss(network, batch))

    plan = fit_plan(training, device, checkpoints, resume)
    result = fit(plan, {"factors": factors}, optimizer, loss, batch_at, progress)
    factors.take(result.averages.get("factors", {}))
    return factors.adapter(), result
