"""One linear layer from bf16 rows to bf16 rows: cuBLAS bf16, torchao fp8, bitsandbytes NF4, and h8 in pieces.

runs on: gpu. The bar's shape is M=4608, K=3072, N=12288 with rank 32 and bias; others show where it holds.
Run: python benchmarks/engine_linear.py [--tiny --device cpu] [--output FILE.json]
"""

import argparse
from collections.abc import Callable

import torch
from four_bits import h8_layer
from stopwatch import (
    PEAK_BF16,
    PEAK_INT8,
    Figures,
    contest,
    finish,
    measure,
    needs_gpu,
    options,
    ratios,
    relative_error,
)
from torch import Tensor, nn

from fewer.kernels.h8 import accumulate_int8, expand_h8, int8_linear
from fewer.kernels.quantize import quantize_rows
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.fused import fuse

SHAPES = ((4608, 3072, 12288), (4608, 12288, 3072), (4608, 3072, 9216), (4608, 3072, 3072),
          (2048, 1152, 5760), (2048, 2240, 11200), (16384, 3072, 12288))  # fmt: skip


class Case:
    """A layer, its rows, and every way of multiplying them."""

    def __init__(self, shape: tuple[int, int, int], given: argparse.Namespace) -> None:
        rows, dim, outputs = shape
        self.device, self.runs = given.device, given.runs if given.tiny else 50
        self.dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
        torch.manual_seed(0)
        self.linear = nn.Linear(dim, outputs).to(self.device, self.dtype)
        self.x = torch.randn(rows, dim, device=self.device, dtype=self.dtype)
        self.quantized = h8_layer(self.linear)
        self.without_branch = h8_layer(self.linear, rank=0)
        self.exact = self.linear(self.x)

    def timed(self, call: Callable[[], Tensor]) -> Figures:
        return {**measure(call, self.device, self.runs), "relative_error": relative_error(call(), self.exact)}

    def h8(self, *, keep: bool = False, branch: bool = True) -> Figures:
        layer = self.quantized if branch else self.without_branch
        product = fuse([layer], WeightScratch(), self.dtype, keep=keep)
        assert product is not None
        facts = self.timed(lambda: product(self.x))
        facts["weights_against_bf16"] = sum(b.nbytes for b in layer.buffers()) / (
            2 * self.linear.weight.numel()
        )
        facts["same_bytes_again"] = torch.equal(product(self.x), product(self.x))
        return facts

    def product_alone(self) -> Figures:
        """The int8 product with its whole epilogue, given codes and expanded weights."""
        layer, product = self.quantized, fuse([self.quantized], WeightScratch(), self.dtype, keep=True)
        assert product is not None and product.kept is not None
        q = quantize_rows(self.x, product.smooth, product.down)
        kept = product.kept

        def call() -> Tensor:
            return int8_linear(
                q.codes, q.scale, kept, layer.channel_scale, bias=product.bias, projected=q.projected,
                up=product.up, dtype=self.dtype,
            )  # fmt: skip

        facts = self.timed(call)
        ones = torch.ones_like(q.scale), torch.ones_like(layer.channel_scale)
        # fp32 holds sums below 2**24 exactly; larger ones are compared after the same rounding.
        sums = int8_linear(q.codes, ones[0], kept, ones[1], dtype=torch.float32)
        facts["accumulators_exact"] = torch.equal(sums, accumulate_int8(q.codes, kept).float())
        return facts

    def quantize_alone(self) -> Figures:
        product = fuse([self.quantized], WeightScratch(), self.dtype)
        assert product is not None
        return measure(lambda: quantize_rows(self.x, product.smooth, product.down), self.device, self.runs)

    def expand_alone(self) -> Figures:
        layer, scratch = self.quantized, WeightScratch()
        out = scratch.view(layer.codes.shape[0], 2 * layer.codes.shape[1], layer.codes.device)
        return measure(lambda: expand_h8(layer.codes, layer.group_scale, out), self.device, self.runs)

    def torchao_fp8(self) -> Figures:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

        model = nn.Sequential(nn.Linear(*self.linear.weight.shape[::-1])).to(self.device, self.dtype)
        model[0].load_state_dict(self.linear.state_dict())
        quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
        compiled = torch.compile(model)
        return self.timed(lambda: compiled(self.x))

    def nf4(self) -> Figures:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            *self.linear.weight.shape[::-1], compute_dtype=self.dtype, quant_type="nf4"
        )
        layer.load_state_dict(self.linear.state_dict())
        layer = layer.to(self.device)
        return self.timed(lambda: layer(self.x))

    def contenders(self) -> dict[str, Callable[[], Figures]]:
        return {
            "bf16 cuBLAS": lambda: self.timed(lambda: self.linear(self.x)),
            "fp8 torchao compiled": needs_gpu(self.device, self.torchao_fp8),
            "nf4 bitsandbytes": needs_gpu(self.device, self.nf4),
            "h8 fewer": self.h8,
            "h8 fewer without the branch": lambda: self.h8(branch=False),
            "h8 fewer, weights kept as int8": lambda: self.h8(keep=True),
            "h8 fewer, product alone": self.product_alone,
            "part: quantize": self.quantize_alone,
            "part: expand": self.expand_alone,
        }


@torch.no_grad()
def main() -> None:
    given = options("engine_linear")
    results: dict[str, object] = {}
    for rows, dim, outputs in ((5, 64, 123), (7, 128, 65)) if given.tiny else SHAPES:
        flop = 2 * rows * dim * outputs
        floors = {"bf16": 1e3 * flop / PEAK_BF16, "h8": 1e3 * flop / PEAK_INT8}
        found = contest(Case((rows, dim, outputs), given).contenders(), floors, given.only)
        results[f"M={rows} K={dim} N={outputs}"] = {
            "contenders": found, "floor_ms": floors, "times_as_long_as_h8": ratios(found, "h8 fewer"),
            "times_as_long_as_product_alone": ratios(found, "h8 fewer, product alone"),
        }  # fmt: skip
    finish("engine_linear", results, given)


if __name__ == "__main__":
    main()
