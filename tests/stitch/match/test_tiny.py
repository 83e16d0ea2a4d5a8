import cv2
import numpy as np
import pytest

from fewer.stitch.match.features import StripView
from fewer.stitch.match.learned import load_matchers
from fewer.stitch.match.loftr import load_tiny_loftr
from fewer.stitch.match.pool import displacement
from fewer.stitch.match.tiny import TinyMatcher, refine_by_tracking
from fewer.stitch.options import MatchOptions


def view(shift: int = 0) -> StripView:
    noise = np.random.default_rng(0).normal(0, 1, (176, 480))
    smooth = cv2.GaussianBlur(np.concatenate([noise] * 3, axis=1), (0, 0), 4)[:, 480:960]
    grey = np.roll(np.clip(128 + 500 * smooth, 0, 255).astype(np.uint8), shift, axis=1)
    return StripView(grey, np.ones(grey.shape, bool), {})


@pytest.mark.parametrize("name", ["loftr", "loftr-tube"])
def test_the_shipped_loftrs_follow_a_roll_to_a_fraction_of_a_pixel(name: str) -> None:
    matcher = load_matchers(MatchOptions(matchers=(name,)), [])[name]
    matches = matcher(view(), view(11))
    off = displacement(matches.p + np.array([11.0, 0.0]), matches.q, 480)
    assert len(matches) >= 20
    assert np.median(np.hypot(*off.T)) < 0.2
    assert (matches.p[:, 0] >= 0).all()
    assert (matches.p[:, 0] < 480).all()


def test_matches_outside_the_mask_go() -> None:
    matcher = load_matchers(MatchOptions(matchers=("loftr",)), [])["loftr"]
    half = view()
    half.mask[:, :240] = False
    assert (matcher(half, view()).p[:, 0] >= 240).all()


def test_tracking_refines_a_coarse_guess_and_refuses_flat_ground() -> None:
    first = view().grey
    second = cv2.warpAffine(first, np.float32([[1, 0, 3.4], [0, 1, -1.6]]), (480, 176))
    p = np.array([[100.0, 80.0], [200.0, 90.0], [301.0, 60.0]])
    q, good = refine_by_tracking(first, second, p, p + 5.0)
    assert good.all()
    assert np.allclose(q - p, [3.4, -1.6], atol=0.15)
    flat = np.full_like(first, 90)
    assert not refine_by_tracking(flat, flat, p, p)[1].any()


def test_a_network_of_small_cells_finds_a_place_once() -> None:
    wide = StripView(np.tile(view().grey, (1, 2)), np.ones((176, 960), bool), {})
    matcher = load_matchers(MatchOptions(matchers=("loftr-tube",)), [])["loftr-tube"]
    found = matcher(wide, wide)  # three windows
    assert len(found) > 300
    assert len(np.unique(found.p, axis=0)) == len(found)
    assert set(wide.learned) == {"loftr-tube"}  # the student's words for a strip are others


def test_tracking_in_groups_gives_the_matches_of_opencv() -> None:
    views = [view(), view(11), view(5), StripView(view().grey[:144], np.ones((144, 480), bool), {})]
    pairs = [(views[0], views[1]), (views[1], views[2]), (views[3], views[3])]  # two sizes
    model = load_tiny_loftr()
    alone = TinyMatcher(model, 0.02, "loftr", batched=False)
    expected = [alone(*pair) for pair in pairs]
    for each in views:
        each.learned.clear()
    together = TinyMatcher(model, 0.02, "loftr", together=2, batched=True)
    for pair, said, theirs in zip(pairs, together.propose(pairs), expected, strict=True):
        mine = together(*pair, said)
        assert abs(len(mine) - len(theirs)) <= 0.02 * len(theirs)
        places = {tuple(place) for place in theirs.p}
        assert np.mean([tuple(place) in places for place in mine.p]) > 0.98
        off = {tuple(p): q for p, q in zip(theirs.p, theirs.q, strict=True)}
        apart = [
            np.hypot(*(q - off[tuple(p)])) for p, q in zip(mine.p, mine.q, strict=True) if tuple(p) in off
        ]
        assert np.quantile(apart, 0.95) < 0.02
