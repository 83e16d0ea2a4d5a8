"""Speed of condition-aware weights on one GPU: training step, merged inference, and the per-sample kernel.

python benchmarks/can_speed.py --device cuda      (`--device cpu --tiny` only checks that it runs)
writes benchmarks/results/can_speed.json. Bars: training step <= 1.25x the static twin (peer: a loop over
samples), merged inference <= 1.02x, depthwise kernel >= 70 % of the memory bandwidth that a copy reaches.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fewer.generate.conditional import ClassConditionalParams, ConditionAware, ConditionPlan
from fewer.generate.conditional.build import build
from fewer.kernels.depthwise_per_sample import depthwise_per_sample

RESULT = Path(__file__).parent / "results" / "can_speed.json"


def clock(work: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Milliseconds of each repeat after warm-up."""
    times = []
    for index in range(repeats + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= 3:
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device, batch = options.device, 2 if options.tiny else 64
    params = ClassConditionalParams(
        architecture="dit", size=8 if options.tiny else 32, width=32 if options.tiny else 512,
        depth=2 if options.tiny else 12, heads=2 if options.tiny else 8,
    )  # fmt: skip
    latents = torch.randn(batch, 3, params.size, params.size, device=device)
    inputs = (latents, 1000 * torch.rand(batch, device=device), torch.arange(batch, device=device) % 10)
    models = {"static": build(params, None, 0)}
    for form in ("split", "joined", "fused"):
        models[form] = build(params, ConditionPlan(form=form), 0)
    results: dict[str, object] = {"batch": batch, "tokens": (params.size // 2) ** 2, "width": params.width}

    def train(model: nn.Module, loop: bool = False) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            pieces = range(batch) if loop else [slice(None)]
            parts = [tuple(x[i : i + 1] if loop else x for x in inputs) for i in pieces]
            loss = sum(model(*part).square().mean() for part in parts)
        loss.backward()  # pyright: ignore

    for name, model in models.items():
        model.to(device)
        results[f"train_{name}_ms"] = clock(lambda m=model: train(m), device, options.repeats)
    results["train_loop_ms"] = clock(
        lambda: train(models["split"], True), device, max(2, options.repeats // 10)
    )
    with torch.no_grad():
        can = models["split"]
        assert isinstance(can, ConditionAware)
        merged = can.merge(can.embed(inputs[1][:1], inputs[2][:1]))
        results["merged_ms"] = clock(lambda: merged(*inputs), device, options.repeats)
        results["static_ms"] = clock(lambda: models["static"](*inputs), device, options.repeats)
        side, channels = params.size // 2, 4 * params.width
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        x = torch.randn(batch, side, side, channels, device=device, dtype=dtype)
        weight = torch.randn(batch, channels, 3, 3, device=device, dtype=dtype)
        results["kernel_ms"] = clock(
            lambda: depthwise_per_sample(x, weight, None, True), device, options.repeats
        )
        results["copy_ms"] = clock(lambda: torch.empty_like(x).copy_(x), device, options.repeats)
        results["kernel_bytes"] = 2 * x.nbytes + weight.nbytes
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    text = json.dumps({"device": name, "torch": torch.__version__, **results}, indent=1)
    print(text)
    if not options.tiny:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
