"""A FLUX-shaped joint block and single block: bf16 eager and compiled, NF4, torchao fp8, and our h8.

runs on: gpu. Random weights of the published widths (3072 wide, 24 heads, 4096 image and 512 text tokens).
The blocks are written here: attention, norms and rotary positions are the same code for every contender,
only the linear layers differ, which is what 4-bit engines replace.
Run: python benchmarks/engine_flux_block.py [--tiny --device cpu] [--output FILE.json]
"""

import argparse
import copy
from collections.abc import Callable

import torch
from four_bits import h8_layer
from stopwatch import (
    Figures,
    captured,
    contest,
    finish,
    measure,
    needs_gpu,
    options,
    ratios,
    relative_error,
    weight_gib,
)
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.modules import replace_modules
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.fused import FusedH8, fuse
from fewer.quantize.linear import QuantizedLinear


class Attention(nn.Module):
    """Rotary softmax attention of one joint sequence, with RMS norms on queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = (nn.RMSNorm(dim // heads, eps=1e-6) for _ in range(2))

    def forward(self, joint: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=2)
        )
        query, key = _rotate(self.norm_q(query), turn), _rotate(self.norm_k(key), turn)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """One stream of a joint block: its projections and its feed-forward."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def finish(self, x: Tensor, attended: Tensor, six: Tensor) -> Tensor:
        x = x + six[2] * self.out(attended)
        hidden = functional.gelu(self.up(_modulate(x, six[3], six[4])), approximate="tanh")
        return x + six[5] * self.down(hidden)


class JointBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.image, self.text, self.attention = Stream(dim), Stream(dim), Attention(dim, heads)

    def forward(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        streams = ((self.text, text), (self.image, image))
        joint = torch.cat([s.qkv(_modulate(x, six[0], six[1])) for s, x in streams], dim=1)
        attended = self.attention(joint, turn)
        parts = attended.split([text.shape[1], image.shape[1]], dim=1)
        return torch.cat([s.finish(x, a, six) for (s, x), a in zip(streams, parts, strict=True)], dim=1)


class SingleBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.qkv, self.up = nn.Linear(dim, 3 * dim), nn.Linear(dim, 4 * dim)
        self.attention_out, self.down = nn.Linear(dim, dim), nn.Linear(4 * dim, dim)

    def forward(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        x = torch.cat([text, image], dim=1)
        normed = _modulate(x, six[0], six[1])
        hidden = functional.gelu(self.up(normed), approximate="tanh")
        return x + six[2] * (self.attention_out(self.attention(self.qkv(normed), turn)) + self.down(hidden))


class EngineLinear(nn.Module):
    """A quantized layer through the engine's product."""

    def __init__(self, layer: QuantizedLinear, product: FusedH8) -> None:
        super().__init__()
        self.layer, self.product = layer, product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def in_h8(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    block, scratch = copy.deepcopy(block), WeightScratch()

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        product = fuse([layer := h8_layer(module)], scratch, dtype)
        assert product is not None
        return EngineLinear(layer, product)

    replace_modules(block, build)
    return block


def in_nf4(block: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    import bitsandbytes

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        layer = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, compute_dtype=dtype, quant_type="nf4"
        )
        layer.load_state_dict(module.state_dict())
        return layer

    block = copy.deepcopy(block).cpu()
    replace_modules(block, build)
    return block.to(device)


def in_fp8(block: nn.Module) -> nn.Module:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    block = copy.deepcopy(block)
    quantize_(block, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    return torch.compile(block)


def contenders(
    block: nn.Module, inputs: tuple, dtype: torch.dtype, given: argparse.Namespace
) -> dict[str, Callable[[], Figures]]:
    expected = block(*inputs)

    def row(build: Callable[[], nn.Module], graph: bool = False) -> Figures:
        model = build()
        call = lambda: model(*inputs)  # noqa: E731
        facts = measure(captured(call, given.device) if graph else call, given.device, given.runs)
        return {**facts, "weights_gib": weight_gib(model), "relative_error": relative_error(call(), expected)}

    ways: dict[str, Callable[[], Figures]] = {"bf16 eager": lambda: row(lambda: block)}
    others: dict[str, Callable[[], Figures]] = {
        "bf16 compiled": lambda: row(lambda: torch.compile(block)),
        "bf16 compiled + graph": lambda: row(lambda: torch.compile(block), True),
        "fp8 torchao compiled": lambda: row(lambda: in_fp8(block)),
        "nf4 bitsandbytes": lambda: row(lambda: in_nf4(block, dtype, given.device)),
    }
    ways |= {name: needs_gpu(given.device, run) for name, run in others.items()}
    ways["h8 fewer"] = lambda: row(lambda: in_h8(block, dtype))
    ways["h8 fewer + graph"] = lambda: row(lambda: in_h8(block, dtype), True)
    return ways


@torch.no_grad()
def main() -> None:
    given = options("engine_flux_block")
    dim, heads, image, text = (64, 2, 5, 3) if given.tiny else (3072, 24, 4096, 512)
    dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    torch.manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).to(given.device, dtype)

    angles = tensor(image + text, dim // heads // 2)
    inputs = (
        tensor(1, image, dim), tensor(1, text, dim), 0.1 * tensor(6, 1, 1, dim), (angles.cos(), angles.sin()),
    )  # fmt: skip
    results: dict[str, object] = {}
    for name, kind in (("joint block", JointBlock), ("single block", SingleBlock)):
        block = kind(dim, heads).to(given.device, dtype)
        rows = contest(contenders(block, inputs, dtype, given), None, given.only)
        results[name] = {"contenders": rows, "times_as_long_as_h8": ratios(rows, "h8 fewer + graph")}
    finish("engine_flux_block", results, given)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (even, odd) = turn, x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


if __name__ == "__main__":
    main()
