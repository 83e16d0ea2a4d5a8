"""Frames on a device: what shines in them, where strips lie in them, and what they show there."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import StripShape, coarse_coordinates, coarse_grid, upsampling


def upload(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]], device: torch.device
) -> UInt8[Tensor, "frames 3 height width"]:
    """Pictures of one size, blue, green and red as planes."""
    size = (len(pictures), *pictures[0].shape)
    held = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, picture in enumerate(pictures):
        held[place].copy_(torch.from_numpy(picture))
    return held.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()


def highlight_masks(
    pictures: UInt8[Tensor, "frames 3 height width"],
) -> Bool[Tensor, "frames height width"]:
    """Bit for bit `frames.quality.highlight_mask` of each."""
    blue, green, red = pictures.unbind(1)
    low, high = pictures.amin(dim=1), pictures.amax(dim=1)
    # 0.85 high in 8 bit, as OpenCV rounds it
    table = cv2.multiply(np.arange(256, dtype=np.uint8)[None], 0.85)[0]
    pale = (low > torch.from_numpy(table).to(low.device)[high.long()]) & (high > 216)
    green = green.short()
    box = (green - red > 60) & (green - blue > 40)
    shining = (pale | box | (low > 200)).half() if pictures.is_cuda else (pale | box | (low > 200)).float()
    side = max(3, round(9 * min(pictures.shape[2:]) / 480) | 1)
    return F.max_pool2d(shining[:, None], side, stride=1, padding=side // 2)[:, 0] > 0


def clear_masks(
    pictures: UInt8[Tensor, "frames 3 height width"], usable: Bool[np.ndarray, "height width"]
) -> Bool[Tensor, "frames height width"]:
    """The usable part of the field, without what shines."""
    return torch.from_numpy(usable).to(pictures.device) & ~highlight_masks(pictures)


def strip_coordinates(
    geometry: Geometry, shapes: Sequence[StripShape], poses: Float[np.ndarray, "frames pose"],
    turns: Sequence[float], device: torch.device,
) -> Float[Tensor, "frames height width 2"]:  # fmt: skip
    """`unfold.strip.picture_coordinates` of several strips of one size."""
    if geometry.mode == "cylinder":
        known = _coarse_together(geometry, shapes, poses, turns, device)
    else:
        coarse = [
            coarse_coordinates(geometry, shape, pose[:4], turn)
            for shape, pose, turn in zip(shapes, poses, turns, strict=True)
        ]
        known = torch.from_numpy(np.stack(coarse)).to(device)
    # in double precision: a GPU may multiply single precision with ten bits
    down, across = (torch.from_numpy(each).to(known) for each in upsampling(shapes[0]))
    return torch.einsum("hr,frcx,wc->fhwx", down, known, across).float()


def _coarse_together(
    geometry: Geometry, shapes: Sequence[StripShape], poses: Float[np.ndarray, "frames pose"],
    turns: Sequence[float], device: torch.device,
) -> Float[Tensor, "frames rows columns 2"]:  # fmt: skip
    """`unfold.strip.coarse_coordinates` through `Geometry.to_picture`, of all frames at once."""
    columns, rows = (torch.from_numpy(each).to(device, torch.float64) for each in coarse_grid(shapes[0]))
    a, b, pan, tilt = poses[:, :4].T
    first = [shape.first_depth for shape in shapes]
    table = np.stack([a, b, np.sin(pan), np.cos(pan), np.sin(tilt), np.cos(tilt), first, turns], axis=1)
    a, b, sin_pan, cos_pan, sin_tilt, cos_tilt, first, turn = (
        torch.from_numpy(table).to(device)[:, :, None, None].unbind(1)
    )
    scale = shapes[0].scale
    theta, z = columns[None, None] / scale - turn, rows[None, :, None] / scale + first
    x, y = theta.cos() - a, theta.sin() - b
    x, z = cos_pan * x - sin_pan * z, sin_pan * x + cos_pan * z
    y, z = cos_tilt * y + sin_tilt * z, cos_tilt * z - sin_tilt * y
    beside = torch.hypot(x, y).clamp(min=1e-12)
    radius = lens_radius(geometry.lens, torch.atan2(beside, z)) / beside
    return torch.stack([geometry.centre[0] + radius * x, geometry.centre[1] + radius * y], dim=-1)


def lens_radius(lens: Lens, angle: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`Lens.radius`: pixels from the centre at which a ray of this angle lands."""
    if lens.model == "pinhole":
        return lens.focal * angle.clamp(max=1.55).tan()
    k1, k2, k3, k4 = lens.coefficients if lens.model == "kannala-brandt" else (0.0, 0.0, 0.0, 0.0)
    square = angle.square()
    return lens.focal * angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))


def sample(
    planes: Float[Tensor, "frames channels rows columns"], places: Float[Tensor, "frames height width 2"]
) -> Float[Tensor, "frames channels height width"]:
    """Bilinear values at pixel places, zero outside."""
    size = torch.tensor([planes.shape[3] - 1, planes.shape[2] - 1], device=places.device)
    # what lies far outside stays outside, without running over
    grid = (2 * places / size.clamp(min=1) - 1).clamp(-4, 4)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def reach_inside(
    clear: Bool[Tensor, "frames height width"], most: float
) -> Float[Tensor, "frames height width"]:
    """Distance in pixels to the nearest pixel that is not clear, at most `most`: OpenCV's two-step
    approximation of it (3 x 3, 0.955 and 1.3693).
    """
    far = F.pad(torch.where(clear, most, 0.0), [1] * 4, value=most)
    for _ in range(int(np.ceil(most / 0.955))):
        beside = torch.minimum(far[:, 1:-1, :-2], far[:, 1:-1, 2:])
        above = torch.minimum(far[:, :-2], far[:, 2:])
        across = torch.minimum(above[:, :, :-2], above[:, :, 2:])
        straight = torch.minimum(beside, above[:, :, 1:-1])
        inner = far[:, 1:-1, 1:-1]
        nearer = torch.minimum(inner, torch.minimum(straight + 0.955, across + 1.3693))
        far = far.clone()
        far[:, 1:-1, 1:-1] = nearer
    return far[:, 1:-1, 1:-1]
