"""Adaptive histogram equalisation of many pictures at once."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def equalise(grey: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Adaptive histogram equalisation as OpenCV's CLAHE with clip 3 and 8 x 8 tiles; values 0..255."""
    batch, _, height, width = grey.shape
    # OpenCV fills up both sides where one is not a multiple of the tiles, also the one that is
    whole = height % 8 == 0 and width % 8 == 0
    tall, wide = (side // 8 + (not whole) for side in (height, width))
    padded = F.pad(grey, (0, 8 * wide - width, 0, 8 * tall - height), mode="reflect")
    levels = padded.long().clamp(0, 255).view(batch, 8, tall, 8, wide).permute(0, 1, 3, 2, 4)
    levels = levels.reshape(batch * 64, tall * wide)
    counts = torch.zeros(batch * 64, 256, device=grey.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    limit = max(1, int(3.0 * tall * wide / 256))
    excess = (counts - limit).clamp(min=0).sum(dim=1, keepdim=True)
    # what is cut off is shared by all levels; the rest of that division goes to the darkest, as in OpenCV
    rest, bins = excess % 256, torch.arange(256, device=grey.device)
    step = (256 / rest.clamp(min=1)).floor()
    shared = (excess / 256).floor() + ((bins % step == 0) & (bins / step < rest))
    table = (counts.clamp(max=limit) + shared).cumsum(dim=1) * (255 / (tall * wide))
    table = table.round().clamp(0, 255)
    table = table.view(batch, 8, 8, 256)
    rows, row_share = _tiles(height, tall, grey.device)
    columns, column_share = _tiles(width, wide, grey.device)
    numbers = torch.arange(batch, device=grey.device)[:, None, None]
    level, out = grey[:, 0].long().clamp(0, 255), torch.zeros_like(grey[:, 0])
    for down in (0, 1):
        for across in (0, 1):
            share = (row_share if down else 1 - row_share)[:, None]
            share = share * (column_share if across else 1 - column_share)[None]
            row, column = (rows + down).clamp(0, 7), (columns + across).clamp(0, 7)
            out += share * table[numbers, row[:, None], column[None], level]
    return out[:, None].round().clamp(0, 255)


def _tiles(side: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pixel the tile before it (-1..7) and its share of the next."""
    place = torch.arange(side, device=device) / tile - 0.5
    whole = place.floor()
    return whole.long(), place - whole
