from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fewer.stitch.match.tube_pairs import TubePairPlan, TubePairs, make_tube_pairs, paint_walls

PLAN = TubePairPlan(frame=240, strip_width=400, crop=(128, 208))


@pytest.fixture(scope="module")
def walls() -> torch.Tensor:
    return paint_walls(1, 0, length=50.0)


@pytest.fixture(scope="module")
def pairs(walls: torch.Tensor) -> TubePairs:
    return make_tube_pairs(walls, 2, PLAN, torch.Generator().manual_seed(1))


def test_walls_look_like_lining_and_meet_at_their_ends(walls: torch.Tensor) -> None:
    assert walls.shape == (1, 1, 800, 1005)
    assert 0 <= walls.min() < 110 < walls.max() <= 255
    step = (walls[..., 1:] - walls[..., :-1]).abs().mean()
    assert (walls[..., 0] - walls[..., -1]).abs().mean() < 3 * step


def test_cells_of_a_pair_show_the_same_lining(pairs: TubePairs) -> None:
    across = 208 // 8
    matched, shuffled = [], []
    for item in range(2):
        first, second = pairs.first[item, 0].numpy(), pairs.second[item, 0].numpy()
        for cell in torch.nonzero(pairs.inside[item])[:, 0].tolist()[::5]:
            at = [8 * cell // across // 8 * 8, cell % across * 8]
            found = int(pairs.index[item, cell])
            to = [found // across * 8, found % across * 8]
            if min(*at, *to) < 16 or max(at[0], to[0]) > 108 or max(at[1], to[1]) > 188:
                continue
            piece = first[at[0] - 6 : at[0] + 7, at[1] - 6 : at[1] + 7]
            for places, (y, x) in ((matched, to), (shuffled, (128 - to[0], 208 - to[1]))):
                around = second[max(y - 10, 0) : y + 11, max(x - 10, 0) : x + 11]
                if min(around.shape) >= 13:
                    places.append(float(cv2.matchTemplate(around, piece, cv2.TM_CCOEFF_NORMED).max()))
    assert len(matched) > 20
    assert np.median(matched) > 0.7 > 0.6 > np.median(shuffled)


def test_cells_outside_the_field_have_no_partner(pairs: TubePairs) -> None:
    rows = pairs.inside.view(2, 16, 26).float().mean(dim=(0, 2))
    assert rows[0] < 0.5 < rows[4:12].min()
    assert pairs.index.min() >= 0
    assert pairs.index.max() < 16 * 26


def test_pairs_are_a_function_of_the_seed(walls: torch.Tensor) -> None:
    small = replace(PLAN, crop=(64, 64), stride=16)
    one, two = (make_tube_pairs(walls, 1, small, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one.first, two.first)
    assert torch.equal(one.index, two.index)
    assert one.index.shape == (1, 16)
