import cv2
import numpy as np
import pytest
import torch

from fewer.stitch.device.pictures import (
    clear_masks,
    highlight_masks,
    reach_inside,
    sample,
    strip_coordinates,
    upload,
)
from fewer.stitch.frames.quality import highlight_mask
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import StripShape, picture_coordinates

CPU = torch.device("cpu")
LENSES = [
    Lens("equidistant", 95.0),
    Lens("pinhole", 60.0),
    Lens("kannala-brandt", 95.0, (0.02, -0.01, 0.003, 0.0)),
]


def test_what_shines_is_what_opencv_says(small_frames: list[np.ndarray]) -> None:
    odd = np.random.default_rng(0).integers(0, 256, (2, 61, 83, 3), np.uint8)
    odd[1, :, :, 1] = np.maximum(odd[1, :, :, 1], 200)  # green, pale
    for pictures in ([*small_frames[:2]], [*odd]):
        usable = np.ones(pictures[0].shape[:2], bool)
        usable[:20] = False
        planes = upload(pictures, CPU)
        found, clear = highlight_masks(planes).numpy(), clear_masks(planes, usable).numpy()
        for picture, mine, seen in zip(pictures, found, clear, strict=True):
            assert (mine == highlight_mask(picture)).all()
            assert (seen == (usable & ~mine)).all()
        assert found.any()
        assert not found.all()


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
def test_strips_lie_where_opencv_looks_for_them(lens: Lens) -> None:
    form = Geometry("cylinder", lens, (119.5, 119.5), 116.0, 2.2)
    shapes = [StripShape(123, 41, first) for first in (0.2, 0.31)]
    poses = np.array([[0.1, -0.05, 0.03, 0.02], [0.0, 0.2, -0.1, 0.05]])
    found = strip_coordinates(form, shapes, poses, [0.0, 0.7], CPU).numpy()
    for mine, shape, pose, turn in zip(found, shapes, poses, (0.0, 0.7), strict=True):
        assert np.abs(mine - picture_coordinates(form, shape, pose, turn)).max() < 1e-3


def test_sampling_is_bilinear_and_dark_outside() -> None:
    planes = torch.arange(20.0).view(1, 1, 4, 5)
    places = torch.tensor([[[[1.0, 2.0], [0.5, 0.0], [2.25, 1.5], [-3.0, 1.0], [1e9, 2.0]]]])
    assert torch.allclose(
        sample(planes, places)[0, 0, 0], torch.tensor([11.0, 0.5, 9.75, 0.0, 0.0]), atol=1e-4
    )


@pytest.mark.parametrize("size", [(60, 90), (5, 7)])
def test_reach_is_opencvs_distance(size: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    clear = random.uniform(size=(2, *size)) > 0.02
    clear[1] = True  # nothing that is not clear: as far as it goes
    found = reach_inside(torch.from_numpy(clear), 16.0).numpy()
    expected = np.minimum(cv2.distanceTransform(clear[0].view(np.uint8), cv2.DIST_L2, 3), 16)
    assert np.abs(found[0] - expected).max() < 1e-4
    assert (found[1] == 16).all()
