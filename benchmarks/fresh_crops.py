"""Crops of whole photographs, cut anew for every batch on the device that trains: any scale from 1 to 1/4,
any turn, mirrored, colours and contrast mixed; and pictures of nothing but discs that cover each other ("dead
leaves"), whose statistics are those of photographs though nothing in them was ever seen before.

A pool of crops drawn beforehand (`crop_pool.py`) shows a large net the same windows some six times a run;
here no two crops are alike.
"""
# bench: by hand: other scripts draw from it (--fresh, --leaves)

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fewer.core.files import read_image
from fewer.generate.autoencoder.crops import MAX_PIXELS, PictureFolder, to_tensor

SHRINK = 4.0
"""At most so many pixels of the photograph a pixel of the crop, each way."""
SAMPLES = 4
"""Points a pixel, each way: the mean over its footprint, without aliasing up to SHRINK."""


class FreshCrops:
    """Photographs to train on, whole, on one device. `left_out` of the last ones stay out, to choose with.
    `upright`: only mirrored, at their own size or halved, as in `crop_pool.py`, but anywhere."""

    def __init__(
        self, folder: Path, device: str, left_out: int = 0, largest: int = 2048, upright: bool = False
    ) -> None:
        self.upright = upright
        paths = PictureFolder(folder).train
        pictures = []
        for path in paths[: len(paths) - left_out]:
            picture = read_image(path, max_pixels=MAX_PIXELS)
            picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
            pictures.append(to_tensor(picture))
        self.heights, self.widths = (
            torch.tensor([float(p.shape[axis]) for p in pictures], device=device) for axis in (1, 2)
        )
        size = int(self.heights.max()), int(self.widths.max())
        # One volume with a photograph a layer: a single call samples crops of many of them at once.
        self.volume = torch.zeros(1, 3, len(pictures), *size, device=device)
        for layer, picture in enumerate(pictures):
            self.volume[0, :, layer, : picture.shape[1], : picture.shape[2]] = picture.to(device)

    @torch.no_grad()
    def draw(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """(count, 3, side, side) in [-1, 1]; nothing here waits for the device, so a graph may hold it."""
        device = self.volume.device
        layers, rows, columns = self.volume.shape[2:]
        layer = torch.randint(layers, (count,), generator=generator, device=device)
        random = torch.rand(6, count, generator=generator, device=device)
        height, width = self.heights[layer], self.widths[layer]
        room = 1.0 if self.upright else math.sqrt(2)  # a turned window needs its diagonal's
        most = (torch.minimum(height, width) / (side * room) * 0.98).clamp(max=SHRINK)
        scale = torch.exp(random[0] * math.log(SHRINK))
        angle = 2 * math.pi * random[1]
        if self.upright:
            scale, angle = 1 + (random[0] < 0.5).float(), torch.zeros_like(angle)
        scale = torch.minimum(most, scale)
        reach = side * scale * room / 2
        middle = [
            reach + random[2 + axis] * (whole - 2 * reach) for axis, whole in enumerate((height, width))
        ]
        place = (torch.arange(side * SAMPLES, device=device) + 0.5) / SAMPLES - side / 2
        v, u = torch.meshgrid(place, place, indexing="ij")
        u = torch.where(random[4] < 0.5, 1.0, -1.0)[:, None, None] * u  # mirrored
        cosine, sine = (f(angle)[:, None, None] * scale[:, None, None] for f in (torch.cos, torch.sin))
        x = middle[1][:, None, None] + cosine * u - sine * v
        y = middle[0][:, None, None] + sine * u + cosine * v
        z = ((2 * layer + 1) / layers - 1)[:, None, None].expand_as(x)  # the centre of its layer
        grid = torch.stack([2 * x / columns - 1, 2 * y / rows - 1, z], -1)
        found = functional.grid_sample(self.volume, grid[None], align_corners=False, padding_mode="border")
        crops = functional.avg_pool2d(found[0].transpose(0, 1), SAMPLES)
        return crops if self.upright else self._coloured(crops, random[5], generator)

    def _coloured(self, crops: Tensor, coin: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the crops with exchanged colours, all with another contrast and brightness."""
        count, device = len(crops), crops.device
        order = torch.rand(count, 3, generator=generator, device=device).argsort(1)
        exchanged = crops.gather(1, order[:, :, None, None].expand_as(crops))
        crops = torch.where((coin < 0.5)[:, None, None, None], exchanged, crops)
        gain, shift = torch.rand(2, count, 1, 1, 1, generator=generator, device=device)
        return (crops * (0.6 + 0.6 * gain) + 0.4 * (shift - 0.5)).clamp(-1, 1)


@torch.no_grad()
def dead_leaves(count: int, side: int, generator: torch.Generator, device: str, leaves: int = 100) -> Tensor:
    """(count, 3, side, side) in [-1, 1]: discs, radii r as dense as r^-3, each shaded along a line."""
    y, x = torch.meshgrid(*(torch.arange(side, device=device) + 0.5,) * 2, indexing="ij")
    ground = torch.rand(count, 3, 1, 1, generator=generator, device=device)
    picture = (2 * ground - 1).expand(-1, -1, side, side)
    for _ in range(leaves):
        random = torch.rand(11, count, 1, 1, generator=generator, device=device)
        smallest, largest = 1.5, side / 1.5
        share = 1 - (smallest / largest) ** 2
        radius = smallest / (1 - share * random[0]).sqrt()
        dx, dy = x - side * (1.4 * random[1] - 0.2), y - side * (1.4 * random[2] - 0.2)
        cover = (radius - (dx.square() + dy.square()).sqrt() + 0.5).clamp(0, 1)[:, None]  # smooth edges
        slope = (dx * (random[3] - 0.5) + dy * (random[4] - 0.5)) / radius
        colour = 2 * random[5:8].transpose(0, 1) - 1 + slope[:, None] * (random[8:11].transpose(0, 1) - 0.5)
        picture = picture + cover * (colour - picture)
    return picture.clamp(-1, 1)
