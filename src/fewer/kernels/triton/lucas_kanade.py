"""Lucas-Kanade: a program keeps one point's window in registers until it rests."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.lucas_kanade import LEAST_EIGENVALUE, MARGIN, SIDE, SMALL_MOVE, STEPS


@triton.jit
def _window(pixels, x, y, lines, seen, stride):
    """Bilinear window whose first corner is (x, y) pixels into the margin."""
    left, top = tl.floor(x), tl.floor(y)
    at = pixels + top.to(tl.int32) * stride + left.to(tl.int32) + lines
    across, down = x - left, y - top
    first = tl.load(at, mask=seen, other=0.0)
    above = first + across * (tl.load(at + 1, mask=seen, other=0.0) - first)
    first = tl.load(at + stride, mask=seen, other=0.0)
    below = first + across * (tl.load(at + stride + 1, mask=seen, other=0.0) - first)
    return above + down * (below - above)


@triton.jit
def _total(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit
def _settle_kernel(
    old, slope_x, slope_y, new, p, q, out, found, points, pixels, height, width, LEAST, SMALL,
    SIDE: tl.constexpr, MARGIN: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, point = tl.program_id(1).to(tl.int64), tl.program_id(0)
    at = (pair * points + point) * 2
    half: tl.constexpr = (SIDE - 1) / 2
    stride = width + 2 * MARGIN
    line = tl.arange(0, BLOCK)
    seen = (line[:, None] < SIDE) & (line[None, :] < SIDE)
    lines = line[:, None] * stride + line[None, :]
    x, y = tl.load(p + at) - half, tl.load(p + at + 1) - half
    inside = (x >= -SIDE) & (tl.floor(x) < width) & (y >= -SIDE) & (tl.floor(y) < height)
    x = tl.where(inside, x, 0.0) + MARGIN
    y = tl.where(inside, y, 0.0) + MARGIN
    start = pair * pixels
    patch = _window(old + start, x, y, lines, seen, stride)
    along_x = _window(slope_x + start, x, y, lines, seen, stride)
    along_y = _window(slope_y + start, x, y, lines, seen, stride)
    xx, xy, yy = _total(along_x * along_x), _total(along_x * along_y), _total(along_y * along_y)
    determinant = xx * yy - xy * xy  # pyright: ignore
    least = (xx + yy - tl.sqrt((xx - yy) * (xx - yy) + 4 * xy * xy)) / 2  # pyright: ignore
    ok = (inside & (least >= LEAST) & (determinant > 0)).to(tl.int32)
    scale = 1 / tl.maximum(determinant, 1e-12)
    to_x, to_y = tl.load(q + at), tl.load(q + at + 1)
    before_x, before_y = to_x * 0, to_y * 0
    moving, step = ok, ok * 0
    while (moving > 0) & (step < STEPS):
        x, y = to_x - half, to_y - half
        inside = (x >= -SIDE) & (tl.floor(x) < width) & (y >= -SIDE) & (tl.floor(y) < height)
        x = tl.where(inside, x, 0.0) + MARGIN
        y = tl.where(inside, y, 0.0) + MARGIN
        off = tl.where(seen, _window(new + start, x, y, lines, seen, stride) - patch, 0.0)
        right, low = _total(off * along_x), _total(off * along_y)
        move_x = tl.where(inside, (xy * low - yy * right) * scale, 0.0)  # pyright: ignore
        move_y = tl.where(inside, (xy * right - xx * low) * scale, 0.0)  # pyright: ignore
        rests = move_x * move_x + move_y * move_y <= SMALL * SMALL
        back = (tl.abs(move_x + before_x) < SMALL) & (tl.abs(move_y + before_y) < SMALL)
        swings = back & (step > 0) & (rests == 0)
        share = tl.where(swings, 0.5, 1.0)
        to_x += move_x * share
        to_y += move_y * share
        ok = ok & inside.to(tl.int32)
        moving = (inside & (rests == 0) & (swings == 0)).to(tl.int32)
        before_x, before_y = move_x, move_y
        step += 1
    tl.store(out + at, to_x)
    tl.store(out + at + 1, to_y)
    tl.store(found + pair * points + point, ok)


def launch_settle_windows(
    old: Tensor, slope_x: Tensor, slope_y: Tensor, new: Tensor, p: Tensor, q: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Writes new places and whether they hold."""
    pairs, points = p.shape[:2]
    old, slope_x, slope_y, new, p, q = (each.contiguous() for each in (old, slope_x, slope_y, new, p, q))
    out = torch.empty_like(q)
    found = torch.empty((pairs, points), dtype=torch.int32, device=q.device)
    if pairs and points:
        _settle_kernel[points, pairs](
            old, slope_x, slope_y, new, p, q, out, found, points, old.shape[1], height, width,
            LEAST_EIGENVALUE, SMALL_MOVE, SIDE=SIDE, MARGIN=MARGIN, STEPS=STEPS, BLOCK=32, num_warps=4,
        )  # fmt: skip
    return out, found > 0
