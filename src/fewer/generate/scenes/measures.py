"""What can be measured in pictures of scenes without learning: background colour, number and places.

All take a batch of pictures as bytes, (pictures, height, width, 3), on any device.
"""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from fewer.generate.scenes.vocabulary import COLOURS

_DIFFERENT = 40
_LEAST_AREA = 0.005
_BETWEEN_LOOKS = 16

Pictures = UInt8[Tensor, "pictures height width 3"]


def background_colours(pictures: Pictures) -> list[str]:
    """The named colour nearest to the median of each picture's border."""
    names = list(COLOURS)
    table = torch.tensor([COLOURS[name] for name in names], dtype=torch.float32, device=pictures.device)
    distance = (table - border_median(pictures)[:, None]).square().sum(dim=2)
    return [names[index] for index in distance.argmin(dim=1).tolist()]


def border_median(pictures: Pictures) -> Float[Tensor, "pictures 3"]:
    """Median colour of a border a thirty-second of the shorter side wide."""
    width = max(1, min(pictures.shape[1:3]) // 32)
    strips = (
        pictures[:, :width], pictures[:, -width:], pictures[:, :, :width], pictures[:, :, -width:],
    )  # fmt: skip
    border = torch.cat([strip.flatten(1, 2) for strip in strips], dim=1).float()
    return border.sort(dim=1).values[:, border.shape[1] // 2]


def foreground(pictures: Pictures) -> Bool[Tensor, "pictures height width"]:
    """Pixels that differ from the background in any channel."""
    return (pictures.float() - border_median(pictures)[:, None, None]).abs().amax(dim=3) > _DIFFERENT


def count_objects(pictures: Pictures) -> list[int]:
    """Connected groups of foreground pixels of at least 0.5 % of the picture, small gaps closed."""
    mask = foreground(pictures)[:, None].float()
    reach = max(1, min(pictures.shape[1:3]) // 64)
    closed = functional.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)
    pixels = mask[0].numel()
    labels = closed * torch.arange(1, pixels + 1, dtype=torch.float32, device=mask.device).view_as(mask[0])
    while True:  # every pixel takes the largest label that it is connected with
        spread = labels
        for _ in range(_BETWEEN_LOOKS):
            spread = functional.max_pool2d(spread, 3, stride=1, padding=1) * closed
        if torch.equal(spread, labels):
            break
        labels = spread
    counts = []
    for own, seen in zip(labels, mask, strict=True):
        sizes = own[seen > 0].unique(return_counts=True)[1]
        counts.append(int((sizes >= _LEAST_AREA * pixels).sum()))
    return counts


def places_of(pictures: Pictures) -> list[str]:
    """Where each foreground's centroid is: "left", "right", "top", "bottom"; or "center", also if empty."""
    mask = foreground(pictures).float()
    total = mask.sum(dim=(1, 2)).clamp(min=1)
    empty = mask.sum(dim=(1, 2)) == 0
    down, across = (_offset(mask, axis, total) for axis in (1, 2))
    found = []
    for y, x, none in zip(down.tolist(), across.tolist(), empty.tolist(), strict=True):
        if none or max(abs(y), abs(x)) <= 0.1:
            found.append("center")
        elif abs(x) >= abs(y):
            found.append("left" if x < 0 else "right")
        else:
            found.append("top" if y < 0 else "bottom")
    return found


def _offset(
    mask: Float[Tensor, "pictures height width"], axis: int, total: Float[Tensor, " pictures"]
) -> Float[Tensor, " pictures"]:
    """Distance of the centroid from the middle along an axis, in sides."""
    side = mask.shape[axis]
    along = mask.sum(dim=3 - axis)
    centres = (torch.arange(side, device=mask.device) + 0.5) / side - 0.5
    return (along * centres).sum(dim=1) / total


def as_bytes(pictures: Float[Tensor, "pictures 3 height width"]) -> Pictures:
    """Values in [-1, 1] to bytes."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def sizes_present(sizes: Int[Tensor, "scenes objects"]) -> list[int]:
    """Every size that occurs, without the 0 of absent objects."""
    return [int(size) for size in sizes.unique() if size]
