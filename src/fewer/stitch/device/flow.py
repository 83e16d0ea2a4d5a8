"""Lucas-Kanade tracking of many points of many pictures at once, as OpenCV's `calcOpticalFlowPyrLK` does it
for one pair: two levels, windows of 21 x 21 pixels, at most 20 steps from a given guess.

Pictures are 8 bit grey held as floats. OpenCV rounds its patches to 1/32 grey level; here they stay exact.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.kernels.lucas_kanade import MARGIN, SIDE, settle_windows


def track_both_ways(
    first: Float[Tensor, "pairs height width"], second: Float[Tensor, "pairs height width"],
    p: Float[Tensor, "pairs points 2"], q: Float[Tensor, "pairs points 2"], trust_back: float,
) -> tuple[Float[Tensor, "pairs points 2"], Bool[Tensor, "pairs points"]]:  # fmt: skip
    """Sub-pixel q by tracking from the guess; True where tracking back returns within `trust_back` pixels."""
    old, new = _pyramid(first), _pyramid(second)
    there, ok = _track(old, new, p, q)
    back, ok_back = _track(new, old, there, p)
    return there, ok & ok_back & ((back - p).norm(dim=-1) < trust_back)


@dataclass(frozen=True, slots=True)
class _Level:
    """Pictures of one size and their slopes in grey levels a pixel, with a margin all round, rows end to
    end.
    """

    grey: Float[Tensor, "pairs pixels"]
    slopes: tuple[Float[Tensor, "pairs pixels"], Float[Tensor, "pairs pixels"]]
    size: tuple[int, int]


def _pyramid(grey: Float[Tensor, "pairs height width"]) -> list[_Level]:
    """The picture and, if windows fit into it, the picture of half the size."""
    levels = [_level(grey)]
    if min(grey.shape[1:]) > 2 * SIDE:
        levels.append(_level(_half(grey)))
    return levels


def _level(grey: Tensor) -> _Level:
    height, width = grey.shape[1:]
    around = _mirrored(grey, 1)
    down = (3 * around[:, :-2] + 10 * around[:, 1:-1] + 3 * around[:, 2:]) / 32
    along = (3 * around[:, :, :-2] + 10 * around[:, :, 1:-1] + 3 * around[:, :, 2:]) / 32
    slopes = (down[:, :, 2:] - down[:, :, :-2], along[:, 2:] - along[:, :-2])
    padded = tuple(torch.nn.functional.pad(slope, [MARGIN] * 4).flatten(1) for slope in slopes)
    return _Level(_mirrored(grey, MARGIN).flatten(1), (padded[0], padded[1]), (height, width))


def _half(grey: Tensor) -> Tensor:
    """Gaussian pyramid step: 1 4 6 4 1 along both axes, every second pixel, rounded."""
    wide = _mirrored(grey, 2)
    for axis in (1, 2):
        size = grey.shape[axis]
        taps = [wide.narrow(axis, start, size) for start in range(5)]
        wide = taps[0] + 4 * taps[1] + 6 * taps[2] + 4 * taps[3] + taps[4]
    return ((wide[:, ::2, ::2] + 128) / 256).floor()


def _mirrored(grey: Tensor, margin: int) -> Tensor:
    """Reflected at the outermost pixels, as often as the margin needs it."""
    for axis in (1, 2):
        size = grey.shape[axis]
        place = torch.arange(-margin, size + margin, device=grey.device)
        turn = max(2 * (size - 1), 1)
        place = torch.remainder(place, turn)
        grey = grey.index_select(axis, torch.minimum(place, turn - place).clamp(max=size - 1))
    return grey


def _track(
    first: list[_Level], second: list[_Level], p: Float[Tensor, "pairs points 2"],
    guess: Float[Tensor, "pairs points 2"],
) -> tuple[Float[Tensor, "pairs points 2"], Bool[Tensor, "pairs points"]]:  # fmt: skip
    coarsest = len(first) - 1
    q = guess / 2**coarsest
    ok = torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
    for number in range(coarsest, -1, -1):
        q = 2 * q if number < coarsest else q
        old, new = first[number], second[number]
        q, ok = settle_windows(old.grey, old.slopes, new.grey, p / 2**number, q, old.size)
    height, width = first[0].size
    corner = (q - (SIDE - 1) / 2).floor()
    size = torch.tensor([width, height], device=q.device)
    return q, ok & ((corner >= -SIDE) & (corner < size)).all(dim=-1)
