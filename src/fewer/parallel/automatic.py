"""`auto` on this machine: link and model are timed, both splits are priced, and it says why."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.generate.engine.sana import FusedSana
from fewer.generate.engine.shell import shell
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.group import Group
from fewer.parallel.link import (
    measure_link,
    median_seconds,
    prefer_fast_rows,
    prefer_fast_sums,
    prefer_peer_exchange,
)
from fewer.parallel.plan import Link, ParallelPlan, Work, choose_plan, step_seconds


def plan_on_this_machine(
    plan: ParallelPlan,
    transformer: SanaTransformer,
    group: Group,
    latents: Sequence[int],
    text_tokens: int,
    guided: bool,
) -> tuple[ParallelPlan, str]:
    """The plan with nothing left to choose, equal on every rank, and the reason in one sentence.

    `latents` is (height, width) of the latents, `transformer` on this rank's device and not yet spread. All
    ranks must call it. Where one device is predicted to be faster than all together, the sentence says so.
    """
    device = transformer.proj_out.weight.device
    link = measure_link(group, device)
    asked = [prefer_fast_sums(group, device), prefer_fast_rows(group, device)]
    if isinstance(transformer, FusedSana) and plan.mode in ("auto", "sync"):
        params = transformer.params
        asked.append(prefer_peer_exchange(group, device, params.heads, params.head_dim))
    sums = "; ".join(asked)
    own = time_of_step(transformer, latents, text_tokens)
    alone = max(float(seconds) for seconds in group.gather_object(own))  # pyright: ignore[reportArgumentType]
    work = work_of(transformer.params, alone, latents, group.size, transformer.proj_out.weight.element_size())
    chosen = choose_plan(plan, work, link, guided)
    return chosen, explain(chosen, work, link, guided, sums)


def explain(plan: ParallelPlan, work: Work, link: Link, guided: bool, sums: str) -> str:
    """What was chosen, what it and the other choices were predicted to take, and from which measurements."""
    ours = step_seconds(plan, work, link, guided)
    single = (2 if guided else 1) * work.step_seconds
    words = [f"{plan.explain()}; predicted {1e3 * ours:.1f} ms a step, one device {1e3 * single:.1f} ms"]
    if guided and plan.devices % 2 == 0:
        other = replace(plan, guidance="batched" if plan.guidance == "split" else "split")
        name = "bands alone" if other.guidance == "batched" else "guidance on two halves"
        words.append(f"{name} {1e3 * step_seconds(other, work, link, guided):.1f} ms")
    rate = f"{link.bytes_per_second / 1e9:.1f} GB/s"
    words.append(f"(link: {1e6 * link.latency_seconds:.0f} us a small sum, {rate}; {sums})")
    if ours > single:
        words.append("one device is predicted to be faster: run with --devices 1")
    return ", ".join(words)


@torch.no_grad()
def time_of_step(transformer: SanaTransformer, latents: Sequence[int], text_tokens: int) -> float:
    """Seconds of one step with one sample on this device: that of one block, times the number of blocks."""
    params, weight = transformer.params, transformer.proj_out.weight
    one = shell(type(transformer), transformer)
    one.transformer_blocks = nn.ModuleList([transformer.transformer_blocks[0]])
    if hasattr(one, "graphed"):
        one.graphed = False  # pyright: ignore[reportAttributeAccessIssue]
    sample = torch.zeros(1, params.in_channels, *latents, device=weight.device, dtype=weight.dtype)
    text = torch.zeros(1, text_tokens, params.caption_channels, device=weight.device, dtype=weight.dtype)
    time = torch.full((1,), 500.0, device=weight.device)
    guidance = torch.ones_like(time) if params.guidance_embeds else None
    prepared: PreparedText = one.prepare(text)

    def step() -> Tensor:
        return one.denoise(sample, time, prepared, guidance)

    return params.depth * median_seconds(step, weight.device, 3)


def work_of(params: SanaParams, seconds: float, latents: Sequence[int], devices: int, itemsize: int) -> Work:
    """What Sana's exact exchange receives a step and sample (distrifusion §2.3), beside its time."""
    if devices < 1:
        raise ConfigError(f"{devices} devices; at least 1 is needed")
    across = min(latents) // params.patch_size  # the longer side is cut
    state = 2 * (devices - 1) / devices * params.heads * params.head_dim * (params.head_dim + 1) * 4
    rows = (1 if devices == 2 else 2) * across * params.width * itemsize
    return Work(
        step_seconds=seconds,
        layers=params.depth,
        exact_bytes=params.depth * (state + rows),
        linear_attention=True,
        row_bytes=float(across * params.width * itemsize),
        widening=int(2 * params.mlp_ratio),
        widening_bytes=2 * params.mlp_ratio * params.width**2 * itemsize,
    )
