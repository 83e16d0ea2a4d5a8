"""Lucas-Kanade windows: every point of many pictures finds its place in another picture, step by step.

Pictures come as rows of pixels with a margin of `MARGIN` all round, end to end: (pairs, pixels). Windows are
21 x 21 pixels, read bilinearly. A point rests when its step is shorter than a hundredth of a pixel or swings
back, as in OpenCV's `calcOpticalFlowPyrLK`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SIDE = 21
MARGIN = SIDE + 3
STEPS = 20
SMALL_MOVE = 0.01
LEAST_EIGENVALUE = 1e-4 * 1024 * SIDE**2  # OpenCV's 1e-4, in squared grey levels of a whole window
_LOOK_EVERY = 4


def settle_windows(
    old: Float[Tensor, "pairs pixels"],
    slopes: tuple[Float[Tensor, "pairs pixels"], Float[Tensor, "pairs pixels"]],
    new: Float[Tensor, "pairs pixels"],
    p: Float[Tensor, "pairs points 2"],
    q: Float[Tensor, "pairs points 2"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "pairs points 2"], Bool[Tensor, "pairs points"]]:
    """Where `new` shows what `old` shows at p, from the guess q; False for flat ground and for what leaves
    the picture. `slopes` are those of `old` along x and y, `size` is (height, width) without the margin.
    """
    return torch.ops.fewer.settle_windows(old, *slopes, new, p, q, *size)


@torch.library.custom_op("fewer::settle_windows", mutates_args=(), device_types="cpu")
def _settle_windows(
    old: Tensor, slope_x: Tensor, slope_y: Tensor, new: Tensor, p: Tensor, q: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return reference_settle_windows(old, slope_x, slope_y, new, p, q, height, width)


def reference_settle_windows(
    old: Tensor, slope_x: Tensor, slope_y: Tensor, new: Tensor, p: Tensor, q: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Plain torch: the oracle."""
    size = torch.tensor([width, height], device=p.device)
    share, place, inside = _origins(p, size)
    patch, x, y = (_windows(each, share, place, width) for each in (old, slope_x, slope_y))
    xx, xy, yy = ((one * other).sum(dim=(-2, -1)) for one, other in ((x, x), (x, y), (y, y)))
    determinant = xx * yy - xy * xy
    least = (xx + yy - ((xx - yy) ** 2 + 4 * xy * xy).sqrt()) / 2
    ok = inside & (least >= LEAST_EIGENVALUE) & (determinant > 0)
    scale = 1 / determinant.clamp(min=1e-12)
    moving, before, q = ok.clone(), torch.zeros_like(q), q.clone()
    for step in range(STEPS):
        share, place, inside = _origins(q, size)
        ok = ok & (inside | ~moving)
        moving = moving & inside
        off = _windows(new, share, place, width) - patch
        along, down = (off * x).sum(dim=(-2, -1)), (off * y).sum(dim=(-2, -1))
        move = torch.stack([xy * down - yy * along, xy * along - xx * down], dim=-1) * scale[..., None]
        move = torch.where(moving[..., None], move, 0.0)
        rests = (move**2).sum(dim=-1) <= SMALL_MOVE**2
        swings = ((move + before).abs() < SMALL_MOVE).all(dim=-1) & (step > 0) & ~rests & moving
        q = q + torch.where(swings[..., None], move / 2, move)
        moving, before = moving & ~rests & ~swings, move
        if step % _LOOK_EVERY == _LOOK_EVERY - 1 and not bool(moving.any()):
            break
    return q, ok


@_settle_windows.register_fake
def _(
    old: Tensor, slope_x: Tensor, slope_y: Tensor, new: Tensor, p: Tensor, q: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.bool)


@_settle_windows.register_kernel("cuda")
def _(
    old: Tensor, slope_x: Tensor, slope_y: Tensor, new: Tensor, p: Tensor, q: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    from fewer.kernels.triton.lucas_kanade import launch_settle_windows

    return launch_settle_windows(old, slope_x, slope_y, new, p, q, height, width)


def _origins(points: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of windows around points: how far behind a whole pixel they begin, that pixel's place among all, and
    whether OpenCV would look there at all.
    """
    corner = points - (SIDE - 1) / 2
    whole = corner.floor()
    inside = ((whole >= -SIDE) & (whole < size)).all(dim=-1)
    low = torch.full_like(size, -SIDE)
    place = torch.minimum(torch.maximum(whole, low), size - 1).long() + MARGIN
    return corner - whole, place[..., 1] * (size[0] + 2 * MARGIN) + place[..., 0], inside


def _windows(pixels: Tensor, share: Tensor, place: Tensor, width: int) -> Tensor:
    """(pairs, points, side, side)."""
    line = torch.arange(SIDE + 1, device=pixels.device)
    offset = (line[:, None] * (width + 2 * MARGIN) + line).flatten()
    patch = pixels.gather(1, (place[..., None] + offset).flatten(1)).view(*place.shape, SIDE + 1, SIDE + 1)
    across, down = share[..., 0, None, None], share[..., 1, None, None]
    patch = torch.lerp(patch[..., :-1], patch[..., 1:], across)
    return torch.lerp(patch[..., :-1, :], patch[..., 1:, :], down)
