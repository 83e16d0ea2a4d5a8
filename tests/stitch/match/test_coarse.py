import numpy as np
import pytest
import torch

from fewer.stitch.match.coarse import as_input, coarse_matches
from fewer.stitch.match.loftr import SMALL, TINY, CoarseLoFTR, LoFTRShape, dual_softmax


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("shape", [TINY, SMALL], ids=["stride 16", "stride 8"])
def test_matches_are_corners_of_cells_inside_the_picture(shape: LoFTRShape) -> None:
    torch.manual_seed(0)
    grey = noise(64, 128)
    p, q, confidence = coarse_matches(CoarseLoFTR(shape).eval(), grey, grey, 0.0)
    assert len(p) == len(q) == len(confidence) > 0
    for points in (p, q):
        assert (points % shape.stride == 0).all()
        assert points[:, 0].max() < 128
        assert points[:, 1].max() < 64


def test_a_match_is_the_best_of_its_row_and_its_column() -> None:
    torch.manual_seed(1)
    model, first, second = CoarseLoFTR(SMALL).eval(), noise(48, 64), noise(48, 64)[::-1].copy()
    p, q, confidence = coarse_matches(model, first, second, 0.0)
    with torch.no_grad():
        table = dual_softmax(model.similarity(as_input(first), as_input(second)))[0].numpy()
    rows, columns = ((at[:, 1] // 8 * 8 + at[:, 0] // 8).astype(int) for at in (p, q))
    assert np.allclose(table[rows, columns], confidence, rtol=1e-4)
    assert np.allclose(table[rows].max(axis=1), confidence, rtol=1e-4)
    assert np.allclose(table[:, columns].max(axis=0), confidence, rtol=1e-4)
    sure = coarse_matches(model, first, second, float(np.median(confidence)))
    assert 0 < len(sure[0]) < len(p)


def test_odd_sides_are_cut() -> None:
    assert as_input(noise(37, 70)).shape == (1, 1, 32, 64)
