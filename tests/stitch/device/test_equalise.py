import cv2
import numpy as np
import pytest
import torch

from fewer.stitch.device.equalise import equalise


@pytest.mark.parametrize("size", [(128, 208), (100, 123), (97, 560), (16, 24)])
def test_it_is_what_opencv_does(size: tuple[int, int]) -> None:
    """Sides that are multiples of the eight tiles, neither, one of the two, and the smallest strip."""
    random = np.random.default_rng(0)
    pictures = [cv2.GaussianBlur(random.normal(0, 1, size), (0, 0), 3) for _ in range(2)]
    greys = [np.clip(110 + 300 * each, 0, 255).astype(np.uint8) for each in pictures]
    ours = equalise(torch.from_numpy(np.stack(greys)).float()[:, None])[:, 0].numpy()
    for grey, mine in zip(greys, ours, strict=True):
        theirs = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(grey).astype(float)
        assert np.abs(mine - theirs).max() <= 1
        assert (mine != theirs).mean() < 0.03


def test_a_flat_picture_stays_flat() -> None:
    assert equalise(torch.full((1, 1, 40, 40), 90.0)).unique().numel() == 1
