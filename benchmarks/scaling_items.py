"""What scaling.py measures, item by item; each is called on every rank and adds rows as it finds them."""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from scaling_quality import quality
from scaling_quantized import quantized
from scaling_table import table
from scaling_tools import build, in_graph, relative_error, wall_ms
from scaling_unet import unet
from torch import Tensor, nn

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig, published_config
from fewer.generate.engine import accelerate
from fewer.generate.engine import sana as engine_sana
from fewer.generate.sampling import sample
from fewer.generate.transformer import SanaParams, SanaTransformer, published
from fewer.parallel import Group, ParallelPlan, choose_plan, parallelize
from fewer.parallel.link import (
    measure_link,
    prefer_fast_rows,
    prefer_fast_sums,
    prefer_peer_exchange,
)
from fewer.parallel.plan import Work

TINY = SanaParams(
    in_channels=8, out_channels=8, heads=4, head_dim=16, depth=2, cross_heads=2, cross_head_dim=32,
    caption_channels=32, sample_size=32,
)  # fmt: skip
TINY_AUTOENCODER = DCAutoencoderConfig(
    latent_channels=8, attention_head_dim=8,
    encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16),
    encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
    encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
)  # fmt: skip


class Stand:
    """Where the items stand: groups of every size, models, inputs, a clock and the rows so far."""

    def __init__(self, world: Group, options: argparse.Namespace) -> None:
        # Every size in a graph, so that one device and several are treated alike.
        engine_sana.MOST_TOKENS_IN_A_GRAPH = 2**31
        self.world, self.options = world, options
        self.rows: list[dict[str, object]] = []
        cuda = options.device == "cuda"
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self.dtype = torch.bfloat16 if cuda else torch.float32
        self.groups: dict[int, Group] = {}
        self.params = TINY if options.shape == "tiny" else published(options.shape)
        for count in sorted(options.devices):
            if count == world.size:
                self.groups[count] = world
                self.prefer(count, world)
            elif count > 1:
                part = world.split([range(count), range(count, world.size)])
                if world.rank < count:
                    self.groups[count] = part
                self.prefer(count, part)  # the other part too: ranks must have met equally often
        self._sana: SanaTransformer | None = None
        self.alone: dict[tuple[int, int], tuple[float, Tensor]] = {}

    def prefer(self, count: int, group: Group) -> None:
        """Lets the group take the faster way for its sums and border rows."""
        state = self.params.heads * self.params.head_dim * (self.params.head_dim + 1)
        self.emit(item="sums", devices=count, said=prefer_fast_sums(group, self.device, state))
        self.emit(item="rows", devices=count, said=prefer_fast_rows(group, self.device))
        if self.options.exchange == "auto":
            said = prefer_peer_exchange(group, self.device, self.params.heads, self.params.head_dim)
            self.emit(item="exchange", devices=count, said=said)

    def seconds_left(self) -> float:
        return self.options.deadline - time.time()

    def emit(self, **row: object) -> None:
        self.rows.append(row)
        if self.world.rank == 0:
            # As it is measured, so that a run that is cut short has not been in vain.
            for line in table([row]):
                print(f"{time.time() - self.options.began:6.1f} s  {line}", flush=True)
            if self.options.lines:
                with self.options.lines.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")

    def tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def many(self) -> Iterator[tuple[int, Group]]:
        """Counts above one that this rank takes part in."""
        for count in sorted(self.groups):
            if count > 1:
                yield count, self.groups[count]

    @property
    def sana(self) -> SanaTransformer:
        """On one device, run by the engine, a graph a step."""
        if self._sana is None:
            model = build(lambda: SanaTransformer(self.params), self.device, self.dtype)
            self._sana = accelerate(model, graphs=True)
        return self._sana

    def inputs(self, size: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        side = size // 32
        latents = torch.randn(samples, self.params.in_channels, side, side, generator=generator)
        text = torch.randn(samples, 300 if side > 8 else 7, self.params.caption_channels, generator=generator)
        times = torch.full((samples,), 500.0, device=self.device)
        return latents.to(self.device, self.dtype), text.to(self.device, self.dtype), times

    def timed(
        self,
        call: Callable[[], object],
        repeats: int | None = None,
        warm_up: int = 3,
        group: Group | None = None,
    ) -> list[float]:
        """Milliseconds of each call: CUDA events with nothing waited for in between, or the wall clock.

        Slow calls are repeated less often: as often on every rank of the `group` that calls together.
        """
        repeats = repeats or self.options.repeats
        if self.device.type == "cpu":  # a dry run: the figures mean nothing, and 8 ranks share two cores
            call()
            return sorted(wall_ms(call) for _ in range(min(repeats, self.options.repeats)))
        call()
        once = wall_ms(call, self.device)
        for _ in range(warm_up - 2):
            call()
        if group is not None:
            once = max(float(value) for value in group.gather_object(once))  # pyright: ignore[reportArgumentType]
        repeats = min(repeats, max(6, int(1000 / max(once, 1e-3))))
        torch.cuda.synchronize()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in pairs:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sorted(start.elapsed_time(end) for start, end in pairs)


def warm(stand: Stand) -> None:
    """Compiles kernels side by side: the last rank the decoder's, the others the transformer's, for all."""
    if stand.world.rank == stand.world.size - 1 and "decode" in stand.options.items:
        config = TINY_AUTOENCODER if stand.options.shape == "tiny" else published_config("f32c32-sana-1.0")
        decoder = accelerate(build(lambda: DCAutoencoder(config), stand.device, stand.dtype))
        latents = torch.ones(1, config.latent_channels, 32, 32, device=stand.device, dtype=stand.dtype)
        decoder.decode(latents)
    else:
        size = stand.options.sizes[stand.world.rank % len(stand.options.sizes)]
        latents, text, times = stand.inputs(size, 1)
        stand.sana.denoise(latents, times, stand.sana.prepare(text))
        stand.sana.graphs.forget()  # type: ignore[operator]
    stand.world.gather_object(None)


def link(stand: Stand) -> None:
    """Latency of the collectives at the sizes that matter, each in a graph of 20 where there are graphs."""
    together = 20 if stand.device.type == "cuda" else 1
    for count, group in stand.many():
        measured = measure_link(group, stand.device)
        stand.emit(item="link", devices=count, sum_us=1e6 * measured.latency_seconds,
                   gb_per_s=measured.bytes_per_second / 1e9)  # fmt: skip
        for name, call in calls_of_a_step(stand, group).items():
            try:
                many = in_graph(partial(several_times, call, together), stand.device)
                times = stand.timed(many, 40, group=group)
            except Exception as error:
                stand.emit(item="link", devices=count, failed=f"{name}: {error}"[:300])
                if name.startswith("border"):
                    group.rows_by_gather = True  # pyright: ignore[reportAttributeAccessIssue]
                continue
            each = [milliseconds / together for milliseconds in times]
            stand.emit(item="link", devices=count, what=name, us=1e3 * statistics.median(each),
                       us_95=1e3 * each[int(0.95 * len(each))])  # fmt: skip


def calls_of_a_step(stand: Stand, group: Group) -> dict[str, Callable[[], object]]:
    """What a step does to its group, at 8 KB to 1 MB; a state of Sana-1.6B has 295,680 bytes."""
    tensors = {numel * 4: torch.ones(numel, device=stand.device) for numel in (2048, 16384, 73920, 2**18)}
    calls: dict[str, Callable[[], object]] = {
        f"sum of {size} bytes": lambda tensor=tensor: group.start_sum(tensor).wait()
        for size, tensor in tensors.items()
    }
    row = torch.ones(128 * 2240, device=stand.device, dtype=stand.dtype)
    calls["border row of 128 tokens"] = lambda: group.start_neighbours(row, row).wait()
    calls["gather of 128 tokens"] = lambda: group.start_gather(row, [row.numel()] * group.size, 0).wait()
    return calls


def several_times(call: Callable[[], object], times: int) -> list[object]:
    return [call() for _ in range(times)]


def step(stand: Stand) -> None:
    """One denoising step without guidance, at every size."""
    for size in stand.options.sizes:
        steps_at(stand, size, 1, ("sync", "naive"), "step")


def displaced(stand: Stand) -> None:
    """The same with the activations of the step before."""
    for size in stand.options.sizes:
        steps_at(stand, size, 1, ("displaced",), "displaced")


def guided(stand: Stand) -> None:
    """Two samples a step: both on every band, or halves on different devices; and what auto says."""
    for size in stand.options.sizes:
        steps_at(stand, size, 2, ("sync", "split"), "guided")


def steps_at(stand: Stand, size: int, samples: int, modes: tuple[str, ...], item: str) -> None:
    latents, text, times = stand.inputs(size, samples)
    one = stand.sana
    prepared = one.prepare(text)
    if (size, samples) not in stand.alone:
        expected = one.denoise(latents, times, prepared).clone()
        alone = stand.timed(lambda: one.denoise(latents, times, prepared))
        one_ms = statistics.median(alone)
        stand.emit(
            item=item, size=size, devices=1, mode="one device", samples=samples, ms=one_ms, raw_ms=alone
        )
        one.graphs.forget()  # type: ignore[operator]
        stand.alone[size, samples] = (one_ms, expected)
    one_ms, expected = stand.alone[size, samples]
    for count, group in stand.many():
        found: dict[str, float] = {}
        for mode in modes:
            plan = plan_for(mode, count)
            if plan is None:
                continue
            plan = replace(plan, border=stand.options.border)
            runner = parallelize(one, plan, group)
            row: dict[str, object] = {"item": item, "size": size, "devices": count, "mode": mode,
                                      "samples": samples, "plan": plan.explain()}  # fmt: skip
            row |= traffic_of(runner, lambda r=runner: r.denoise(latents, times, prepared))
            result = runner.denoise(latents, times, prepared)
            row["relative_error"] = relative_error(result, expected)
            taken = stand.timed(lambda r=runner: r.denoise(latents, times, prepared), group=group)
            found[mode] = row["ms"] = statistics.median(taken)  # pyright: ignore[reportArgumentType]
            row |= {"raw_ms": taken, "speedup": one_ms / found[mode], "graphed": is_graphed(runner)}
            if "naive" in found and "sync" in found and mode == "naive":
                row["exposed_ms"] = found["sync"] - found["naive"]
                row["exposed_share"] = row["exposed_ms"] / found["sync"]
            stand.emit(**row)
            runner.forget()
            stand.tidy()
        if item == "guided":
            emit_choice(stand, size, one_ms, count, group, found)


def emit_choice(
    stand: Stand, size: int, one_ms: float, count: int, group: Group, found: dict[str, float]
) -> None:
    """What `auto` picks with the link measured just now, beside what each split took."""
    params, tokens = stand.params, (size // 32) ** 2
    state = (
        2 * (count - 1) / count * params.heads * params.head_dim * (params.head_dim + 1) * 4 * params.depth
    )
    rows = (1 if count == 2 else 2) * (tokens**0.5) * params.width * 2 * params.depth
    work = Work(
        step_seconds=one_ms / 2000, layers=params.depth, exact_bytes=state + rows, linear_attention=True
    )
    chosen = choose_plan(ParallelPlan(devices=count), work, measure_link(group, stand.device), guided=True)
    picked = "split" if chosen.guidance == "split" else "sync"
    best = min(found.values())
    stand.emit(item="guided", size=size, devices=count, said=f"auto picks {picked}: {chosen.explain()}",
               picked=picked, slower_than_best=found[picked] / best - 1)  # fmt: skip


def decode(stand: Stand) -> None:
    """The DC-AE decoder at the largest size."""
    tiny = stand.options.shape == "tiny"
    config = TINY_AUTOENCODER if tiny else published_config("f32c32-sana-1.0")
    model = build(lambda: DCAutoencoder(config), stand.device, stand.dtype)
    one = accelerate(model)
    for size in stand.options.decode_sizes or sorted(stand.options.sizes, reverse=True)[:2]:
        side = size // config.spatial_compression_ratio
        generator = torch.Generator().manual_seed(2)
        latents = torch.randn(1, config.latent_channels, side, side, generator=generator)
        latents = latents.to(stand.device, stand.dtype)
        expected = one.decode(latents)
        repeats = max(3, stand.options.repeats // 3)
        alone = stand.timed(lambda z=latents: one.decode(z), repeats)
        one_ms = statistics.median(alone)
        stand.emit(item="decode", size=size, devices=1, mode="one device", ms=one_ms, raw_ms=alone)
        for count, group in stand.many():
            runner = parallelize(one, ParallelPlan(devices=count), group)
            result = runner.decode(latents)
            taken = stand.timed(lambda r=runner, z=latents: r.decode(z), repeats, group=group)
            stand.emit(item="decode", size=size, devices=count, mode="sync", ms=statistics.median(taken),
                       raw_ms=taken, speedup=one_ms / statistics.median(taken),
                       relative_error=relative_error(result, expected))  # fmt: skip
        del expected
        stand.tidy()


def picture(stand: Stand) -> None:
    """Noise to pixels at the largest size, without guidance: all steps of the solver and the decoder."""
    tiny = stand.options.shape == "tiny"
    config = TINY_AUTOENCODER if tiny else published_config("f32c32-sana-1.0")
    decoder = accelerate(build(lambda: DCAutoencoder(config), stand.device, stand.dtype))
    size = max(stand.options.sizes)
    noise, text, _ = stand.inputs(size, 1)
    one = stand.sana
    prepared = one.prepare(text)

    def draw(transformer: nn.Module, autoencoder: nn.Module) -> Tensor:
        def velocity(latents: Tensor, time_: float) -> Tensor:
            times = torch.full((1,), time_, device=stand.device)
            return transformer.denoise(latents.to(stand.dtype), times, prepared)  # pyright: ignore

        latents = noise
        for done in sample(velocity, noise.float(), stand.options.steps):
            latents = done.latents
        return autoencoder.decode(latents.to(stand.dtype))  # pyright: ignore

    def row(transformer: nn.Module, autoencoder: nn.Module) -> tuple[Tensor, list[float]]:
        result = draw(transformer, autoencoder)
        return result, sorted(wall_ms(lambda: draw(transformer, autoencoder), stand.device) for _ in range(3))

    expected, alone = row(one, decoder)
    one_ms = statistics.median(alone)
    stand.emit(item="picture", size=size, devices=1, mode="one device", ms=one_ms, raw_ms=alone)
    one.graphs.forget()  # type: ignore[operator]
    for count, group in stand.many():
        plan = ParallelPlan(devices=count, mode="sync")
        runner = parallelize(one, plan, group)
        result, taken = row(runner, parallelize(decoder, plan, group))
        stand.emit(item="picture", size=size, devices=count, mode="sync", ms=statistics.median(taken),
                   raw_ms=taken, speedup=one_ms / statistics.median(taken),
                   relative_error=relative_error(result, expected))  # fmt: skip
        runner.forget()
        stand.tidy()


def collectives(stand: Stand) -> None:
    """The step at the smallest size with collectives: one-shot sums and rows read by peers, then NCCL."""
    groups = dict(stand.many())
    border = stand.options.border
    kept = {count: (group.peer_exchange, group.one_shot, group.peer_rows) for count, group in groups.items()}  # pyright: ignore
    for group in groups.values():
        group.peer_exchange = None  # pyright: ignore[reportAttributeAccessIssue]
    steps_at(stand, min(stand.options.sizes), 1, ("sync",), "collectives")
    for group in groups.values():
        group.one_shot = group.peer_rows = None  # pyright: ignore[reportAttributeAccessIssue]
    stand.options.border = "tokens"
    steps_at(stand, min(stand.options.sizes), 1, ("sync",), "nccl")
    stand.options.border = border
    for count, group in groups.items():
        group.peer_exchange, group.one_shot, group.peer_rows = kept[count]  # pyright: ignore


def plan_for(mode: str, devices: int) -> ParallelPlan | None:
    if mode == "split":
        return ParallelPlan(devices=devices, mode="sync", guidance="split") if devices % 2 == 0 else None
    return ParallelPlan(devices=devices, mode=mode, guidance="batched", warmup_steps=0)  # pyright: ignore


def traffic_of(runner: nn.Module, call: Callable[[], object]) -> dict[str, object]:
    """Exchanges and received megabytes of one step, counted on a call without a graph."""
    spread, graphed = runner.spread, runner.graphed
    runner.graphed = False  # pyright: ignore[reportAttributeAccessIssue]
    if spread.session.plan.mode == "displaced":
        call()  # the first step of a picture is exact
    groups = [group for group in (spread.patches, spread.halves) if group is not None]
    for group in groups:
        group.traffic.clear()
    call()
    runner.graphed = graphed  # pyright: ignore[reportAttributeAccessIssue]
    taken = [group.traffic for group in groups]
    received = sum(traffic.sum_bytes + traffic.neighbour_bytes + traffic.gather_bytes for traffic in taken)
    return {"collectives": sum(traffic.collectives for traffic in taken), "received_mb": received / 1e6}


def is_graphed(runner: nn.Module) -> bool:
    captured = list(runner.graphs._captured.values())
    return bool(captured) and all(entry.graph is not None for entry in captured)


ITEMS: dict[str, Callable[[Stand], None]] = {
    "warm": warm, "step": step, "decode": decode, "picture": picture, "guided": guided,
    "displaced": displaced, "quantized": quantized, "collectives": collectives, "link": link, "unet": unet,
    "quality": quality,
}  # fmt: skip
