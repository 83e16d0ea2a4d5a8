"""Layers in format h8 without calibration, for measuring time: codes of the real weights, a random branch.

Queries, keys and values share smoothing and down projection, as `fewer quantize` leaves them.
"""

import re

import torch
from torch import nn

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
