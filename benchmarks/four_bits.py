"""Layers in format h8 without calibration, for measuring time: codes of the real weights, a random branch.

Queries, keys and values share smoothing and down projection, as `fewer quantize` leaves them.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.modules import replace_modules
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear

SANA_LAYERS = re.compile(
    r"transformer_blocks\.\d+\.(attn1\.to_([qkv]|out\.0)|attn2\.to_(q|out\.0)|ff\.conv_(inverted|point))"
)


def h8_layer(linear: nn.Module, down: torch.Tensor | None = None, rank: int = 32) -> QuantizedLinear:
    """A linear layer or 1x1 convolution, rounded to nearest, with a small branch of `rank`."""
    weight = linear.weight.detach().flatten(1)
    out, dim = weight.shape
    up = None
    if rank:
        down = torch.randn(rank, dim, device=weight.device) / dim**0.5 if down is None else down
        up = (torch.randn(out, rank, device=weight.device) * 1e-3).to(weight.dtype)
        down = down.to(weight.dtype)
        weight = weight - up @ down  # the branch takes its part, so the layer's error is that of rounding
    codes, scales = encode_weight(weight, FORMATS["h8"])
    layer = QuantizedLayer(
        format="h8",
        shape=(out, dim),
        codes=codes,
        scales=scales,
        smooth=torch.ones(dim, device=weight.device),
        down=down if rank else None,
        up=up,
        bias=None if linear.bias is None else linear.bias.detach(),
        convolution=isinstance(linear, nn.Conv2d),
    )
    return QuantizedLinear(layer)


def sana_in_h8(model: nn.Module) -> nn.Module:
    """Every layer of a Sana that SVDQuant quantizes."""
    downs: dict[str, torch.Tensor] = {}

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if not SANA_LAYERS.fullmatch(name):
            return None
        found = re.fullmatch(r"(.*\.attn1)\.to_[qkv]", name)
        if found is None:
            return h8_layer(module)
        made = h8_layer(module, downs.get(found[1]))
        downs[found[1]] = made.low_down
        return made

    replace_modules(model, build)
    return model


# The 16 levels of NormalFloat (arXiv 2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


class DequantizedNF4(nn.Module):
    """NF4 in blocks of 64 as bitsandbytes multiplies many rows: the weight is decoded, then cuBLAS."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float().view(-1, 64)
        self.register_buffer("largest", weight.abs().amax(1, keepdim=True))
        levels = torch.tensor(NF4, device=weight.device)
        borders = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(weight / self.largest, borders).to(torch.uint8).view(-1, 2)
        self.register_buffer("codes", codes[:, 0] | (codes[:, 1] << 4))
        self.register_buffer("levels", levels.to(linear.weight.dtype))
        self.shape, self.bias = linear.weight.shape, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(
            x, decode_nf4(self.codes, self.largest, self.levels).view(self.shape), self.bias
        )


def decode_nf4(codes: Tensor, largest: Tensor, levels: Tensor) -> Tensor:
    """Both nibbles of a byte, times their block's largest value."""
    pairs = torch.stack([codes & 15, codes >> 4], dim=1).int()
    return levels[pairs].view(-1, 64) * largest.to(levels.dtype)
