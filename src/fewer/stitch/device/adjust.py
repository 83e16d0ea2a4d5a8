"""What all matches of a segment add to the equations of `unfold.adjust`, side by side on a device."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.stitch.device.pictures import lens_radius
from fewer.stitch.unfold.adjust import Edge, Part, Parts
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

_MOST = 2**31  # bytes that the largest array may take


def parts_on(device: torch.device, geometry: Geometry, edges: Sequence[Edge]) -> Parts | None:
    """The evaluation that `adjust` wants; None where this device or this geometry cannot do it."""
    most = max((len(edge.weight) for edge in edges), default=0)
    if geometry.mode != "cylinder" or not most or len(edges) * most * 26 * 8 > _MOST:
        return None
    weight, rays = np.zeros((len(edges), most)), np.zeros((2, len(edges), most, 3))
    rays[..., 2] = 1.0
    counts = [len(edge.weight) for edge in edges]
    for side, name in enumerate(("first", "second")):
        all_rays = np.stack(
            geometry.rays(np.concatenate([getattr(edge, f"xy_{name}") for edge in edges])), axis=1
        )
        for row, part in enumerate(np.split(all_rays, np.cumsum(counts)[:-1])):
            rays[side, row, : len(part)] = part
    for row, edge in enumerate(edges):
        weight[row, : len(edge.weight)] = edge.weight
    places = np.array([[edge.first for edge in edges], [edge.second for edge in edges]])
    base, known = torch.from_numpy(weight).to(device), torch.from_numpy(rays).to(device)

    def evaluate(poses: np.ndarray, scale: float, jacobian: bool) -> list[tuple[Sequence[Edge], Part]]:
        at = torch.from_numpy(camera(poses)[places]).to(device)
        return [(edges, _part(geometry.lens, at, known, base, scale, jacobian))]

    return evaluate


def camera(poses: Float[np.ndarray, "frames 6"]) -> Float[np.ndarray, "frames 8"]:
    """(a, b, sine and cosine of pan, of tilt, roll, axial): angles are turned into numbers once a frame."""
    a, b, pan, tilt, roll, axial = poses.T
    return np.stack([a, b, np.sin(pan), np.cos(pan), np.sin(tilt), np.cos(tilt), roll, axial], axis=1)


def _part(
    lens: Lens, at: Float[Tensor, "2 edges 8"], rays: Float[Tensor, "2 edges matches 3"],
    base: Float[Tensor, "edges matches"], scale: float, jacobian: bool,
) -> Part:  # fmt: skip
    # both sides are one array: what counts on a GPU is how often work is begun
    walls, slopes = wall_and_slope(rays, at, jacobian)
    unit = _resolution(lens, walls[..., 1]).amin(dim=0)
    places = walls + at[:, :, None, 6:]
    off = places[0] - places[1]
    turn = torch.remainder(off[..., 0] + torch.pi, 2 * torch.pi) - torch.pi
    off = torch.stack([turn, off[..., 1]], dim=-1) * unit
    square = off.square().sum(dim=-1)
    shrink = 1 / (1 + square / scale**2)
    robust = base * shrink.square()
    terms = torch.stack([base * square * shrink, robust * square, robust])
    sums = terms.sum(dim=(1, 2)).tolist()
    if not jacobian:
        return Part(np.zeros((0, 12, 12)), np.zeros((0, 12)), *sums)
    shifts = torch.eye(2, dtype=off.dtype, device=off.device).expand(*off.shape[:2], 2, 2)
    both = torch.cat([slopes[0], shifts, -slopes[1], -shifts], dim=-1) * unit[..., None]
    table = torch.cat([both, off[..., None]], dim=-1) * robust.sqrt()[..., None, None]
    flat = table.flatten(1, 2)
    products = (flat.mT @ flat).cpu().numpy()
    return Part(products[:, :12, :12], products[:, :12, 12], *sums)


def wall_and_slope(
    rays: Float[Tensor, "sides edges matches 3"], at: Float[Tensor, "sides edges 8"], slope: bool
) -> tuple[Float[Tensor, "sides edges matches 2"], Tensor]:
    """`unfold.slope.wall_and_slope` of rays in the cameras' own axes: (angle, depth) of each and, if asked,
    their derivatives by a, b, pan and tilt.
    """
    a, b, sin_pan, cos_pan, sin_tilt, cos_tilt = at[:, :, None, :6].unbind(-1)
    x0, y0, z0 = rays.unbind(-1)
    y, z1 = cos_tilt * y0 - sin_tilt * z0, sin_tilt * y0 + cos_tilt * z0
    x, z = cos_pan * x0 + sin_pan * z1, cos_pan * z1 - sin_pan * x0
    across, dot = (x * x + y * y).clamp(min=1e-9), a * x + b * y
    root = (dot.square() + across * (1 - a * a - b * b)).clamp(min=1e-12).sqrt()
    reach = (root - dot) / across
    wall_x, wall_y = a + reach * x, b + reach * y
    wall = torch.stack([torch.atan2(wall_y, wall_x), reach * z], dim=-1)
    if not slope:
        return wall, wall.new_zeros(0)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # a and b move the camera; pan turns the ray to (z, 0, -x), tilt to (sin(pan) y, -z1, cos(pan) y)
    move_x = torch.stack([one, zero, reach * z, reach * sin_pan * y], dim=-1)
    move_y = torch.stack([zero, one, zero, -reach * z1], dim=-1)
    move_z = torch.stack([zero, zero, -reach * x, reach * cos_pan * y], dim=-1)
    wall_x, wall_y, y, z, x = (each[..., None] for each in (wall_x, wall_y, y, z, x))
    facing = (wall_x * x + wall_y * y).clamp(min=1e-9)
    stretch = -(wall_x * move_x + wall_y * move_y) / facing
    turn = wall_x * (move_y + stretch * y) - wall_y * (move_x + stretch * x)
    return wall, torch.stack([turn, stretch * z + move_z], dim=-2)


def _resolution(
    lens: Lens, depth: Float[Tensor, "sides edges matches"]
) -> Float[Tensor, "sides edges matches 2"]:
    """`Geometry.resolution` in `cylinder` mode."""
    angle = torch.atan2(torch.ones_like(depth), depth)
    if lens.model == "pinhole":
        per_radian = 1 / angle.clamp(max=1.55).cos().square()
    else:
        k1, k2, k3, k4 = lens.coefficients if lens.model == "kannala-brandt" else (0.0, 0.0, 0.0, 0.0)
        square = angle.square()
        per_radian = 1 + square * (3 * k1 + square * (5 * k2 + square * (7 * k3 + square * 9 * k4)))
    along = lens.focal * per_radian / (1 + depth.square())
    return torch.stack([lens_radius(lens, angle), along], dim=-1)
