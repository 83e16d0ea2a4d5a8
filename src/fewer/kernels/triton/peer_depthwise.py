"""Depthwise 3×3 with gate on a band of a picture, its border rows exchanged by the same kernel.

The first programs write the band's own border rows into the neighbours' memory and count them there; the
others are those of `depthwise.py`, which read a neighbour's row, from the own memory, when they come to it:
last, where there is a neighbour on one side only. Programs start in the order of their numbers (CUB's
look-back scans rely on it too), so those that write never wait behind those that wait.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.triton.depthwise import Tile
from fewer.kernels.triton.gates import silu
from fewer.kernels.triton.peer_state import wait_for
from fewer.kernels.triton.taps import columns, filled, row_of_taps, weights


@triton.jit
def _send_row(row, between, peer, place, count, numbers, total, first, stride, BLOCK: tl.constexpr):
    """One row of all pictures, `numbers` each and `between` apart, into a peer's memory; then counts it."""
    to = tl.multiple_of(tl.load(peer).to(row.dtype), 16) + place
    for start in range(first * BLOCK, total, stride * BLOCK):
        at = start + tl.arange(0, BLOCK)
        alive = at < total
        v = tl.load(row + (at // numbers).to(tl.int64) * between + at % numbers, mask=alive, other=0.0)
        tl.store(to + at, v, mask=alive)
    tl.debug_barrier()
    at = tl.load(peer).to(tl.pointer_type(tl.int32)) + count
    tl.atomic_add(at, 1, sem="release", scope="sys")


@triton.jit
def _send_borders(
    x, between, peers, rank, program, senders, images, line_numbers, place_before, place_after, count,
    SIDES: tl.constexpr, HAS_BEFORE: tl.constexpr, HAS_AFTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """This program's part of the band's first row, or of its last one."""
    total = images * line_numbers
    if HAS_BEFORE and (program < senders):
        # The rank before finds it behind its own last row.
        _send_row(
            x, between, peers + rank - 1, place_after, count + 1, line_numbers, total, program, senders,
            BLOCK,
        )  # fmt: skip
    if HAS_AFTER and (program >= senders * (SIDES - 1)):
        last = x + (between - line_numbers)
        _send_row(
            last, between, peers + rank + 1, place_before, count, line_numbers, total,
            program - senders * (SIDES - 1), senders, BLOCK,
        )  # fmt: skip


@triton.jit
def _store_line(to, value, gate, first, limit, channels, alive, EACH: tl.constexpr, FAST: tl.constexpr):
    """value · SiLU(gate) of the pixels that there are."""
    for place in tl.static_range(EACH):  # pyright: ignore
        pixel = first + place
        result = value[place] * silu(gate[place], FAST)
        inside = (pixel < limit)[:, None] & alive[None, :]
        tl.store(to + pixel[:, None] * channels, result.to(to.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rank", "begin"])
def _peer_depthwise_kernel(
    x, weight, bias, out, peers, before, after, counts, reached, ticket,
    height, width, channels, images, rank, senders, begin, place_before, place_after, count,
    LINES: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BEFORE: tl.constexpr, HAS_AFTER: tl.constexpr, BLOCK: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0) + begin
    step = 2 * channels
    line_numbers = width * step
    between = (program * 0).to(tl.int64) + height * line_numbers
    SIDES: tl.constexpr = (1 if HAS_BEFORE else 0) + (1 if HAS_AFTER else 0)  # pyright: ignore
    if program < senders * SIDES:
        _send_borders(
            x, between, peers, rank, program, senders, images, line_numbers, place_before, place_after, count,
            SIDES, HAS_BEFORE, HAS_AFTER, BLOCK,
        )  # fmt: skip
    else:
        goal_before = tl.load(reached) + senders
        goal_after = tl.load(reached + 1) + senders
        index = program - senders * SIDES
        blocks, strips = tl.cdiv(channels, CHANNELS), tl.cdiv(height, LINES)
        wide = tl.cdiv(width, GROUPS * EACH)
        image = index // (blocks * wide * strips)
        strip = index // (blocks * wide) % strips
        if HAS_BEFORE and not HAS_AFTER:
            strip = strips - 1 - strip  # so that rows that come from elsewhere are read last
        first = ((index // blocks % wide) * GROUPS + tl.arange(0, GROUPS)) * EACH
        channel = (index % blocks) * CHANNELS + tl.arange(0, CHANNELS)
        top = strip * LINES
        alive = channel < channels
        w_v = weights(weight + channel, step, alive)
        w_g = weights(weight + channels + channel, step, alive)
        zero = tl.zeros((GROUPS, CHANNELS), dtype=tl.float32)
        start_v = filled(zero + tl.load(bias + channel, mask=alive, other=0.0).to(tl.float32)[None, :], EACH)
        start_g = filled(
            zero + tl.load(bias + channels + channel, mask=alive, other=0.0).to(tl.float32)[None, :], EACH
        )
        # Up, if the only neighbour is above: the kernel's rows 0 and 2 change places then.
        DOWN: tl.constexpr = HAS_AFTER or not HAS_BEFORE  # pyright: ignore
        done_v, done_g, here_v, here_g = start_v, start_g, start_v, start_g
        for turn in range(LINES + 2):
            y = top + turn - 1 if DOWN else top + LINES - turn
            limit = tl.where((y >= 0) & (y < height), width, 0)
            line = x + image * between + y.to(tl.int64) * line_numbers
            if HAS_BEFORE:  # noqa: SIM102
                if y == -1:
                    wait_for(counts, goal_before)
                    limit = width
                    line = before + image.to(tl.int64) * line_numbers
            if HAS_AFTER:  # noqa: SIM102
                if y == height:
                    wait_for(counts + 1, goal_after)
                    limit = width
                    line = after + image.to(tl.int64) * line_numbers
            at = line + channel[None, :]
            v = columns(at, first, step, limit, alive, EACH, False, FAST)
            g = columns(at + channels, first, step, limit, alive, EACH, False, FAST)
            value = row_of_taps(done_v, v, w_v, EACH, 2 if DOWN else 0)
            gate = row_of_taps(done_g, g, w_g, EACH, 2 if DOWN else 0)
            done = y - 1 if DOWN else y + 1
            limit = tl.where((turn >= 2) & (done >= 0) & (done < height), width, 0)
            to = out + (image * height + done).to(tl.int64) * width * channels + channel[None, :]
            _store_line(to, value, gate, first, limit, channels, alive, EACH, FAST)
            done_v, done_g = row_of_taps(here_v, v, w_v, EACH, 1), row_of_taps(here_g, g, w_g, EACH, 1)
            here_v = row_of_taps(start_v, v, w_v, EACH, 0 if DOWN else 2)
            here_g = row_of_taps(start_g, g, w_g, EACH, 0 if DOWN else 2)
        # Who comes last has seen all others read how far the counts were: now they may be moved.
        if tl.atomic_add(ticket, 1, sem="relaxed") == images * strips * wide * blocks - 1:
            tl.store(ticket, 0)
            if HAS_BEFORE:
                tl.store(reached, goal_before)
            if HAS_AFTER:
                tl.store(reached + 1, goal_after)


TILE: Tile = (16, 4, 4, 64, 4, 128)
"""As measured on two and four GPUs; bands are low, so the lines are not chosen by rounds of programs."""
SENDING = 2048
"""Numbers that a program sends at once."""


def launch_peer_depthwise(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    peers: Tensor,
    rows: tuple[Tensor | None, Tensor | None],
    counters: tuple[Tensor, Tensor, Tensor],
    rank: int,
    places: tuple[int, int],
    count: int,
    programs: str = "all",
    tile: Tile = TILE,
) -> Tensor:
    """The own band (batch, height, width, 2·channels) -> (batch, height, width, channels).

    `peers` are the addresses of all ranks' memories. In each of them the row of the rank before lies at
    `places[0]`, that of the rank after at `places[1]` (in numbers of the features' type), and two int32
    counts of what has come at `count`; `rows` are the own memory there, None at the picture's border.
    `counters` are (own counts, how far they have been read, a zero). `programs` is for tests: "senders" or
    "readers" alone.
    """
    features = features.contiguous()
    images, height, width, both = features.shape
    channels = both // 2
    out = torch.empty((images, height, width, channels), dtype=features.dtype, device=features.device)
    lines, groups, each, block, warps, registers = tile
    lines, groups = min(lines, height), min(groups, triton.next_power_of_2(triton.cdiv(width, each)))
    block = min(block, triton.next_power_of_2(channels))
    before, after = rows
    senders = min(64, triton.cdiv(images * width * both, SENDING))
    sending = senders * ((before is not None) + (after is not None))
    reading = triton.cdiv(channels, block) * triton.cdiv(width, groups * each) * triton.cdiv(height, lines)
    readers = reading * images
    begin, launched = {
        "all": (0, sending + readers), "senders": (0, sending), "readers": (sending, readers)
    }[programs]  # fmt: skip
    counts, reached, ticket = counters
    _peer_depthwise_kernel[(launched,)](
        features, weight.flatten(1).t().contiguous(), bias.contiguous(), out, peers,
        features if before is None else before, features if after is None else after, counts, reached, ticket,
        height, width, channels, images, rank, senders, begin, *places, count,
        LINES=lines, GROUPS=groups, EACH=each, CHANNELS=block,
        HAS_BEFORE=before is not None, HAS_AFTER=after is not None, BLOCK=SENDING,
        FAST=features.is_cuda and features.dtype.itemsize == 2, num_warps=warps, num_stages=1,
        maxnreg=registers,
    )  # fmt: skip
    return out
