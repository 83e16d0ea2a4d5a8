"""Starting weights for training (published recipe; section 2.1 of the method's notes in docs/generate.md)."""

import torch
from torch import nn

from fewer.generate.transformer.sana import SanaTransformer


@torch.no_grad()
def initialise(
    model: SanaTransformer, generator: torch.Generator | None = None, *, zero_output: bool = True
) -> SanaTransformer:
    """Fills a transformer with starting weights in place and returns it.

    Linear layers Xavier-uniform with zero biases, embeddings of time and text N(0, 0.02), the norm on the
    text 0.01. `zero_output` starts from a velocity of zero, which small models learn faster from.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            else:  # a 1x1 or patch convolution is a linear layer
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
    for part in (model.time_embed, model.caption_projection):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
    nn.init.constant_(model.caption_norm.weight, 0.01)
    width = model.params.width
    for table in [model.scale_shift_table, *(block.scale_shift_table for block in model.transformer_blocks)]:
        nn.init.normal_(table, std=width**-0.5, generator=generator)
    if zero_output:
        nn.init.zeros_(model.proj_out.weight)
    return model
