"""Speed of condition-aware weights on one GPU: training step, merged inference, and the per-sample kernel.

python benchmarks/can_speed.py [--kernels] [--training] [--inference] [--no-slow-peers] [--no-eager]
[--no-tiles]
(`--device cpu --tiny` only checks that it runs)
writes benchmarks/results/can_speed_{kernels,training,inference}.json.

Bars (batch 64, 256 tokens, width 512, 12 blocks): training step
<= 1.25x the static twin, merged inference <= 1.02x, kernel >= 70 % of the bandwidth that a copy reaches.
A step is forward, backward and AdamW under bf16 autocast; "graph" is the same step as a CUDA graph. Peers:
the static twin as it is and with its depthwise convolutions in our kernel, the other forms of the layers,
and a loop over samples.

python benchmarks/can_speed.py --check
compares the kernel with its reference, forwards and backwards, on odd shapes, and writes
benchmarks/results/can_kernel_check.json
"""
# bench: gpu, 2 min:

import statistics
import sys
from collections.abc import Callable

import torch
from record import record
from stopwatch import PEAK_BYTES, Figures, captured, contest, finish, measure, options, relative_error
from torch import Tensor, nn

from fewer.generate.conditional import ClassConditionalParams, ConditionAware, ConditionPlan
from fewer.generate.conditional.build import build
from fewer.kernels.depthwise_per_sample import (
    depthwise_per_sample,
    reference_depthwise_per_sample,
    reference_depthwise_per_sample_gradients,
)

PARTS = ("kernels", "training", "inference")
TILES = (
    (16, 4, 4, 64, 4), (16, 2, 8, 64, 4), (8, 4, 4, 64, 4), (16, 4, 2, 64, 4), (16, 4, 4, 32, 2),
    (16, 8, 2, 64, 4),
)  # fmt: skip
GRADIENT_TILES = ((16, 64, 8), (8, 64, 4), (4, 64, 2))


class PerSampleStatic(nn.Module):
    """A static depthwise convolution run by the per-sample kernel: what the static twin would gain by it."""

    def __init__(self, static: nn.Conv2d) -> None:
        super().__init__()
        self.static = static

    def forward(self, features: Tensor) -> Tensor:
        weight = self.static.weight[None, :, 0].expand(len(features), -1, -1, -1)
        image = features.permute(0, 2, 3, 1).contiguous()
        return depthwise_per_sample(image, weight, self.static.bias).permute(0, 3, 1, 2)


def correctness(device: str) -> dict[str, float]:
    """Relative errors against fp32 (forward) and the reference gradients, odd shapes, fp32 and bf16."""
    errors: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((1, 1, 1, 2), (3, 5, 9, 12), (4, 16, 16, 2048), (2, 33, 65, 123)):
            x, slope = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
            weight = torch.randn(shape[0], shape[3], 3, 3, device=device, dtype=dtype)
            bias = torch.randn(shape[3], device=device, dtype=dtype)
            with torch.no_grad():
                found = depthwise_per_sample(x, weight, bias, True)
            wanted = reference_depthwise_per_sample(x.cpu(), weight.cpu(), bias.cpu(), True)
            name = str(dtype).removeprefix("torch.")
            errors[f"forward {name}"] = max(
                errors.get(f"forward {name}", 0.0), relative_error(found.cpu(), wanted)
            )
            ours = torch.ops.fewer.depthwise_per_sample_gradients(x, slope)
            theirs = reference_depthwise_per_sample_gradients(x.cpu(), slope.cpu())
            worst = max(relative_error(o.cpu(), t) for o, t in zip(ours, theirs, strict=True))
            errors[f"gradients {name}"] = max(errors.get(f"gradients {name}", 0.0), worst)
    return errors


def kernels(
    batch: int, side: int, channels: int, device: str, runs: int, tiles: bool
) -> dict[str, Callable[[], Figures]]:
    """Every tile on fresh inputs (four sets in turn, more than the cache holds), and a copy beside them."""
    dtype = torch.bfloat16
    sets = [
        [torch.randn(batch, side, side, channels, device=device, dtype=dtype) for _ in range(2)]
        for _ in range(4)
    ]
    weight = torch.randn(batch, channels, 3, 3, device=device, dtype=dtype)
    bias = torch.randn(channels, device=device, dtype=dtype)

    def in_turn(work: Callable[[Tensor, Tensor], object]) -> Callable[[], Figures]:
        def run() -> Figures:
            whole = measure(captured(lambda: [work(*pair) for pair in sets], device), device, runs)  # type: ignore
            return {"median_ms": whole["median_ms"] / 4, "raw_ms": [t / 4 for t in whole["raw_ms"]]}  # type: ignore

        return run

    found: dict[str, Callable[[], Figures]] = {
        "copy": in_turn(lambda x, y: y.copy_(x)),
        "kernel, default tile": in_turn(
            lambda x, _: torch.ops.fewer.depthwise_per_sample(x, weight, bias, True)
        ),
        "gradient kernel, default tile": in_turn(
            lambda x, y: torch.ops.fewer.depthwise_per_sample_gradients(x, y)
        ),
        "grouped convolution of cuDNN": in_turn(
            lambda x, _: nn.functional.conv2d(
                x.permute(0, 3, 1, 2).reshape(1, -1, side, side), weight.reshape(-1, 1, 3, 3), padding=1,
                groups=batch * channels,
            )
        ),
    }  # fmt: skip
    if device == "cuda" and tiles:
        from fewer.kernels.triton.depthwise_per_sample import (
            launch_depthwise_per_sample,
            launch_depthwise_per_sample_gradients,
        )

        for tile in TILES:
            found[f"kernel {tile}"] = in_turn(
                lambda x, _, tile=tile: launch_depthwise_per_sample(x, weight, bias, True, tile)
            )
        for tile in GRADIENT_TILES:
            found[f"gradient kernel {tile}"] = in_turn(
                lambda x, y, tile=tile: launch_depthwise_per_sample_gradients(x, y, tile)
            )
    return found


def main() -> None:
    parts = [part for part in PARTS if f"--{part}" in sys.argv] or list(PARTS)
    left_out = [word.removeprefix("--no-") for word in sys.argv if word.startswith("--no-")]
    sys.argv = [w for w in sys.argv if w.removeprefix("--") not in PARTS and not w.startswith("--no-")]
    given = options("can_speed")
    device, batch = given.device, 2 if given.tiny else 64
    params = ClassConditionalParams(
        architecture="dit", size=8 if given.tiny else 32, width=32 if given.tiny else 512,
        depth=2 if given.tiny else 12, heads=2 if given.tiny else 8,
    )  # fmt: skip
    shape: Figures = {
        "batch": batch, "tokens": (params.size // 2) ** 2, "width": params.width, "depth": params.depth,
    }  # fmt: skip
    latents = torch.randn(batch, 3, params.size, params.size, device=device)
    inputs = (latents, 1000 * torch.rand(batch, device=device), torch.arange(batch, device=device) % 10)

    def trained(model: nn.Module, loop: bool = False) -> Callable[[], Tensor]:
        model.to(device).train()
        gpu = device == "cuda"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=gpu or None, capturable=gpu)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, cache_enabled=False):
                pieces = [slice(i, i + 1) for i in range(batch)] if loop else [slice(None)]
                parts = [model(*(x[piece] for x in inputs)).square().mean() for piece in pieces]
                loss = torch.stack(parts).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def network(form: str) -> nn.Module:
        if form == "static":
            return build(params, None, 0)
        if form == "static, our kernel":
            model = build(params, None, 0)
            for block in model.blocks:  # type: ignore[union-attr]
                block.mlp.dwconv = PerSampleStatic(block.mlp.dwconv)
            return model
        return build(params, ConditionPlan(form=form), 0)  # type: ignore[arg-type]

    def row(form: str, graph: bool, runs: int, loop: bool = False) -> Callable[[], Figures]:
        def run() -> Figures:
            step = trained(network(form), loop)
            return measure(captured(step, device) if graph else step, device, runs)

        return run

    few = min(given.runs, 20)
    if "training" in parts:
        wanted = {
            f"train graph, {form}": row(form, True, few) for form in ("static", "static, our kernel", "fused")
        }
        if "eager" not in left_out:
            wanted |= {f"train eager, {form}": row(form, False, 10) for form in ("static", "fused")}
        if "slow-peers" not in left_out:
            wanted["train eager, split"] = row("split", False, 3)
            wanted["train eager, loop over samples"] = row("split", False, 1, loop=True)
        rows = contest(wanted, only=given.only)
        finish("can_speed_training", {**shape, "rows": rows, "summary": of_training(rows)}, given)
    if "inference" in parts:
        rows = inference(network("fused").to(device), inputs, device, 5 * given.runs)
        finish("can_speed_inference", {**shape, "rows": rows, "summary": of_inference(rows)}, given)
    if "kernels" in parts:
        contenders = kernels(batch, params.size // 2, 4 * params.width, device, few, "tiles" not in left_out)
        rows = contest(contenders, only=given.only)
        channels = 4 * params.width
        nbytes = 2 * batch * (2 * (params.size // 2) ** 2 * channels + 9 * channels)
        finish("can_speed_kernels", {**shape, "rows": rows, "summary": of_kernels(nbytes, rows)}, given)


@torch.no_grad()
def inference(can: nn.Module, inputs: tuple[Tensor, ...], device: str, runs: int) -> dict[str, Figures]:
    """One forward pass of the static twin, of the merged network, and with weights generated on the way."""
    assert isinstance(can, ConditionAware)
    for generator in can.can.values():  # as if trained: zeros would make merged weights the static ones
        nn.init.normal_(generator.b.weight, std=1e-3)  # type: ignore[union-attr]
    merged = can.merge(can.embed(inputs[1][:1], inputs[2][:1])).eval()
    twin = can.static_twin().eval()

    def forward(model: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast(device, torch.bfloat16, cache_enabled=False):
                return model(*inputs)

        return run

    networks = {"static": twin, "merged": merged, "static again": twin, "not merged": can}
    return contest(
        {
            name: (lambda m=model: measure(captured(forward(m), device), device, runs))
            for name, model in networks.items()
        }
    )


def median(table: dict[str, Figures], name: str) -> float:
    value = table.get(name, {}).get("median_ms")
    return value if isinstance(value, float) else float("nan")


def of_kernels(nbytes: int, rows: dict[str, Figures]) -> dict[str, object]:
    """`nbytes` is what the kernel must read and write."""
    best = min((n for n in rows if n.startswith("kernel (")), key=lambda n: median(rows, n), default="")
    best_gradient = min(
        (n for n in rows if n.startswith("gradient kernel (")), key=lambda n: median(rows, n), default=""
    )
    return {
        "kernel_share_of_copy": median(rows, "copy") / median(rows, "kernel, default tile"),
        "kernel_share_of_peak": nbytes / PEAK_BYTES * 1e3 / median(rows, "kernel, default tile"),
        "best_tile": best,
        "best_tile_share_of_copy": median(rows, "copy") / median(rows, best) if best else float("nan"),
        "best_gradient_tile": best_gradient,
    }


def of_training(rows: dict[str, Figures]) -> dict[str, object]:
    fused, static = median(rows, "train graph, fused"), median(rows, "train graph, static")
    return {
        "ratio_graph": fused / static,
        "ratio_graph_to_static_with_our_kernel": fused / median(rows, "train graph, static, our kernel"),
        "ratio_eager": median(rows, "train eager, fused") / median(rows, "train eager, static"),
    }


def of_inference(rows: dict[str, Figures]) -> dict[str, object]:
    static = statistics.mean([median(rows, "static"), median(rows, "static again")])
    return {"merged_ratio": median(rows, "merged") / static}


if __name__ == "__main__":
    if "--check" in sys.argv:
        errors = correctness("cuda" if torch.cuda.is_available() else "cpu")
        print(errors)
        record("can_kernel_check", {"relative_errors": errors})
    else:
        main()
