"""RandAugment's fourteen operations on a whole batch at once, on any device, pixel for pixel what Pillow
gives for each image. All work on uint8 (n, channels, height, width); magnitudes are one number an image.

Random numbers come from a CPU generator, so the groups of images that share an operation are known
without asking the GPU, and one seed gives one augmentation everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from fewer.core.errors import ConfigError

Pictures = UInt8[Tensor, "n channels height width"]

# name -> (smallest, largest magnitude), as the field's benchmark code (USB) has them
RANGES: dict[str, tuple[float, float]] = {
    "autocontrast": (0, 1),
    "brightness": (0.05, 0.95),
    "colour": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "equalize": (0, 1),
    "identity": (0, 1),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "solarize": (0, 256),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
COLOUR_POOL = tuple(RANGES)
GREY_POOL = tuple(n for n in RANGES if n not in ("autocontrast", "colour", "posterize", "solarize"))
_GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_FIXED = 65536  # Pillow's affine transform works in 16.16 fixed point


def rand_augment(
    images: Pictures, generator: torch.Generator, pool: tuple[str, ...] = COLOUR_POOL, rounds: int = 3
) -> Pictures:
    """Each image gets `rounds` operations of `pool`, drawn with their magnitudes for itself."""
    if not pool or set(pool) - set(RANGES):
        raise ConfigError(
            f"operations {sorted(set(pool) - set(RANGES))} are not known; allowed: {list(RANGES)}"
        )
    for picks, shares in zip(*draw_operations(len(images), generator, len(pool), rounds), strict=True):
        images = apply_picked(images, picks, shares, pool)
    return images


def draw_operations(
    count: int, generator: torch.Generator, operations: int, rounds: int = 3
) -> tuple[Int64[Tensor, "rounds count"], Float64[Tensor, "rounds count"]]:
    """Which operation each image gets in each round, and at which share of its range."""
    picks, shares = [], []
    for _ in range(rounds):
        picks.append(torch.randint(operations, (count,), generator=generator))
        shares.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(picks), torch.stack(shares)


def apply_picked(
    images: Pictures, picks: Int64[Tensor, " n"], shares: Float64[Tensor, " n"], pool: tuple[str, ...]
) -> Pictures:
    """One round: image i gets `pool[picks[i]]` at `shares[i]` (0 .. 1) of its range."""
    ranges = torch.tensor([RANGES[name] for name in pool], dtype=torch.float64)[picks]
    magnitudes = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * shares
    height, width = images.shape[2:]
    out = images.clone()
    matrices = torch.zeros(len(images), 6, dtype=torch.float64)
    moved = torch.zeros(len(images), dtype=torch.bool)
    for number, name in enumerate(pool):
        rows = torch.nonzero(picks == number).flatten()
        if len(rows) == 0 or name == "identity":
            continue
        if name in _GEOMETRY:
            matrices[rows] = affine_matrices(name, magnitudes[rows], height, width)
            moved[rows] = True
            continue
        there = rows.to(images.device, non_blocking=True)
        out[there] = apply_operation(name, images[there], magnitudes[rows])
    rows = torch.nonzero(moved).flatten()
    if len(rows):
        there = rows.to(images.device, non_blocking=True)
        out[there] = affine(images[there], matrices[rows])
    return out


def apply_everywhere(
    images: Pictures,
    picks: Int64[Tensor, " n"],
    shares: Float64[Tensor, " n"],
    places: Int64[Tensor, "n 6"],
    pool: tuple[str, ...],
) -> Pictures:
    """`apply_picked` with a form that does not depend on the draw, so that a GPU can replay it as a graph:
    every operation on every image, and each image keeps its own. `places` is from `picked_places`; all
    arguments lie on the images' device."""
    out = images
    for number, name in enumerate(pool):
        if name in _GEOMETRY or name == "identity":
            continue
        low, high = RANGES[name]
        changed = apply_operation(name, images, low + (high - low) * shares)
        out = torch.where((picks == number)[:, None, None, None], changed, out)
    moves = [number for number, name in enumerate(pool) if name in _GEOMETRY]
    if moves:
        moved = torch.stack([picks == number for number in moves]).any(0)
        out = torch.where(moved[:, None, None, None], affine_at(images, places), out)
    return out


def picked_places(
    picks: Int64[Tensor, " n"], shares: Float64[Tensor, " n"], pool: tuple[str, ...], size: tuple[int, int]
) -> Int64[Tensor, "n 6"]:
    """What `affine_at` needs for the images that get a geometric operation; the others stay in place."""
    # All operations for all images: a few dozen small steps instead of a dozen for each operation.
    height, width = size
    ranges = torch.tensor([RANGES[name] for name in pool], dtype=torch.float64)[picks]
    amounts = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * shares
    chosen = {name: picks == pool.index(name) for name in _GEOMETRY if name in pool}
    one, zero = torch.ones_like(amounts), torch.zeros_like(amounts)
    matrices = torch.stack([one, zero, zero, zero, one, zero], 1)
    for name, rows in chosen.items():
        matrices = torch.where(rows[:, None], affine_matrices(name, amounts, height, width), matrices)
    return fixed_point(matrices)


def apply_operation(name: str, images: Pictures, magnitudes: Float64[Tensor, " n"]) -> Pictures:
    """The operation `name` on every image, each with its own magnitude (on the CPU)."""
    if name in _GEOMETRY:
        return affine(images, affine_matrices(name, magnitudes, *images.shape[2:]))
    amounts = magnitudes.to(images.device, torch.float32, non_blocking=True)[:, None, None, None]
    match name:
        case "identity":
            return images
        case "brightness":
            return blend(torch.zeros_like(images), images, amounts)
        case "contrast":
            return blend(mean_grey(images).expand_as(images), images, amounts)
        case "colour":
            return images if images.shape[1] == 1 else blend(grey(images).expand_as(images), images, amounts)
        case "sharpness":
            return blend(smooth(images), images, amounts)
        case "posterize":
            step = 2 ** (8 - amounts.floor().to(torch.int32))
            return (images.to(torch.int32) // step * step).to(torch.uint8)
        case "solarize":
            return torch.where(images < amounts, images, 255 - images)
        case "autocontrast":
            return look_up(images, autocontrast_table(images))
        case "equalize":
            return look_up(images, equalize_table(images))
    raise ConfigError(f"operation {name!r} is not known; allowed: {', '.join(RANGES)}")


def blend(first: Pictures, second: Pictures, amounts: Float[Tensor, "n 1 1 1"]) -> Pictures:
    """first + amount * (second - first), truncated; amounts in [0, 1]."""
    start = first.float()
    return (start + amounts * (second.float() - start)).to(torch.uint8)


def grey(images: Pictures) -> UInt8[Tensor, "n 1 height width"]:
    """ITU-R 601 luma with Pillow's integer weights; grey images are returned as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def mean_grey(images: Pictures) -> UInt8[Tensor, "n 1 1 1"]:
    """The rounded mean brightness of each image."""
    luma = grey(images)
    count = luma.shape[2] * luma.shape[3]
    total = luma.sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return ((2 * total + count) // (2 * count)).to(torch.uint8)


def smooth(images: Pictures) -> Pictures:
    """3x3 mean with a centre of weight 5; the border stays."""
    out = images.clone()
    if min(images.shape[2:]) < 3:
        return out
    count, channels = images.shape[:2]
    planes = images.float().flatten(0, 1)[:, None]
    sums = F.conv2d(planes, torch.ones(1, 1, 3, 3, device=images.device)) + 4 * planes[:, :, 1:-1, 1:-1]
    sums = sums.unflatten(0, (count, channels))[:, :, 0]
    out[:, :, 1:-1, 1:-1] = ((2 * sums.to(torch.int32) + 13) // 26).to(torch.uint8)
    return out


def look_up(images: Pictures, table: UInt8[Tensor, "planes 256"]) -> Pictures:
    """Maps the values of each channel of each image through its row of `table`."""
    flat = images.flatten(0, 1).flatten(1).long()
    return table.gather(1, flat).reshape(images.shape)


def autocontrast_table(images: Pictures) -> UInt8[Tensor, "planes 256"]:
    """Stretches each channel to 0 .. 255; a constant one stays."""
    planes = images.flatten(0, 1).flatten(1)
    low, high = planes.amin(1).double()[:, None], planes.amax(1).double()[:, None]
    # A true division: `255.0 / tensor` multiplies by a rounded reciprocal and differs in the last bit.
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1)
    values = torch.arange(256, device=images.device, dtype=torch.float64)[None]
    stretched = (values * scale + (-low * scale)).clamp(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8)


def equalize_table(images: Pictures) -> UInt8[Tensor, "planes 256"]:
    """Histogram equalisation of each channel, with Pillow's integer arithmetic."""
    planes = images.flatten(0, 1).flatten(1).long()
    counts = torch.zeros(len(planes), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, planes, torch.ones_like(planes))
    last = counts.gather(1, planes.amax(1, keepdim=True))
    step = (counts.sum(1, keepdim=True) - last) // 255
    before = counts.cumsum(1) - counts
    mapped = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    identity = torch.arange(256, device=images.device)[None]
    return torch.where(step > 0, mapped, identity).to(torch.uint8)


def affine_matrices(
    name: str, magnitudes: Float64[Tensor, " n"], height: int, width: int
) -> Float64[Tensor, "n 6"]:
    """(a, b, c, d, e, f) of Pillow: output pixel (x, y) is taken from (a x + b y + c, d x + e y + f)."""
    matrices = torch.zeros(len(magnitudes), 6, dtype=torch.float64)
    matrices[:, 0] = matrices[:, 4] = 1
    match name:
        case "shear_x":
            matrices[:, 1] = magnitudes
        case "shear_y":
            matrices[:, 3] = magnitudes
        case "translate_x":
            matrices[:, 2] = (magnitudes * width * _FIXED).round() / _FIXED
        case "translate_y":
            matrices[:, 5] = (magnitudes * height * _FIXED).round() / _FIXED
        case "rotate":
            angle = -torch.deg2rad(magnitudes)
            cosine, sine = angle.cos(), angle.sin()
            matrices[:, 0] = matrices[:, 4] = cosine
            matrices[:, 1], matrices[:, 3] = sine, -sine
            centre_x, centre_y = width / 2.0, height / 2.0
            matrices[:, 2] = -cosine * centre_x - sine * centre_y + centre_x
            matrices[:, 5] = sine * centre_x - cosine * centre_y + centre_y
    return matrices


def affine(images: Pictures, matrices: Float64[Tensor, "n 6"]) -> Pictures:
    """Nearest neighbour, black outside, in Pillow's fixed-point arithmetic."""
    return affine_at(images, fixed_point(matrices).to(images.device, non_blocking=True))


def fixed_point(matrices: Float64[Tensor, "n 6"]) -> Int64[Tensor, "n 6"]:
    """Pillow's 16.16 form of the matrices, moved to the pixels' centres."""
    a, b, c, d, e, f = matrices.unbind(1)
    steps = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], 1)
    return (steps * _FIXED + 0.5).floor().to(torch.int64)


def affine_at(images: Pictures, fixed: Int64[Tensor, "n 6"]) -> Pictures:
    """The images at the places that `fixed` (on their device) gives; black outside."""
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device)[None, :, None]
    x = torch.arange(width, device=images.device)[None, None, :]
    a, b, c, d, e, f = fixed[:, :, None, None].unbind(1)
    from_x, from_y = (c + y * b + x * a) >> 16, (f + y * e + x * d) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = (from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)).flatten(1)
    picked = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1))
    return picked.reshape(images.shape) * inside[:, None]
