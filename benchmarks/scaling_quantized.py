"""A 4-bit Sana on several devices: does it give the bits of one? An item of scaling.py."""

import re
import statistics
from typing import TYPE_CHECKING

import torch
from scaling_tools import build, relative_error
from torch import Tensor, nn

from fewer.core.modules import replace_modules
from fewer.generate.engine import accelerate
from fewer.generate.transformer import SanaTransformer
from fewer.parallel import ParallelPlan, parallelize
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import QuantizedLinear

if TYPE_CHECKING:
    from scaling_items import Stand

LAYERS = re.compile(r".*\.(attn1\.to_([qkv]|out\.0)|attn2\.to_(q|out\.0)|ff\.conv_(inverted|point))")


def quantized(stand: "Stand") -> None:
    """Codes rounded to nearest and a random branch, without guidance and with it."""
    model = build(lambda: SanaTransformer(stand.params), stand.device, stand.dtype)
    in_four_bits(model)
    one = accelerate(model, graphs=True)
    for samples in (1, 2):
        latents, text, times = stand.inputs(min(stand.options.sizes), samples)
        prepared = one.prepare(text)
        expected = one.denoise(latents, times, prepared).clone()
        one_ms = statistics.median(stand.timed(lambda z=latents, t=times, p=prepared: one.denoise(z, t, p)))
        stand.emit(item="quantized", devices=1, mode=f"one device, {samples} samples", ms=one_ms)
        for count, group in stand.many():
            plan = ParallelPlan(devices=count, mode="sync", guidance="batched", border=stand.options.border)
            runner = parallelize(one, plan, group)
            result = runner.denoise(latents, times, prepared)
            ms = statistics.median(
                stand.timed(lambda r=runner, z=latents, t=times, p=prepared: r.denoise(z, t, p), group=group)
            )
            stand.emit(item="quantized", devices=count, mode=f"sync, {samples} samples", ms=ms,
                       speedup=one_ms / ms, relative_error=relative_error(result, expected),
                       same_bits=bool(torch.equal(result, expected)))  # fmt: skip
            runner.forget()


def in_four_bits(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    downs: dict[str, Tensor] = {}

    def layer_of(name: str, module: nn.Module) -> nn.Module | None:
        if not LAYERS.fullmatch(name):
            return None
        weight = module.weight.detach().flatten(1)
        codes, scales = encode_weight(weight.float(), FORMATS["h8"])
        key = re.sub(r"to_[qkv]$", "joint", name)  # queries, keys and values share what they do to their rows
        down = downs.setdefault(key, torch.randn(32, weight.shape[1], generator=generator).to(weight) * 0.02)
        up = torch.randn(weight.shape[0], 32, generator=generator).to(weight) * 0.02
        return QuantizedLinear(QuantizedLayer(
            format="h8", shape=tuple(weight.shape), codes=codes, scales=scales,
            smooth=torch.ones(weight.shape[1]).to(weight), down=down, up=up,
            bias=None if module.bias is None else module.bias.detach(),
            convolution=isinstance(module, nn.Conv2d),
        ))  # fmt: skip

    replace_modules(model, layer_of)
