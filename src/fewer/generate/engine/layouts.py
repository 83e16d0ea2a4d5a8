"""How convolution weights lie in memory for the kernels. Shapes, names and values stay what they were."""

import torch
from torch import nn


@torch.no_grad()
def lay_out(layer: nn.Conv2d) -> None:
    """In place: depthwise weights tap by tap with the channels side by side, others channels last.

    Weights born in inference mode stay as they are; kernels then copy them in each call.
    """
    weight = layer.weight
    if weight.is_inference():
        return
    if layer.groups == layer.in_channels > 1:
        weight.data = weight.data.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    else:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
