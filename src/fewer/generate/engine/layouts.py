"""How weights lie in memory for the kernels. Shapes, names and values stay what they were."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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


def neighbours(parts: Sequence[Tensor]) -> bool:
    """Whether they lie one behind the other in one piece of memory, as rows of one tensor do."""
    end = parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous() or part.dtype != parts[0].dtype:
            return False
        end += part.nbytes
    return len({part.untyped_storage().data_ptr() for part in parts}) == 1
