from itertools import pairwise

import numpy as np
import pytest

from fewer.stitch.match.features import StripView
from fewer.stitch.match.windows import cut_size, own_columns, padded_strip, seen, unpadded, windows
from fewer.stitch.unfold.strip import PAD


@pytest.mark.parametrize(("width", "height"), [(800, 250), (1200, 160), (513, 16), (5000, 100)])
def test_windows_cover_the_strip(width: int, height: int) -> None:
    found = list(windows(width, height))
    seen = np.zeros(width, bool)
    for start, stop in found:
        assert 0 <= start < stop <= width
        seen[start:stop] = True
    assert seen.all()
    assert len(found) == 1 or all(stop - start == 512 for start, stop in found)


@pytest.mark.parametrize("width", [300, 960, 1300])
def test_every_column_is_one_windows_own(width: int) -> None:
    found = list(windows(width, 256, always=True))
    own = own_columns(found)
    assert own[0][0] == 0
    assert own[-1][1] == width
    for (start, stop), (low, high) in zip(found, own, strict=True):
        assert start <= low < high <= stop
    assert all(before[1] == after[0] for before, after in pairwise(own))


@pytest.mark.parametrize("size", [(97, 400), (176, 480), (16, 131)])
def test_padded_strips_lead_back_to_their_columns(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    view = StripView(grey, np.ones(size, bool), {})
    padded = padded_strip(grey)
    assert padded.shape == cut_size(size)
    assert all(side % 16 == 0 for side in padded.shape)
    p = np.array([[PAD + 3.0, 5.0], [PAD - 2.0, 5.0], [PAD + size[1] - 1.0, 7.0]])
    q = np.array([[PAD + 4.0, 5.0], [PAD + 9.0, 5.0], [PAD + size[1] + 1.0, 7.0]])
    matches = unpadded([(p, q, np.ones(3))], view, view, "loftr")
    assert matches.p.tolist() == [[3.0, 5.0], [size[1] - 1.0, 7.0]]  # a query of the padding is a copy
    assert matches.q.tolist() == [[4.0, 5.0], [1.0, 7.0]]
    assert len(unpadded([], view, view, "loftr")) == 0


def test_only_what_the_mask_shows_is_seen() -> None:
    view = StripView(np.zeros((20, 30), np.uint8), np.ones((20, 30), bool), {})
    view.mask[:, :10] = False
    xy = np.array([[5.0, 5.0], [15.0, 5.0], [-1.0, 5.0], [29.9, 19.9], [30.0, 5.0], [15.0, np.inf]])
    assert seen(xy, view).tolist() == [False, True, False, True, False, False]
