import numpy as np
import pytest

from fewer.stitch.unfold.adjust import Edge, Matched, adjust, residuals
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

FORM = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)


def sequence(frames: int = 7, noise: float = 0.2, outliers: float = 0.1) -> tuple[np.ndarray, list[Edge]]:
    """True poses and noisy matches of neighbours, made with the geometry's projection."""
    random = np.random.default_rng(5)
    poses = np.zeros((frames, 6))
    poses[:, :2] = random.normal(0, 0.06, (frames, 2))
    poses[:, 2:4] = random.normal(0, 0.05, (frames, 2))
    poses[:, 4] = np.arange(frames) * 0.02
    poses[:, 5] = -0.1 * np.arange(frames)
    edges = []
    for second in range(frames):
        for first in (second + 1, second + 3):
            if first >= frames:
                continue
            wall = random.uniform([0, 0.7], [2 * np.pi, 1.8], (150, 2))
            sides = []
            for place in (first, second):
                local = wall - np.array([poses[place, 4], poses[place, 5] - poses[second, 5]])
                sides.append(FORM.to_picture(local, poses[place, :4]) + random.normal(0, noise, (150, 2)))
            wrong = random.uniform(size=150) < outliers
            sides[0][wrong] += random.uniform(-40, 40, (int(wrong.sum()), 2))
            edges.append(Matched(first, second, sides[0], sides[1], np.ones(150)))
    return poses, edges


def test_poses_are_recovered_from_noisy_matches_with_outliers() -> None:
    truth, edges = sequence()
    start = truth.copy()
    start[:, :4] = 0
    start[:, 5] *= 1.15
    result = adjust(FORM, start, edges, iterations=25)
    moved = result.poses - truth
    assert np.abs(moved[:, :2]).max() < 0.02
    assert np.abs(moved[:, 2:4]).max() < 0.02
    assert np.abs(np.diff(moved[:, 4:], axis=0)).max() < 0.01
    assert result.rms < 0.6


def test_exact_matches_leave_no_residual() -> None:
    truth, edges = sequence(noise=0.0, outliers=0.0)
    assert max(np.abs(residuals(FORM, truth, edge)).max() for edge in edges) < 1e-6


def test_fixed_values_do_not_move_and_frame_0_is_the_origin() -> None:
    truth, edges = sequence()
    start = truth + 0.01
    fixed = np.zeros(start.shape, bool)
    fixed[:, :4] = True
    result = adjust(FORM, start, edges, fixed=fixed)
    assert (result.poses[:, :4] == start[:, :4]).all()
    assert (result.poses[0, 4:] == start[0, 4:]).all()
    assert not (result.poses[1:, 4:] == start[1:, 4:]).any()


@pytest.mark.parametrize("frames", [2, 5])
def test_short_sequences_and_no_edges_work(frames: int) -> None:
    truth, edges = sequence(frames)
    assert np.isfinite(adjust(FORM, truth, edges).poses).all()
    assert np.isfinite(adjust(FORM, truth, []).poses).all()


def test_the_lumen_settles_what_matches_of_a_short_piece_cannot() -> None:
    truth, edges = sequence(4, noise=0.6)
    start = truth.copy()
    start[:, :4] = 0
    seen = FORM.axis_in_picture(truth[:, :4]) + np.random.default_rng(0).normal(0, 1.0, (4, 2))
    alone = adjust(FORM, start, edges, iterations=25).poses
    guided = adjust(FORM, start, edges, lumen=seen, iterations=25).poses
    assert np.abs(guided - truth)[:, :4].mean() < np.abs(alone - truth)[:, :4].mean()
