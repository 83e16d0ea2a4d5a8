"""Where the engine's time goes: kernels of a Sana step, of a decode and of FLUX-shaped blocks, longest first.

runs on: gpu. Random weights of the published shapes; each work is replayed from its CUDA graph (4096 px
decoding is not one) under torch's profiler, and kernels of the same name are summed. `gaps_us` is the time in
which no kernel ran.
Run: python benchmarks/engine_profile.py [--only step|decode|flux] [--tiny --device cpu] [--output FILE.json]
"""

# bench: gpu, 2 min:

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from engine_flux_block import EngineBlock, JointBlock, SingleBlock, inputs_of
from engine_sana import TINY, Scene
from stopwatch import Figures, contest, finish, options, store
from torch.profiler import ProfilerActivity, profile

from fewer.generate.autoencoder import DCAutoencoder, published_config
from fewer.generate.engine import accelerate
from fewer.generate.transformer import published

MOST_NAMES, SHOWN = 40, 20


def kernels_of(call: Callable[[], object], runs: int = 3) -> Figures:
    """Microseconds and launches of every kernel in one call, longest first."""
    for _ in range(2):
        call()
    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    spans, total = [], defaultdict(lambda: [0.0, 0])
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
            total[event.name][0] += event.time_range.elapsed_us() / runs
            total[event.name][1] += 1 / runs
    spans.sort()
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy, until = busy + max(0.0, end - max(start, until)), max(until, end)
    longest = sorted(total.items(), key=lambda item: -item[1][0])[:MOST_NAMES]
    wall = (until - spans[0][0]) / runs if spans else 0.0
    return {
        "wall_us": round(wall, 1),
        "gaps_us": round(wall - busy / runs, 1),
        "kernels": {name[:110]: [round(us, 1), round(count, 1)] for name, (us, count) in longest},
    }


def works(given) -> dict[str, Callable[[], Figures]]:
    found: dict[str, Callable[[], Figures]] = {}

    scenes: dict[str, Scene] = {}

    def step(name: str, pixels: int, h8: bool) -> Figures:
        params = TINY if given.tiny else replace(published(name), interpolation_scale=None)
        side = 4 if given.tiny else pixels // 32
        if name not in scenes:
            scenes.clear()
            scenes[name] = Scene(params, side, 5 if given.tiny else 300, given)
        scene = scenes[name]
        scene.latents = torch.randn(2, params.in_channels, side, side).to(scene.device, scene.dtype)
        return kernels_of(scene.ours(scene.h8(True, True) if h8 else accelerate(scene.model)))

    def decode(pixels: int) -> Figures:
        torch.manual_seed(0)
        config = published_config("f32c32-sana")
        model = accelerate(DCAutoencoder(config).eval().to(given.device, torch.bfloat16))
        side = pixels // config.spatial_compression_ratio
        latents = torch.randn(1, config.latent_channels, side, side).to(given.device, torch.bfloat16)
        return kernels_of(lambda: model.decode(latents, tile=None))

    def flux(kind: type) -> Figures:
        dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
        dim, heads, inputs = inputs_of(given, dtype)
        gpu = given.device.startswith("cuda")
        block = EngineBlock(kind(dim, heads).to(given.device, dtype), dtype, gpu, fold=True)
        return kernels_of(lambda: block(*inputs))

    for name, pixels in (("sana-0.6b-1024", 1024), ("sana-0.6b-1024", 4096), ("sana-1.6b-1024", 1024)):
        for h8 in (False, True):
            found[f"step {name} {pixels} px, {'h8, kept and folded' if h8 else 'bf16'}"] = (
                lambda name=name, pixels=pixels, h8=h8: step(name, pixels, h8)
            )
    if not given.tiny:
        found["decode 1024 px"] = lambda: decode(1024)
        found["decode 4096 px"] = lambda: decode(4096)
    found["flux joint block, h8"] = lambda: flux(JointBlock)
    found["flux single block, h8"] = lambda: flux(SingleBlock)
    return found


def show(rows: dict[str, Figures], given) -> None:
    """The longest kernels of the latest work; all works so far are written."""
    store("engine_profile", rows, given)
    row = rows[list(rows)[-1]]
    print(row.get("wall_us"), "us, gaps", row.get("gaps_us"), file=sys.stderr)
    for kernel, (us, count) in list(row.get("kernels", {}).items())[:SHOWN]:  # type: ignore[attr-defined]
        print(f"  {us:9.1f} {count:6.1f}  {kernel[:80]}", file=sys.stderr)


@torch.no_grad()
def main() -> None:
    given = options("engine_profile")
    rows = contest(works(given), None, given.only, lambda rows: show(rows, given))
    finish("engine_profile", rows, given)


if __name__ == "__main__":
    main()
