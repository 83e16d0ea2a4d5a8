"""One linear layer from bf16 rows to bf16 rows: cuBLAS bf16, fp8 by rows, NF4, and h8 in pieces.

runs on: gpu. Every contender is one CUDA graph. fp8 is what torchao does for such a layer (scales by rows and
columns, `torch._scaled_mm`, the quantization compiled); NF4 is bitsandbytes where it is installed, and beside
it the same arithmetic (block-wise table look-up, compiled, then cuBLAS). The bar's shape is M=4608, K=3072,
N=12288 with rank 32 and bias; others show where it holds.
Run: python benchmarks/engine_linear.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 1 min:

import argparse
from collections.abc import Callable

import torch
from four_bits import DequantizedNF4, h8_layer
from stopwatch import (
    PEAK_BF16,
    PEAK_INT8,
    Figures,
    captured,
    contest,
    finish,
    keeping,
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
        figures = measure(captured(call, self.device), self.device, self.runs)
        return {**figures, "relative_error": relative_error(call(), self.exact)}

    def h8(self, *, keep: bool = False, branch: bool = True, fold: bool = False) -> Figures:
        layer = self.quantized if branch else self.without_branch
        product = fuse([layer], WeightScratch(), self.dtype, keep=keep, fold=fold)
        assert product is not None
        facts = self.timed(lambda: product(self.x)[0])
        facts["weights_against_bf16"] = sum(b.nbytes for b in layer.buffers()) / (
            2 * self.linear.weight.numel()
        )
        facts["same_bytes_again"] = torch.equal(product(self.x)[0], product(self.x)[0])
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
        # bf16 cannot hold the sums, but equal sums round to equal numbers.
        sums = int8_linear(q.codes, ones[0], kept, ones[1], dtype=self.dtype)
        facts["accumulators_exact"] = torch.equal(sums, accumulate_int8(q.codes, kept).float().to(self.dtype))
        return facts

    def quantize_alone(self) -> Figures:
        product = fuse([self.quantized], WeightScratch(), self.dtype)
        assert product is not None
        ready = {"inverse": product.inverse}
        call = lambda: quantize_rows(self.x, product.smooth, product.down, **ready).codes  # noqa: E731
        return measure(captured(call, self.device), self.device, self.runs)

    def expand_alone(self) -> Figures:
        layer, scratch = self.quantized, WeightScratch()
        out = scratch.view(layer.codes.shape[0], 2 * layer.codes.shape[1], layer.codes.device)
        call = lambda: expand_h8(layer.codes, layer.group_scale, out)  # noqa: E731
        return measure(captured(call, self.device), self.device, self.runs)

    def fp8(self) -> Figures:
        kind = torch.float8_e4m3fn

        def by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
            scale = x.abs().amax(1, keepdim=True).float() / 448
            return (x / scale).clamp(-448, 448).to(kind), scale

        weight, weight_scale = by_rows(self.linear.weight)
        bias = self.linear.bias

        def call(x: Tensor) -> Tensor:
            codes, scale = by_rows(x)
            return torch._scaled_mm(
                codes, weight.t(), scale, weight_scale.t(), bias=bias, out_dtype=self.dtype
            )

        compiled = torch.compile(call, dynamic=False)
        return self.timed(lambda: compiled(self.x))

    def nf4(self) -> Figures:
        model = torch.compile(DequantizedNF4(self.linear), dynamic=False)
        return self.timed(lambda: model(self.x))

    def bitsandbytes(self) -> Figures:
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
            "h8 fewer": self.h8,
            "h8 fewer without the branch": lambda: self.h8(branch=False),
            "h8 fewer, branch folded": lambda: self.h8(fold=True),
            "h8 fewer, weights kept as int8": lambda: self.h8(keep=True),
            "h8 fewer, weights kept as int8, without the branch": lambda: self.h8(keep=True, branch=False),
            "h8 fewer, weights kept as int8, branch folded": lambda: self.h8(keep=True, fold=True),
            "h8 fewer, product alone": self.product_alone,
            "fp8 by rows, compiled": needs_gpu(self.device, self.fp8),
            "nf4, its arithmetic compiled": needs_gpu(self.device, self.nf4),
            "nf4 bitsandbytes": needs_gpu(self.device, self.bitsandbytes),
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
        title = f"M={rows} K={dim} N={outputs}"
        if given.works not in title:
            continue
        keep = keeping("engine_linear", results, title, given)
        found = contest(Case((rows, dim, outputs), given).contenders(), floors, given.only, keep)
        results[title] = {
            "contenders": found, "floor_ms": floors, "times_as_long_as_h8": ratios(found, "h8 fewer"),
            "times_as_long_as_product_alone": ratios(found, "h8 fewer, product alone"),
        }  # fmt: skip
    finish("engine_linear", results, given)


if __name__ == "__main__":
    main()
