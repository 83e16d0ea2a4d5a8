import numpy as np
import pytest

from fewer.stitch.match.pool import Matches, displacement, fill_pool
from fewer.stitch.options import MatchOptions

SHAPE = (200, 800)


def moved(
    count: int, shift: tuple[float, float], seed: int, noise: float = 0.3, name: str = "sift"
) -> Matches:
    random = np.random.default_rng(seed)
    p = random.uniform([0, 30], [800, 150], (count, 2))
    q = p + shift + random.normal(0, noise, (count, 2))
    q[:, 0] = np.mod(q[:, 0], 800)
    return Matches.of(p, q, random.uniform(0.3, 1, count), name)


def false(count: int, seed: int, name: str = "orb") -> Matches:
    random = np.random.default_rng(seed)
    p, q = random.uniform([0, 0], [800, 200], (2, count, 2))
    return Matches.of(p, q, random.uniform(0.3, 1, count), name)


def test_displacement_goes_the_short_way_round() -> None:
    p, q = np.array([[790.0, 5.0], [10.0, 5.0]]), np.array([[10.0, 8.0], [790.0, 2.0]])
    assert np.allclose(displacement(p, q, 800), [[20, 3], [-20, -3]])


@pytest.mark.parametrize("shift", [(7.0, -13.0), (-390.0, 20.0), (399.0, 0.0)])
def test_true_matches_survive_and_false_ones_go(shift: tuple[float, float]) -> None:
    true = moved(150, shift, 0)
    pool = fill_pool([true, false(150, 1)], SHAPE, MatchOptions())
    assert len(pool.matches) > 0.85 * 150 * 0.9
    off = displacement(pool.matches.p + np.array(shift), pool.matches.q, 800)
    assert (np.hypot(*off.T) < 8).mean() > 0.98
    assert np.allclose(displacement(np.zeros((1, 2)) + pool.shift, np.array([shift]), 800), 0, atol=1)


def test_the_same_match_of_two_matchers_becomes_one_with_more_trust() -> None:
    one = Matches.of(np.array([[100.0, 50.0]]), np.array([[110.0, 40.0]]), np.array([0.5]), "sift")
    two = Matches.of(np.array([[100.5, 50.5]]), np.array([[110.5, 40.5]]), np.array([0.5]), "orb")
    single = fill_pool([one], SHAPE, MatchOptions()).matches
    both = fill_pool([one, two], SHAPE, MatchOptions()).matches
    assert len(both) == 1
    assert both.found_by[0] == 3
    assert np.allclose(both.p, [[100.25, 50.25]])
    assert both.confidence[0] >= single.confidence[0]


def test_filters_can_be_switched_off_one_by_one() -> None:
    groups = [moved(100, (5.0, 5.0), 0), false(60, 1)]
    off = MatchOptions(motion_filter=False, merge_filter=False, neighbour_filter=False)
    everything = fill_pool(groups, SHAPE, off)
    assert everything.counts["after neighbours"] == 160
    only_motion = fill_pool(groups, SHAPE, MatchOptions(merge_filter=False, neighbour_filter=False))
    assert only_motion.counts["after motion"] < 115


def test_the_cap_keeps_the_surest_of_a_cell() -> None:
    random = np.random.default_rng(0)
    p = np.stack([random.uniform(0, 49, 300), random.uniform(0, 24, 300)], axis=1)
    confidence = random.uniform(0.1, 1, 300)
    matches = Matches.of(p, p + 3, confidence, "sift")
    pool = fill_pool([matches], SHAPE, MatchOptions(cell_cap=7, merge_filter=False, neighbour_filter=False))
    assert len(pool.matches) == 7
    assert pool.matches.confidence.min() >= np.sort(matches.confidence)[-7]


def test_nothing_and_nan_are_harmless() -> None:
    assert len(fill_pool([], SHAPE, MatchOptions()).matches) == 0
    bad = Matches.of(np.full((3, 2), np.nan), np.zeros((3, 2)), np.ones(3), "orb")
    pool = fill_pool([bad, Matches.empty()], SHAPE, MatchOptions())
    assert len(pool.matches) == 0
    assert np.isfinite(pool.shift).all()


def test_confidence_is_scaled_by_its_own_90th_percentile() -> None:
    matches = Matches.of(np.zeros((11, 2)), np.zeros((11, 2)), np.linspace(0, 0.1, 11), "loftr")
    assert matches.confidence.max() == 1
    assert matches.confidence.min() > 0
    assert matches.confidence[5] == pytest.approx(0.05 / 0.09)
