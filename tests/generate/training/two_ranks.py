"""What both the lone process and the two processes of the torchrun test do."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from fewer.core.ranks import ranks_of_launcher
from fewer.generate.training.encoded import EncodedSet, TextTable
from fewer.generate.training.transformer import TransformerTraining, train_transformer
from fewer.generate.transformer import SanaParams, SanaTransformer, initialise


def run(output: str) -> list[float]:
    """Trains a tiny transformer for six steps of five rows and returns the losses; rank 0 writes them."""
    generator = torch.Generator().manual_seed(7)
    latents = [torch.randn(4, 4, 4, generator=generator) for _ in range(9)]
    text = TextTable(torch.randn(10, 5, 12, generator=generator).to(torch.bfloat16), torch.ones(10, 5).bool())
    data = EncodedSet(latents, [(i + 1,) for i in range(9)], [np.ones(1)] * 9, text, empty=0)
    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=8, depth=1, cross_heads=2, cross_head_dim=8,
        caption_channels=12, sample_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = initialise(SanaTransformer(params), torch.Generator().manual_seed(0), zero_output=False)
    plan = TransformerTraining(steps=6, batch=5, learning_rate=1e-2, warmup=1, dtype="fp32")
    with ranks_of_launcher("cpu"):
        losses = train_transformer(model, data, plan).losses
    if os.environ.get("RANK", "0") == "0":
        Path(output).write_text(json.dumps(losses))
    return losses
