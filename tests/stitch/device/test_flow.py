import cv2
import numpy as np
import pytest
import torch

from fewer.stitch.device.flow import track_both_ways
from fewer.stitch.match.tiny import refine_by_tracking


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise, and the same moved, stretched and noisy."""
    random = np.random.default_rng(seed)
    first = cv2.GaussianBlur(random.normal(0, 1, (height, width)), (0, 0), 3) * 400 + 128
    move = np.array([[1.01, 0.01, 3.4], [-0.01, 1, -1.6]])
    second = cv2.warpAffine(first, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    first, second = (
        np.clip(each + random.normal(0, 3, each.shape), 0, 255).astype(np.uint8) for each in (first, second)
    )
    return first, second


def together(*pairs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    stacked = [torch.from_numpy(np.stack(each).astype(np.float32)) for each in zip(*pairs, strict=True)]
    q, good = track_both_ways(*stacked, trust_back=1.0)
    return q.numpy(), good.numpy()


@pytest.mark.parametrize(("height", "width"), [(61, 77), (40, 130)])
def test_each_pair_is_tracked_as_opencv_tracks_it(height: int, width: int) -> None:
    random = np.random.default_rng(1)
    p = random.uniform(0, [width - 1, height - 1], (40, 2)).astype(np.float32).astype(np.float64)
    guess = (p + np.array([3.4, -1.6]) + random.normal(0, 4, p.shape)).astype(np.float32).astype(np.float64)
    pairs = [pictures(height, width, seed) for seed in (0, 1)]
    q, good = together(*((*pair, p, guess) for pair in pairs))
    for mine, ok, pair in zip(q, good, pairs, strict=True):
        expected, expected_ok = refine_by_tracking(*pair, p, guess)
        assert (ok != expected_ok).sum() <= 1
        both = ok & expected_ok
        assert both.sum() > 15
        assert np.quantile(np.hypot(*(mine - expected)[both].T), 0.95) < 0.01


def test_flat_ground_and_points_far_outside_are_refused() -> None:
    first, second = pictures(80, 80)
    flat = np.full_like(first, 90)
    p = np.array([[40.0, 40.0], [500.0, 40.0], [40.0, -300.0]])
    assert together((first, second, p, p))[1].tolist() == [[True, False, False]]
    assert not together((flat, flat, p, p))[1].any()


def test_a_point_is_tracked_alike_in_any_company() -> None:
    first, second = pictures(64, 96)
    random = np.random.default_rng(2)
    p = random.uniform(10, 54, (30, 2))
    alone = [together((first, second, p[[row]], p[[row]] + 2)) for row in range(5)]
    q, good = together((first, second, p, p + 2), (second, first, p, p))
    for row, (mine, ok) in enumerate(alone):
        assert np.allclose(mine[0, 0], q[0, row], atol=1e-3)
        assert ok[0, 0] == good[0, row]
