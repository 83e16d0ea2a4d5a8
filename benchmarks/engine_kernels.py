"""Every kernel of the engine at the shapes of Sana, DC-AE and FLUX: right, and how far from the floor.

runs on: gpu. A time is that of one launch among at least twelve in a CUDA graph, the median of five replays;
weights go round among copies that don't fit the L2 together. Beside ours: cuBLAS, `torch._int_mm`, cuDNN.
The floor is the arithmetic at the specified peak, or the bytes read and written once at 3.35 TB/s.
Run: python benchmarks/engine_kernels.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 2 min:

import statistics
from collections.abc import Callable, Iterator

import torch
from stopwatch import PEAK_BF16, PEAK_BYTES, PEAK_INT8, Figures, finish, options, relative_error, store
from torch import Tensor
from torch.nn import functional

from fewer.kernels.aggregate import aggregate, reference_aggregate
from fewer.kernels.convolution import convolution, doubling_convolution, doubling_phases
from fewer.kernels.cross_attention import cross_attention, reference_cross_attention
from fewer.kernels.dense import activated_linear
from fewer.kernels.depthwise import depthwise_gated, reference_depthwise_gated
from fewer.kernels.h8 import int8_linear, reference_int8_linear
from fewer.kernels.linear_attention import linear_attention, reference_linear_attention
from fewer.kernels.norms import gated_add_norm, reference_gated_add_norm
from fewer.kernels.quantize import quantize_rows

PRODUCTS = [
    (rows, *shape)
    for rows in (2048, 32768)
    for shape in ((1152, 3456), (1152, 1152), (1152, 5760), (2880, 1152))
] + [(2048, 2240, 6720), (2048, 2240, 2240), (2048, 2240, 11200), (2048, 5600, 2240),
     (4608, 3072, 12288), (4608, 12288, 3072), (4608, 3072, 9216), (4608, 3072, 3072)]  # fmt: skip
CONVOLUTIONS = [(1024, 128), (512, 256), (256, 512)]
DOUBLINGS = [(512, 256, 128), (256, 512, 256), (128, 512, 512), (64, 1024, 512), (32, 1024, 1024)]


class Bench:
    """Where tensors are drawn and calls are timed."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny, self.gpu = device, tiny, device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.gpu else torch.float32

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=self.device) * scale).to(self.dtype)

    def microseconds(self, calls: list[Callable[[], object]]) -> float:
        if not self.gpu:
            calls[0]()
            return float("nan")
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        graph, launches = torch.cuda.CUDAGraph(), max(12, len(calls))
        with torch.cuda.graph(graph):
            for index in range(launches):
                calls[index % len(calls)]()
        times = []
        for _ in range(6):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / launches)
        return statistics.median(times[1:])

    def row(self, call: Callable[[], Tensor], wanted: Tensor | None, floor_s: float) -> Figures:
        error = None if wanted is None else relative_error(call(), wanted)
        time = self.microseconds([call])
        return {"us": time, "share_of_floor": floor_s * 1e6 / time, "relative_error": error}


def products(bench: Bench) -> Iterator[tuple[str, Figures]]:
    for shape in [(5, 64, 24)] if bench.tiny else PRODUCTS:
        yield "product {} x {} x {}".format(*shape), product(bench, *shape)


def product(bench: Bench, rows: int, dim: int, outputs: int) -> Figures:
    flop, copies = 2 * rows * dim * outputs, max(1, min(16, 120_000_000 // (dim * outputs)))
    x, bias = bench.draw(rows, dim), bench.draw(outputs)
    weights = [bench.draw(outputs, dim, scale=dim**-0.5) for _ in range(copies)]
    times = {
        "cuBLAS bf16": bench.microseconds([lambda w=w: functional.linear(x, w, bias) for w in weights]),
        "bf16 + SiLU": bench.microseconds(
            [lambda w=w: activated_linear(x, w, bias, "silu") for w in weights]
        ),
    }
    codes = torch.randint(-127, 128, (rows, dim), device=bench.device, dtype=torch.int8)
    weights = [torch.randint_like(codes[:1].expand(outputs, dim), -126, 127) for _ in range(copies)]
    size, step = (torch.rand(count, device=bench.device) / 1e3 for count in (rows, outputs))
    low, up = bench.draw(rows, 32), bench.draw(outputs, 32)

    def ours(weight: Tensor, rank: bool = True) -> Tensor:
        pair = {"projected": low, "up": up} if rank else {}
        return int8_linear(codes, size, weight, step, bias=bias, dtype=bench.dtype, **pair)

    times["int8, rank 32"] = bench.microseconds([lambda w=w: ours(w) for w in weights])
    times["int8, no branch"] = bench.microseconds([lambda w=w: ours(w, False) for w in weights])
    if bench.gpu:
        times["torch._int_mm"] = bench.microseconds(
            [lambda w=w: torch._int_mm(codes, w.t()) for w in weights]
        )
    wanted = reference_int8_linear(
        codes, size, weights[0], step, bias, low, up, "none", None, None, bench.dtype
    )  # fmt: skip
    return {
        "us": times,
        "relative_error_int8": relative_error(ours(weights[0]), wanted),
        "floor_us": {"bf16": 1e6 * flop / PEAK_BF16, "int8": 1e6 * flop / PEAK_INT8},
        "tflops_int8": flop / times["int8, rank 32"] / 1e6,
        "branch_costs": times["int8, rank 32"] / times["int8, no branch"] - 1,
    }


def convolutions(bench: Bench) -> Iterator[tuple[str, Figures]]:
    for side, channels in [(5, 4)] if bench.tiny else CONVOLUTIONS:
        x, residual = bench.draw(1, side, side, channels), bench.draw(1, side, side, channels)
        weight = bench.draw(channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias, gain = bench.draw(channels), bench.draw(channels)
        floor = 18 * side**2 * channels**2 / PEAK_BF16
        image = x.permute(0, 3, 1, 2)
        plain = functional.conv2d(image.float(), weight.float(), bias.float(), padding=1).permute(0, 2, 3, 1)
        name = f"convolution {side}², {channels}"
        yield (
            f"{name}, SiLU",
            bench.row(
                lambda x=x, w=weight, b=bias: convolution(x, w, b, "silu"), functional.silu(plain), floor
            ),
        )
        yield (
            f"{name}, norm and sum",
            bench.row(
                lambda x=x, w=weight, n=(gain, bias), r=residual: convolution(x, w, norm=n, residual=r),
                None,
                floor,
            ),
        )
        yield (
            f"{name}, cuDNN",
            bench.row(lambda i=image, w=weight, b=bias: functional.conv2d(i, w, b, padding=1), None, floor),
        )
    for side, inputs, outputs in [(3, 4, 4)] if bench.tiny else DOUBLINGS:
        x, weight = (
            bench.draw(1, side, side, inputs),
            bench.draw(outputs, inputs, 3, 3, scale=(9 * inputs) ** -0.5),
        )
        phases, bias = doubling_phases(weight, True), bench.draw(outputs)
        floor = 32 * side**2 * inputs * outputs / PEAK_BF16
        yield (
            f"doubling {side}², {inputs} to {outputs}",
            bench.row(lambda x=x, p=phases, b=bias: doubling_convolution(x, p, b), None, floor),
        )


def passes(bench: Bench) -> Iterator[tuple[str, Figures]]:
    size = bench.dtype.itemsize
    for rows, dim in [(6, 64)] if bench.tiny else [(2048, 1152), (32768, 1152), (4608, 3072), (4608, 12288)]:
        x, update, (gate, shift, scale) = bench.draw(rows, dim), bench.draw(rows, dim), bench.draw(3, 2, dim)
        down = bench.draw(32, dim, scale=dim**-0.5)
        yield f"sum, norm {rows} x {dim}", bench.row(
            lambda a=(x, update, gate, shift, scale): gated_add_norm(*a)[1],
            reference_gated_add_norm(x, update, gate, shift, scale, 1e-6)[1],
            4 * rows * dim * size / PEAK_BYTES,
        )  # fmt: skip
        yield f"sum, norm, quantize {rows} x {dim}", bench.row(
            lambda a=(x, None, down, shift, scale, 1e-6, update, gate): quantize_rows(*a).scale,
            None, (3 * size + 1) * rows * dim / PEAK_BYTES,
        )  # fmt: skip
        yield (
            f"quantize {rows} x {dim}",
            bench.row(
                lambda a=(x, None, down): quantize_rows(*a).scale, None, (size + 1) * rows * dim / PEAK_BYTES
            ),
        )
    for batch, side, channels in (
        [(1, 4, 8)] if bench.tiny else [(2, 32, 5760), (2, 128, 5760), (1, 128, 4096)]
    ):
        x, weight, bias = (
            bench.draw(batch, side, side, channels),
            bench.draw(channels, 3, 3),
            bench.draw(channels),
        )
        weight = weight.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        yield f"depthwise {batch} x {side}² x {channels}", bench.row(
            lambda a=(x, weight, bias): depthwise_gated(*a),
            reference_depthwise_gated(x, weight, bias, False),
            1.5 * x.numel() * size / PEAK_BYTES,
        )  # fmt: skip


def attentions(bench: Bench) -> Iterator[tuple[str, Figures]]:
    size = bench.dtype.itemsize
    for batch, tokens, heads in (
        [(1, 9, 2)] if bench.tiny else [(2, 1024, 36), (2, 16384, 36), (1, 16384, 16)]
    ):
        parts = bench.draw(batch, tokens, 3, heads, 32).unbind(2)
        yield f"linear attention {batch} x {tokens} x {heads}", bench.row(
            lambda p=parts: linear_attention(*p), reference_linear_attention(*parts, 1e-15),
            4 * parts[0].numel() * size / PEAK_BYTES,
        )  # fmt: skip
    for tokens, heads, dim in (
        [(5, 2, 8)] if bench.tiny else [(1024, 16, 72), (1024, 20, 112), (16384, 16, 72)]
    ):
        query, keys, values = (
            bench.draw(2, tokens, heads, dim),
            bench.draw(2, heads, 300, dim),
            bench.draw(2, heads, 300, dim),
        )
        visible = torch.arange(300, device=bench.device)[None] < torch.tensor(
            [[5], [300]], device=bench.device
        )
        for name, mask in (("", None), (", masked", visible)):
            yield f"attention to text {tokens} x {heads} x {dim}{name}", bench.row(
                lambda a=(query, keys, values, mask): cross_attention(*a),
                reference_cross_attention(query.float(), keys.float(), values.float(), mask),
                1200 * query.numel() / PEAK_BF16,
            )  # fmt: skip
    for side, channels in [(4, 64)] if bench.tiny else [(128, 1536), (64, 3072), (32, 3072)]:
        x, depthwise, pointwise = (
            bench.draw(1, side, side, channels),
            bench.draw(channels, 5, 5),
            bench.draw(channels, 32),
        )
        depthwise = depthwise.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        yield f"aggregate {side}² x {channels}", bench.row(
            lambda a=(x, depthwise, pointwise): aggregate(*a),
            reference_aggregate(x.float(), depthwise.float(), pointwise.float()),
            2 * x.numel() * size / PEAK_BYTES,
        )  # fmt: skip


@torch.no_grad()
def main() -> None:
    given = options("engine_kernels")
    torch.manual_seed(0)
    bench, groups = Bench(given.device, given.tiny), (products, convolutions, passes, attentions)
    found: Figures = {}
    for group in groups:
        for name, figures in group(bench):
            if given.only in name:
                found[name] = figures
                store("engine_kernels", found, given)
    finish("engine_kernels", found, given)


if __name__ == "__main__":
    main()
