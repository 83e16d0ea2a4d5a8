"""The built-in transformer's training step on one GPU, in several forms: samples a second and share of bf16.

python benchmarks/training_step.py [--batch 256] [--forms ...] writes benchmarks/results/training_step.json.
Forms: `whole` is what `fewer train sana` does on a GPU (all blocks as one function with its own backward
pass, weights in fp32, the rest in bf16); `blocks` what it did before and falls back to (blocks compiled,
products in bf16, one call after another); `graph` the same step captured as a CUDA graph; `narrow` weights
and stream in bf16 with fp32 masters in the optimizer; `middle` what lies between the Mix-FFN's products, with
its gradients, in two kernels of our own; `text` the attention to the text likewise; several words are several
of these.
FLOPs are those of the products, once forward and twice backward; the share is of 989 TFLOP/s (H100 and H200,
dense bf16). With --profile FORM its slowest kernels are listed. Random data: the time of a step does
not depend on it.
"""
# bench: gpu, 3 min:

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch
from record import record
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fewer.generate.scenes.presets import EmojiPreset, preset
from fewer.generate.scenes.recipe import fresh_transformer
from fewer.generate.training.flow import FlowBatch, flow_loss
from fewer.generate.training.quick_step import is_plain, precision
from fewer.generate.transformer.sana import SanaTransformer

PEAK = 989e12


def random_batch(net: SanaTransformer, count: int, length: int, device: torch.device) -> FlowBatch:
    side, channels = net.params.sample_size, net.params.in_channels
    latents = torch.randn(count, channels, side, side, device=device)
    text = torch.randn(count, length, net.params.caption_channels, device=device)
    mask = torch.ones(count, length, device=device)
    return FlowBatch(latents, text, mask, torch.rand(count, device=device), torch.randn_like(latents))


class Trainer:
    """One form of the step: loss, gradients, clipping, AdamW, EMA."""

    def __init__(self, form: str, count: int, length: int, width: int, device: torch.device) -> None:
        self.form, self.device = form, device
        self.net = fresh_transformer(of_width(width), 0).to(device).train()
        self.narrow = "narrow" in form
        self.masters = (
            [nn.Parameter(p.detach().clone()) for p in self.net.parameters()] if self.narrow else []
        )
        if self.narrow:
            self.net.to(torch.bfloat16)
        self.net.whole = "whole" in form
        if device.type == "cuda" and not self.net.whole:
            self.net.fuse_attention(is_plain(self.net))
            for block in self.net.transformer_blocks:
                block.ff.own_middle, block.attn2.fused = "middle" in form, "text" in form
            for block in self.net.transformer_blocks:
                block.compile(dynamic=False)
        self.own = list(self.net.parameters())
        self.moving = self.masters or self.own
        graph = "graph" in form
        self.optimizer = torch.optim.AdamW(
            self.moving, lr=torch.tensor(1e-4, device=device) if graph else 1e-4,
            betas=(0.9, 0.95), fused=device.type == "cuda", capturable=graph and device.type == "cuda",
        )  # fmt: skip
        self.average = [p.detach().clone() for p in self.moving]
        self.batch = random_batch(self.net, count, length, device)
        if self.narrow:
            b = self.batch
            self.batch = FlowBatch(
                b.latents.bfloat16(), b.text.bfloat16(), b.text_mask, b.levels.bfloat16(), b.noise.bfloat16()
            )

    def loss(self) -> Tensor:
        if self.narrow:
            return flow_loss(self.net, self.batch)
        with precision(torch.bfloat16, self.device):
            return flow_loss(self.net, self.batch)

    def step(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        if self.narrow:
            for master in self.masters:
                master.grad = torch.empty_like(master) if master.grad is None else master.grad
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.own])
        nn.utils.clip_grad_norm_(self.moving, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.moving, 0.002)
            if self.narrow:
                torch._foreach_copy_(self.own, self.masters)
        self.net.zero_grad(set_to_none="graph" not in self.form)
        return loss.detach()

    def captured(self) -> Callable[[], object]:
        """The step as one CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.last = self.step()
        return graph.replay


def of_width(width: int) -> EmojiPreset:
    """The built-in model's preset, with a transformer of that width (heads keep their size)."""
    chosen = preset("emoji")
    heads = width // chosen.transformer.head_dim
    return replace(chosen, transformer=replace(chosen.transformer, heads=heads, cross_heads=heads))


@lru_cache(maxsize=8)
def flops(count: int, length: int, width: int) -> float:
    """Of one training step: products of a small batch forward, three times, in proportion."""
    net = fresh_transformer(of_width(width), 0)
    with FlopCounterMode(display=False) as counter:
        flow_loss(net, random_batch(net, 2, length, torch.device("cpu")))
    return 3 * counter.get_total_flops() * count / 2


def measure(
    form: str, count: int, length: int, width: int, seconds: float, device: torch.device
) -> dict[str, object]:
    began = time.perf_counter()
    trainer = Trainer(form, count, length, width, device)
    cuda = device.type == "cuda"
    run = trainer.captured() if "graph" in form and cuda else trainer.step
    for _ in range(3):
        run()
    if cuda:
        torch.cuda.synchronize()
    warm, steps, start = time.perf_counter() - began, 0, time.perf_counter()
    marks = [start]
    while marks[-1] - start < seconds:
        for _ in range(5):
            run()
        if cuda:
            torch.cuda.synchronize()
        steps += 5
        marks.append(time.perf_counter())
    each = sorted((after - before) / 5 for before, after in pairwise(marks))
    median = each[len(each) // 2]
    return {
        "batch": count,
        "warm_up_seconds": round(warm, 1),
        "step_ms": round(1e3 * median, 2),
        "step_ms_range": [round(1e3 * each[0], 2), round(1e3 * each[-1], 2)],
        "samples_a_second": round(count / median),
        "tflops": round(flops(count, length, width) / median / 1e12, 1),
        "share_of_bf16": round(flops(count, length, width) / median / PEAK, 4),
        "gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1) if cuda else None,
    }


def slowest(form: str, count: int, length: int, width: int, device: torch.device) -> list[dict[str, object]]:
    """Kernels of a step by their time."""
    trainer = Trainer(form, count, length, width, device)
    for _ in range(3):
        trainer.step()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(2):
            trainer.step()
        torch.cuda.synchronize()
    rows = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    rows.sort(key=lambda event: -event.self_device_time_total)
    kernels = [row for row in rows if row.device_type == torch.autograd.DeviceType.CUDA]
    return [
        {"kernel": row.key[:110], "calls": row.count // 2, "ms": round(row.self_device_time_total / 2e3, 3)}
        for row in kernels[:40]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=32, help="positions of text")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=[
            "blocks",
            "narrow graph",
            "narrow middle text graph",
            "whole",
            "whole graph",
            "whole graph@512",
        ],
        help="FORM or FORM@BATCH",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each, after its warm-up")
    parser.add_argument(
        "--profile", metavar="FORM", help="a form without the graph, whose kernels are listed"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--width", type=int, default=384, help="of the transformer; others go to a file of their own"
    )
    options = parser.parse_args()
    name_of_file = "training_step" if options.width == 384 else f"training_step_{options.width}"
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    rows: dict[str, object] = {}
    facts: dict[str, object] = {"length": options.length, "width": options.width, "forms": rows}
    if options.profile and device.type == "cuda":
        facts["slowest_of"] = options.profile
        facts["slowest"] = slowest(options.profile, options.batch, options.length, options.width, device)
        record(name_of_file, facts)
    for form in options.forms:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        name, _, batch = form.partition("@")
        try:
            rows[form] = measure(
                name, int(batch or options.batch), options.length, options.width, options.seconds, device
            )
        except Exception as error:  # a form that cannot be: say so, and go on
            rows[form] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(form, rows[form], flush=True)
        record(name_of_file, facts)


if __name__ == "__main__":
    main()
