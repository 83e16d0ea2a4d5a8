"""Frames of one size become strips on a device: unrolled, equalised, masked, their brightness summed up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from fewer.stitch.device.equalise import equalise
from fewer.stitch.device.pictures import clear_masks, sample, strip_coordinates, upload
from fewer.stitch.mosaic.exposure import profile_of_rows
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.strip import PAD, StripShape


@dataclass(frozen=True, slots=True)
class Unrolled:
    """One frame's strip, back on the processor: equalised green with its ends repeated on either side, where
    it may be trusted, and its brightness profile.
    """

    padded: UInt8[np.ndarray, "height padded"]
    mask: Bool[np.ndarray, "height width"]
    profile: Float[np.ndarray, "samples 3"]


def unroll(
    pictures: Sequence[UInt8[np.ndarray, "rows columns 3"]], usable: Bool[np.ndarray, "rows columns"],
    geometry: Geometry, shape: StripShape, poses: Sequence[Float[np.ndarray, "4"]], device: torch.device,
) -> list[Unrolled]:  # fmt: skip
    """What `mosaic.survey.tracked_frame` makes of each, but for grey levels that round the other way."""
    planes, count = upload(pictures, device), len(pictures)
    clear = clear_masks(planes, usable)
    where = strip_coordinates(geometry, [shape] * count, np.stack(poses), [0.0] * count, device)
    strips = sample(planes.float(), where).round()
    masks = sample(clear[:, None].float() * 255, where)[:, 0].round() > 254
    green = strips[:, 1:2]
    padded = equalise(torch.cat([green[..., -PAD:], green, green[..., :PAD]], dim=-1))[:, 0]
    seen = masks[:, None, :, ::4].float()
    rows = torch.cat([seen, strips[..., ::4] * seen], dim=1).sum(dim=-1).mT
    back = (padded.to(torch.uint8), masks, rows)
    greys, inside, sums = (each.cpu().numpy() for each in back)
    return [
        Unrolled(grey, mask, profile_of_rows(each[:, 0], each[:, 1:], seen.shape[-1]).astype(np.float32))
        for grey, mask, each in zip(greys, inside, sums, strict=True)
    ]
