import numpy as np
import pytest
import torch

from fewer.stitch.device.bands import blurs, split
from fewer.stitch.mosaic.canvas import _blur_inside


@pytest.mark.parametrize(("height", "width"), [(41, 300), (57, 123)])
def test_bands_are_opencvs_and_add_up_to_the_strip(height: int, width: int) -> None:
    random = np.random.default_rng(0)
    strips = random.uniform(0, 255, (2, height, width, 3)).astype(np.float32)
    weight = random.uniform(size=(2, height, width)).astype(np.float32)
    weight[:, :, 20:60] = 0
    weight[1, 10:] = 0
    planes = torch.from_numpy(strips).permute(0, 3, 1, 2)
    levels = split(planes, torch.from_numpy(weight), blurs(height, width, 4, torch.device("cpu")))
    assert len(levels) == 4
    assert torch.allclose(sum(levels[1:], levels[0]), planes, atol=1e-3)
    for number in range(2):
        seen = (weight[number] > 0).astype(np.float32)
        strip = strips[number]
        for level, sigma in zip(levels[:-1], (2.0, 6.0, 14.0), strict=True):
            lower = _blur_inside(strip, seen, sigma)
            mine = level[number].permute(1, 2, 0).numpy()
            # at the ends OpenCV mirrors what lies beyond its padding, a few thousandths of the weight
            off = np.abs(mine - (strip - lower))
            assert off[:, 12:-12].max() < 0.02
            assert off.max() < 1.0
            strip = lower
