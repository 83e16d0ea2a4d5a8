import numpy as np
import torch

from fewer.stitch.device.strips import unroll
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.match.features import equalise
from fewer.stitch.mosaic.exposure import brightness_profile
from fewer.stitch.panorama import Panorama
from fewer.stitch.unfold.strip import pad_round, picture_coordinates, unwrap, unwrap_mask


def test_strips_masks_and_profiles_are_those_of_opencv(small_map: Panorama, small_frames: list) -> None:
    segment = small_map.segments[0]
    rows, columns = np.indices(small_frames[0].shape[:2])
    usable = np.hypot(rows - 119.5, columns - 119.5) < 110
    frames, poses = small_frames[:3], [pose[:4] for pose in segment.poses[:3]]
    found = unroll(frames, usable, segment.geometry, segment.shape, poses, torch.device("cpu"))
    for picture, pose, mine in zip(frames, poses, found, strict=True):
        where = picture_coordinates(segment.geometry, segment.shape, pose)
        strip, mask = unwrap(picture, where), unwrap_mask(usable & ~highlight_mask(picture), where)
        off = np.abs(mine.padded.astype(int) - equalise(pad_round(strip)))
        assert np.quantile(off, 0.99) <= 1
        assert (mine.mask != mask).mean() < 1e-4
        assert np.allclose(mine.profile, brightness_profile(strip, mask), atol=0.01, equal_nan=True)
