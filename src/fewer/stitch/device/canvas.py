"""The map on a device: `mosaic.canvas`, many frames at a time.

The same weights, bands and order of frames; pictures are read at exact places where OpenCV rounds them to
1/32 of a pixel, so colours differ by a grey level or two and provenance by nothing that is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fewer.core.device import available_memory
from fewer.stitch.device.bands import Blur, blurs, split
from fewer.stitch.device.pictures import reach_inside, sample, strip_coordinates
from fewer.stitch.mosaic.canvas import FEATHER, IN_MEMORY, Provenance, far_fade
from fewer.stitch.mosaic.exposure import Exposure
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.mosaic.store import zeros

_WIDEST = 4096  # columns; matrices of wider maps would be larger than the frames
_MOST_TOGETHER = 16
_BUDGET = 2**30  # bytes of frames prepared at once


@dataclass(frozen=True, slots=True)
class Frames:
    """Some frames of one segment: numbers in the video, places in the segment, pictures, what is clear."""

    indices: Sequence[int]
    places: Sequence[int]
    pictures: UInt8[Tensor, "frames 3 rows columns"]
    clear: Bool[Tensor, "frames rows columns"]


class DeviceCanvas:
    """Accumulates one segment."""

    def __init__(self, layout: Layout, exposure: Exposure | None, device: torch.device) -> None:
        self._layout, self._exposure, self._device = layout, exposure, device
        self.top, self.height = layout.top, layout.height
        size = (layout.height, layout.width)
        self._sum = torch.zeros((layout.bands, 4, *size), device=device)
        self._best = torch.zeros(size, device=device)
        self._frame = torch.full(size, -1, dtype=torch.int32, device=device)
        self._source = torch.zeros((*size, 2), device=device)
        self._blurs: dict[int, list[Blur]] = {}

    @property
    def together(self) -> int:
        """How many frames it likes at a time."""
        return max(1, min(_MOST_TOGETHER, _BUDGET // (4 * self._layout.bytes_laid)))

    def lay(self, frames: Frames) -> None:
        """Unwrap, level and lay down frames, in their order."""
        rows = [self._layout.shape(place).height for place in frames.places]
        for start, stop in _runs(rows):
            part = slice(start, stop)
            mine = Frames(
                frames.indices[part], frames.places[part], frames.pictures[part], frames.clear[part]
            )
            self._lay_alike(mine)

    def finish(self) -> tuple[UInt8[np.ndarray, "height width 3"], Provenance]:
        """The picture (black where nothing was seen) and its provenance, in memory or, large ones, in
        files.
        """
        on_disk, size = self._layout.bytes_held > IN_MEMORY, self._frame.shape
        picture = zeros((*size, 3), np.uint8, on_disk)
        frame, source = zeros(tuple(size), np.int32, on_disk), zeros((*size, 2), np.float32, on_disk)
        for start in range(0, self.height, 1024):
            area = slice(start, start + 1024)
            value = (self._sum[:, :3, area] / self._sum[:, 3:, area].clamp(min=1e-12)).sum(dim=0)
            value = torch.where(self._frame[area] < 0, 0.0, value).round().clamp(0, 255)
            picture[area] = value.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            frame[area] = self._frame[area].cpu().numpy()
            source[area] = self._source[area].cpu().numpy()
        return picture, Provenance(frame, source[..., 0], source[..., 1])

    def _lay_alike(self, frames: Frames) -> None:
        """Frames whose strips have as many rows."""
        layout = self._layout
        shapes = [layout.shape(place) for place in frames.places]
        poses = layout.poses[np.array(frames.places)]
        height = shapes[0].height
        where = strip_coordinates(
            layout.geometry, shapes, poses, [float(pose[4]) for pose in poses], self._device
        )
        strips = sample(frames.pictures.float(), where).round()
        weight = _sampling_weight(where, frames.clear)
        weight = weight * torch.from_numpy(far_fade(height)).to(weight)[:, None]
        if self._exposure is not None:
            strips = strips * self._factors(self._exposure, frames.places, shapes[0].height, poses)
        if height not in self._blurs:
            self._blurs[height] = blurs(height, layout.width, layout.bands, self._device)
        levels = split(strips, weight, self._blurs[height])
        shares = [weight**power for power in layout.powers]
        layers = torch.stack(
            [
                torch.cat([level * share[:, None], share[:, None]], dim=1)
                for level, share in zip(levels, shares, strict=True)
            ],
            dim=1,
        )
        for number, (index, place) in enumerate(zip(frames.indices, frames.places, strict=True)):
            self._add(index, layout.area(place), layers[number], weight[number], where[number])

    def _add(self, index: int, area: slice, layers: Tensor, weight: Tensor, where: Tensor) -> None:
        best, under = self._best[area], self._sum[:, :, area]
        if self._layout.options.blend == "last":
            wins = weight > 0
            under.copy_(torch.where(wins, layers / layers[:, 3:].clamp(min=1e-12), under))
        else:
            wins = weight > best
            under += layers
        best.copy_(torch.where(wins, weight, best))
        self._frame[area].masked_fill_(wins, index)
        self._source[area].copy_(torch.where(wins[..., None], where, self._source[area]))

    def _factors(
        self, exposure: Exposure, places: Sequence[int], height: int, poses: Float[np.ndarray, "frames 6"]
    ) -> Float[Tensor, "frames 3 height width"]:
        """What levels the brightness of each pixel."""
        layout = self._layout
        first = np.array([layout.shape(place).first_depth for place in places])
        depth = torch.from_numpy(first[:, None] + np.arange(height) / layout.scale).to(self._device)
        theta = np.arange(layout.width) / layout.scale - poses[:, 4:5]
        across = (np.cos(theta) - poses[:, :1]) ** 2 + (np.sin(theta) - poses[:, 1:2]) ** 2
        if layout.geometry.mode == "cylinder":
            distance = (depth.square()[:, :, None] + torch.from_numpy(across).to(depth)[:, None]).sqrt()
        else:
            distance = depth[:, :, None].expand(-1, -1, layout.width)
        tables = torch.from_numpy(np.stack([exposure.tables(place) for place in places])).to(self._device)
        reach, last = exposure.distance[-1] - exposure.distance[0], tables.shape[2] - 1
        entry = ((distance - exposure.distance[0]) / reach * last).clamp(0, last).long()
        return tables.gather(2, entry.flatten(1)[:, None].expand(-1, 3, -1)).view(
            len(places), 3, height, layout.width
        )


def fits_on(device: torch.device, layouts: Sequence[Layout]) -> bool:
    """Whether maps may be made on this device: half of its free memory holds them and what is laid down."""
    held = sum(layout.bytes_held for layout in layouts) + _BUDGET
    return max(layout.width for layout in layouts) <= _WIDEST and 2 * held < available_memory(device)


def _sampling_weight(
    where: Float[Tensor, "frames height width 2"], clear: Bool[Tensor, "frames rows columns"]
) -> Float[Tensor, "frames height width"]:
    """How finely the picture samples the map here, times a feather towards the edge of what is clear."""
    feather = sample(reach_inside(clear, float(FEATHER))[:, None], where)[:, 0]
    feather = torch.where(feather < 1.01, 0.0, feather) / FEATHER
    fine = (where[:, 1:] - where[:, :-1]).norm(dim=-1).clamp(max=1.0)
    return feather * torch.cat([fine, fine[:, -1:]], dim=1)


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """First and last place (behind it) of each run of equal values."""
    edges = [
        0,
        *(place for place in range(1, len(values)) if values[place] != values[place - 1]),
        len(values),
    ]
    return list(pairwise(edges))
