"""One picture on 1, 2, 4, 8 devices in turn, within one time limit. runs on: gpu

Dry run without a GPU: --shape tiny --device cpu --sizes 512 --devices 1 2

Per size and plan: time of a denoising step (median), time of the exchange when nothing is computed, bytes
received a step, relative error to one rank, and the decoder. Peers' ratios to hold beside it: xDiT,
Sana-1.6B at 4096 px, A100: 2 ranks 1.53-1.72 x, 8 ranks 4.40 x; DistriFusion, SDXL at 3840 px: 8 ranks
6.1 x (6.6 x with guidance split). Random weights: speed and error only, no pictures.
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import torch
from record import record

from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.published import published_config
from fewer.generate.transformer.params import SanaParams, published
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import Group, ParallelPlan, parallelize, run_on_devices
from fewer.parallel.launch import measure_link

TINY = SanaParams(
    in_channels=8, out_channels=8, heads=4, head_dim=16, depth=2, cross_heads=2, cross_head_dim=32,
    caption_channels=32, sample_size=32,
)  # fmt: skip


def build(params: SanaParams, device: torch.device, dtype: torch.dtype) -> SanaTransformer:
    with torch.device("meta"):
        model = SanaTransformer(params)
    model = model.to_empty(device=device).to(dtype).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(0, scale, generator=generator)
    return model


def median_ms(call: object, device: torch.device, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times[2:])


def graphed(call: object, device: torch.device) -> tuple[object, bool]:
    """The call as a CUDA graph where it can be captured; gives the call itself and False where not."""
    if device.type != "cuda":
        return call, False
    for _ in range(3):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error)[:200]}")
        return call, False
    return graph.replay, True


@torch.no_grad()
def rank_main(group: Group, options: argparse.Namespace) -> list[dict[str, object]]:
    device = (
        torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    params = TINY if options.shape == "tiny" else published(options.shape)
    model = build(params, device, dtype)
    rows = []
    for size in options.sizes:
        side = size // 32
        generator = torch.Generator().manual_seed(1)
        samples = 2 if options.guided else 1
        latents = torch.randn(samples, params.in_channels, side, side, generator=generator).to(device, dtype)
        text = torch.randn(samples, options.tokens, params.caption_channels, generator=generator).to(
            device, dtype
        )
        when = torch.full((samples,), 500.0, device=device)
        for mode in options.modes:
            plan = plan_for(mode, group.size)
            if plan is None:
                continue
            runner = parallelize(model, plan, group)
            prepared = runner.prepare(text)
            groups = [member for member in (runner.session.group, runner.guidance_group) if member]
            for member in groups:
                member.traffic.clear()
            result = runner.denoise(latents, when, prepared)
            received = [replace(member.traffic) for member in groups]
            call, is_graph = graphed(partial(runner.denoise, latents, when, prepared), device)
            times = median_ms(call, device, options.repeats)
            row: dict[str, object] = {
                "size": size, "devices": group.size, "mode": mode, "plan": plan.explain(),
                "cuda_graph": is_graph, "step_ms": times[len(times) // 2], "raw_ms": times,
                "collectives": sum(traffic.collectives for traffic in received),
                "received_bytes": sum(
                    traffic.sum_bytes + traffic.neighbour_bytes + traffic.gather_bytes for traffic in received
                ),
            }  # fmt: skip
            if group.size == 1 or options.check:
                alone = model.denoise(latents, when, model.prepare(text))
                row["relative_error"] = float((result - alone).float().norm() / alone.float().norm())
            rows.append(row)
        if options.decode:
            rows.append(decode_row(group, size, device, dtype, options))
    if group.size > 1:
        latency, bandwidth = measure_link(group, device)
        rows.append({"devices": group.size, "sum_of_1_KB_us": 1e6 * latency, "sum_GB_per_s": bandwidth / 1e9})
    return rows


def plan_for(mode: str, devices: int) -> ParallelPlan | None:
    if mode == "split":
        return ParallelPlan(devices=devices, mode="sync", guidance="split") if devices % 2 == 0 else None
    return ParallelPlan(devices=devices, mode=mode, guidance="batched", warmup_steps=0)


def decode_row(
    group: Group, size: int, device: torch.device, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, object]:
    torch.manual_seed(0)
    decoder = DCAutoencoder(published_config("f32c32-sana-1.0")).to(device, dtype).eval()
    runner = parallelize(decoder, ParallelPlan(devices=group.size), group)
    latents = torch.randn(1, 32, size // 32, size // 32, generator=torch.Generator().manual_seed(2)).to(
        device, dtype
    )
    times = median_ms(lambda: runner.decode(latents), device, max(3, options.repeats // 4))
    return {
        "size": size,
        "devices": group.size,
        "mode": "decode",
        "decode_ms": times[len(times) // 2],
        "raw_ms": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sana-1.6b-1024", help="a published Sana, or tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--modes", nargs="+", default=["sync", "displaced", "split"])
    parser.add_argument("--guided", action="store_true", help="two samples a step, as guidance needs")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument(
        "--check", action="store_true", help="also compute the error to one device on every rank"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="no new count of devices is started after this"
    )
    parser.add_argument("--name", default="scaling")
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    for devices in options.devices:
        if time.monotonic() - began > 60 * options.minutes:
            print(f"out of time before {devices} devices")
            break
        rows += run_on_devices(rank_main, devices, options, device_type=options.device, timeout_seconds=120.0)
    ones = {
        (row["size"], row["mode"]): row["step_ms"] for row in rows if row["devices"] == 1 and "step_ms" in row
    }
    for row in rows:
        one = ones.get((row.get("size"), row.get("mode")), ones.get((row.get("size"), "sync")))
        if "step_ms" in row and one:
            row["speedup"] = one / row["step_ms"]
        print({name: value for name, value in row.items() if name not in ("raw_ms", "plan")})
    print(record(options.name, {"shape": options.shape, "guided": options.guided, "rows": rows}))


if __name__ == "__main__":
    main()
