"""Pairs of unrolled strips of a made-up tube, with the wall point behind every cell, all on one device.

1. `paint_walls`: linings with noise, branching vessels and white dots, as `tube.wall` paints them, in torch.
2. `_Camera.look`: an equidistant endoscope inside a tube with folds, rings and breathing, light at the lens.
3. `_spoil`: highlights fixed to the screen, sensor noise.
4. `_Camera.unroll`: the strip through a pose that is a little wrong, as while a video is followed; CLAHE.

Two cells show the same spot when their wall points do. Equations: section 7 of the tube benchmark
(`tube.render`); linings and motions here are others than the benchmark's, only their kind is the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fewer.stitch.device.equalise import equalise

RADIUS = 10.0  # mm
HALF_ANGLE = math.radians(70)
PIXELS_PER_MM = 16.0
_FIRST_DEPTH = 0.22  # of a strip, in tube radii ahead of the lens, as `unfold.strip` cuts it
_TAU = 2 * math.pi


@dataclass(frozen=True, slots=True, kw_only=True)
class TubePairPlan:
    """Sizes of what is made. A strip of `strip_width` columns goes once round."""

    frame: int = 480
    strip_width: int = 800
    crop: tuple[int, int] = (256, 480)
    """Rows and columns of the window that both strips are cut to."""
    stride: int = 8
    """Pixels a cell."""


@dataclass(frozen=True, slots=True)
class TubePairs:
    """Two equalised grey windows in [0, 1], and for each cell of the first where the second shows it."""

    first: Float[Tensor, "batch 1 height width"]
    second: Float[Tensor, "batch 1 height width"]
    index: Int[Tensor, "batch cells"]
    inside: Tensor


def paint_walls(
    count: int, seed: int, device: str | torch.device = "cpu", length: float = 64.0
) -> Float[Tensor, "count 1 rows columns"]:
    """Green of `count` linings, 0..255, 16 pixels a millimetre; columns go once round."""
    random = np.random.default_rng([seed, 77])
    width, height = round(_TAU * RADIUS * PIXELS_PER_MM), round(length * PIXELS_PER_MM)
    walls = []
    for _ in range(count):
        wall = torch.full((1, 1, height, width), 160.0)
        for cells, weight in ((8, 10.0), (24, 9.0), (80, 9.0), (220, 8.0)):
            grid = torch.from_numpy(random.uniform(-1, 1, (max(2, round(cells * height / width)), cells)))
            grid = torch.cat([grid[:, -2:], grid, grid[:, :2]], dim=1).float()[None, None]
            size = (height, round(width * (cells + 4) / cells))
            start = round(2 * width / cells)
            smooth = F.interpolate(grid, size, mode="bicubic", align_corners=False)
            wall += weight * random.uniform(0.6, 1.5) * smooth[..., start : start + width]
        wall *= 1 - random.uniform(0.3, 0.5) * _vessels(random, height, width)
        dots = _dots(random, height, width, int(0.6 * length))
        walls.append(wall * (1 - 0.6 * dots) + 0.6 * 235 * dots)
    return torch.cat(walls).to(device)


def make_tube_pairs(
    walls: Float[Tensor, "count 1 rows columns"], batch: int, plan: TubePairPlan, generator: torch.Generator
) -> TubePairs:
    """`batch` pairs, all drawn on the device of `walls` from a generator that `generator` seeds: a GPU never
    waits for numbers from the CPU.
    """
    device = walls.device
    grain = torch.Generator(device).manual_seed(int(torch.randint(2**31, (1,), generator=generator)))

    def normal(spread: float, *shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=grain, device=device) * spread

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=grain, device=device) * (high - low) + low

    chosen = walls[torch.randint(len(walls), (batch,), generator=grain, device=device)]
    for side in (2, 3):  # a mirrored lining is another lining
        chosen = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.5, chosen.flip(side), chosen)
    shape = _Wall(
        folds=uniform(0.0, 0.05),
        rings=uniform(0.0, 0.02),
        phases=uniform(0.0, _TAU, 3),
        height=chosen.shape[2],
    )
    camera = _Camera(plan, device)
    lateral, angles = uniform(-0.2, 0.2, 2), uniform(-0.12, 0.12, 2)
    depth, roll = uniform(4.0, 20.0), uniform(0.0, _TAU)
    film = F.interpolate(uniform(0.0, 1.0, 1, 48, 48), (plan.frame, plan.frame), mode="bicubic")
    start = int(torch.randint(0, plan.strip_width, (1,), generator=generator))
    views, places, seen = [], [], []
    for number in range(2):
        if number:
            lateral, angles = lateral + normal(0.02, 2), angles + normal(0.02, 2)
            depth, roll = depth + uniform(-4.0, 4.0), roll + uniform(-0.1, 0.1)
        pose = _Pose(lateral, angles, depth, roll, 1 + uniform(-0.04, 0.04))
        frame = camera.look(chosen, shape, pose)
        frame = _spoil(frame, film, uniform(0.85, 0.99, 1, 1, 1), uniform(0.0, 3.0, 1, 1, 1), grain)
        # the pose that the strip is unrolled through is wrong by a few tenths of a millimetre and a degree
        believed = _Pose(lateral + normal(0.03, 2), angles + normal(0.015, 2), depth, roll, pose.breath)
        grid = camera.strip_to_picture(believed, start)
        strip = F.grid_sample(frame, camera.normalised(grid), align_corners=True)
        views.append(equalise(strip.round().clamp(0, 255)) / 255)
        cells = grid[:, :: plan.stride, :: plan.stride].flatten(1, 2)
        theta, z = camera.hit(cells, shape, pose)[:2]
        places.append(torch.stack([RADIUS * theta.cos(), RADIUS * theta.sin(), z], dim=-1))
        seen.append((cells - camera.centre).norm(dim=-1) < camera.field - 4)
    far = torch.cdist(places[0], places[1]) + 1e3 * ~seen[1][:, None]
    nearest = far.min(dim=2)
    cell = plan.stride * _TAU * RADIUS / plan.strip_width
    return TubePairs(views[0], views[1], nearest.indices, seen[0] & (nearest.values < 0.75 * cell))


@dataclass(frozen=True, slots=True)
class _Wall:
    """Shapes of the walls of a batch; `height` is that of their pictures."""

    folds: Tensor
    rings: Tensor
    phases: Tensor
    height: int

    def radius(self, theta: Tensor, z: Tensor, breath: Tensor) -> Tensor:
        fold, lobe, ring = (self.phases[:, n, None] for n in range(3))
        lengthwise = (4 * theta + fold + 0.03 * z).cos() + 0.6 * (7 * theta + lobe).cos()
        round_it = (_TAU * z / 7 + ring).cos()
        return (
            RADIUS * breath[:, None]
            * (1 + self.folds[:, None] * lengthwise) * (1 + self.rings[:, None] * round_it)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pose:
    """Sideways place (tube radii), pan and tilt, depth (mm), roll, and how far the wall has breathed out."""

    lateral: Tensor
    angles: Tensor
    depth: Tensor
    roll: Tensor
    breath: Tensor

    def turn(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ry(pan) Rx(tilt) (x, y, z); roll turns the tube, not the camera."""
        pan, tilt = self.angles[:, 0, None], self.angles[:, 1, None]
        y, z = tilt.cos() * y - tilt.sin() * z, tilt.sin() * y + tilt.cos() * z
        return pan.cos() * x + pan.sin() * z, y, pan.cos() * z - pan.sin() * x

    def turn_back(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pan, tilt = self.angles[:, 0, None], self.angles[:, 1, None]
        x, z = pan.cos() * x - pan.sin() * z, pan.sin() * x + pan.cos() * z
        return x, tilt.cos() * y + tilt.sin() * z, tilt.cos() * z - tilt.sin() * y


class _Camera:
    """An equidistant lens of 140 degrees whose field fills the picture."""

    def __init__(self, plan: TubePairPlan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.centre, self.field = (plan.frame - 1) / 2, 232.0 * plan.frame / 480
        self.focal = self.field / HALF_ANGLE

    def look(self, walls: Tensor, shape: _Wall, pose: _Pose) -> Float[Tensor, "batch 1 frame frame"]:
        """The lit wall, 0..255."""
        side = self.plan.frame
        line = torch.arange(side, device=self.device, dtype=torch.float32)
        xy = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(1, -1, 2)
        theta, z, distance, cosine = self.hit(xy.expand(len(walls), -1, -1), shape, pose)
        padded = torch.cat([walls, walls[..., :2]], dim=3)
        columns = torch.remainder(theta / _TAU, 1.0) * walls.shape[3]
        grid = torch.stack(
            [columns / (padded.shape[3] - 1), z * PIXELS_PER_MM / (padded.shape[2] - 1)], dim=-1
        )
        colour = F.grid_sample(
            padded, (2 * grid - 1)[:, None], padding_mode="border", align_corners=True
        ).view(len(walls), -1)
        light = cosine**0.6 / (1 + (distance / 9) ** 2)
        light = (light / light[:, ::37].quantile(0.92, dim=1, keepdim=True)).clamp(max=1.35)
        return (colour * light).view(-1, 1, side, side)

    def hit(self, xy: Tensor, shape: _Wall, pose: _Pose) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Angle, depth, distance and cosine of incidence where pixels (batch, points, 2) meet the wall."""
        offset = xy - self.centre
        radius = offset.norm(dim=-1).clamp(min=1e-6)
        angle = (radius / self.focal).clamp(max=1.5)
        scale = angle.sin() / radius
        x, y, z = pose.turn(offset[..., 0] * scale, offset[..., 1] * scale, angle.cos())
        a, b = RADIUS * pose.lateral[:, 0, None], RADIUS * pose.lateral[:, 1, None]
        across, dot = (x * x + y * y).clamp(min=1e-6), a * x + b * y
        wall = RADIUS * pose.breath[:, None]
        for _ in range(4):  # the radius where the ray lands, then the ray again
            root = (dot**2 + across * (wall**2 - a * a - b * b)).clamp(min=1e-9).sqrt()
            distance = ((root - dot) / across).clamp(max=200.0)
            theta, depth = torch.atan2(b + distance * y, a + distance * x), pose.depth[:, None] + distance * z
            wall = shape.radius(theta, depth, pose.breath)
        cosine = (theta.cos() * x + theta.sin() * y).clamp(0.02, 1.0)  # pyright: ignore
        return theta + pose.roll[:, None], depth, distance, cosine  # pyright: ignore

    def strip_to_picture(self, pose: _Pose, start: int) -> Float[Tensor, "batch height width 2"]:
        """Where the pixels of the window that begins at column `start` lie in the picture."""
        height, width = self.plan.crop
        scale = self.plan.strip_width / _TAU
        theta = (torch.arange(width, device=self.device) + start) / scale
        depth = torch.arange(height, device=self.device) / scale + _FIRST_DEPTH
        depth, theta = (each.flatten()[None] for each in torch.meshgrid(depth, theta, indexing="ij"))
        x, y = theta.cos() - pose.lateral[:, :1], theta.sin() - pose.lateral[:, 1:]
        x, y, z = pose.turn_back(x, y, depth.expand_as(x))
        beside = torch.hypot(x, y).clamp(min=1e-9)
        radius = self.focal * torch.atan2(beside, z) / beside
        return (self.centre + torch.stack([radius * x, radius * y], dim=-1)).view(-1, height, width, 2)

    def normalised(self, xy: Tensor) -> Tensor:
        return 2 * xy / (self.plan.frame - 1) - 1


def _spoil(frame: Tensor, film: Tensor, shine: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Wet film that shines where it is thick, and noise that grows with the light."""
    frame = frame + 400 * ((film - shine) / 0.05).clamp(0, 1) * (frame / 160 - 0.35).clamp(0, 1)
    grain = torch.randn(frame.shape, generator=generator, device=frame.device)
    return (frame + grain * (noise * (frame.clamp(min=0) / 128).sqrt() + 1)).round().clamp(0, 255)


def _vessels(random: np.random.Generator, height: int, width: int) -> Float[Tensor, "1 1 height width"]:
    """Random walks that turn slowly, thin out and branch; 0..1."""
    layers = {thickness: torch.zeros(height * width) for thickness in (1, 2, 3, 5)}
    waiting = [
        (random.uniform(0, width), random.uniform(0, height), 4.5, 0)
        for _ in range(int(random.uniform(1.0, 2.5) * height / PIXELS_PER_MM))
    ]
    while waiting:
        x, y, thickness, depth = waiting.pop()
        angle, points = random.uniform(0.0, _TAU), []
        for step in range(int(random.uniform(15, 45))):
            angle += random.normal(0, 0.3)
            along = np.arange(0, 7, 0.5)
            points.append(np.stack([x + along * math.cos(angle), y + along * math.sin(angle)]))
            x, y = x + 7 * math.cos(angle), y + 7 * math.sin(angle)
            if depth < 2 and step > 4 and random.uniform() < 0.06:
                waiting.append((x, y, thickness * 0.65, depth + 1))
        columns, rows = np.round(np.concatenate(points, axis=1)).astype(int)
        kept = (rows >= 0) & (rows < height)
        layer = layers[min(layers, key=lambda each: abs(each - thickness))]
        layer[torch.from_numpy(rows[kept] * width + columns[kept] % width)] = 1
    whole = torch.zeros(1, 1, height, width)
    for thickness, layer in layers.items():
        thick = F.max_pool2d(layer.view(1, 1, height, width), thickness, 1, thickness // 2)
        whole = torch.maximum(whole, thick[..., :height, :width])
    return _blurred(whole)


def _dots(random: np.random.Generator, height: int, width: int, count: int) -> Tensor:
    canvas = torch.zeros(1, 1, height, width)
    for _ in range(count):
        x, y, radius = (
            int(random.uniform(8, width - 8)),
            int(random.uniform(8, height - 8)),
            random.uniform(2, 6),
        )
        line = torch.arange(-7, 8)
        disc = (line[:, None] ** 2 + line[None] ** 2 <= radius**2).float()
        part = canvas[0, 0, y - 7 : y + 8, x - 7 : x + 8]
        part.copy_(torch.maximum(part, disc))
    return _blurred(canvas)


def _blurred(canvas: Tensor) -> Tensor:
    kernel = torch.tensor([0.05, 0.24, 0.42, 0.24, 0.05])
    return F.conv2d(canvas, (kernel[:, None] * kernel[None])[None, None], padding=2)
