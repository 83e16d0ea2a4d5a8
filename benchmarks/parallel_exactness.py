"""Sync, displaced and naive patches against one device, on simulated ranks. runs on: cpu (about 3 minutes)

The toy is that of the method's acceptance: a random Sana of 4 blocks, width 64, biases not zero, latents of
16 x 8, 20 flow-Euler steps, shift 3, guidance 3. Errors are relative L2 of the final latents.
"""
# bench: cpu, 3 min:

import argparse
from itertools import pairwise

import torch
from record import record

from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import ParallelPlan, parallelize, run_simulated


def toy(dtype: torch.dtype) -> SanaTransformer:
    torch.manual_seed(0)
    params = SanaParams(
        in_channels=8, out_channels=8, heads=2, head_dim=32, depth=4, cross_heads=2, cross_head_dim=32,
        caption_channels=24, sample_size=16,
    )  # fmt: skip
    model = SanaTransformer(params).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model.to(dtype)


@torch.no_grad()
def sample(model: SanaTransformer, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = model.proj_out.weight.dtype
    latents = torch.randn(1, 8, 16, 8, generator=generator, dtype=torch.float64).to(dtype)
    prepared = model.prepare(torch.randn(2, 5, 24, generator=generator, dtype=torch.float64).to(dtype))
    raw = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for now, then in pairwise(3 * raw / (1 + 2 * raw)):
        time = torch.full((2,), 1000 * float(now), dtype=dtype)
        without, with_ = model.denoise(latents.repeat(2, 1, 1, 1), time, prepared).chunk(2)
        latents = latents + float(then - now) * (without + 3 * (with_ - without))
    return latents


def error(model: SanaTransformer, plan: ParallelPlan, steps: int = 20) -> float:
    expected = sample(model, steps)
    results = run_simulated(plan.devices, lambda group: sample(parallelize(model, plan, group), steps))
    assert all(torch.equal(result, results[0]) for result in results), "ranks differ"
    return float((results[0] - expected).norm() / expected.norm())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    single, double = toy(torch.float32), toy(torch.float64)
    rows: list[dict[str, object]] = []
    for devices in (2, 3, 4, 5, 8):
        plan = ParallelPlan(devices=devices, mode="sync")
        rows.append(
            {"mode": "sync", "devices": devices, "fp32": error(single, plan), "fp64": error(double, plan)}
        )
    for devices in (2, 4):
        naive = error(single, ParallelPlan(devices=devices, mode="naive"))
        rows.append({"mode": "naive", "devices": devices, "fp32": naive})
        for rule in ("replace", "corrected"):
            for warmup in (0, 4, 12, 18):
                plan = ParallelPlan(devices=devices, mode="displaced", state_rule=rule, warmup_steps=warmup)
                found = error(single, plan)
                rows.append(
                    {"mode": f"displaced, {rule}", "devices": devices, "warmup": warmup, "fp32": found,
                     "naive_over_this": naive / found}
                )  # fmt: skip
        found = error(
            single, ParallelPlan(devices=devices, mode="displaced", state_rule="corrected", halo="sync")
        )
        rows.append(
            {"mode": "displaced, corrected, fresh border rows", "devices": devices, "warmup": 4,
             "fp32": found, "naive_over_this": naive / found}
        )  # fmt: skip
    for steps in (10, 20, 40):
        plan = ParallelPlan(devices=2, mode="displaced", state_rule="replace")
        rows.append({"mode": "displaced, replace", "devices": 2, "warmup": 4, "steps": steps,
                     "fp32": error(single, plan, steps)})  # fmt: skip
    for row in rows:
        print({name: f"{value:.2e}" if isinstance(value, float) else value for name, value in row.items()})
    print(record("parallel_exactness", {"rows": rows}))


if __name__ == "__main__":
    main()
