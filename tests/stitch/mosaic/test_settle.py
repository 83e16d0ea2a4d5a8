import numpy as np
import pytest

from fewer.stitch.mosaic.segment import Pair, Segment, TrackedFrame
from fewer.stitch.mosaic.settle import edges_of, settle
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.options import StitchOptions, TrackOptions, UnfoldOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import strip_shape

TRUE = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)


def segment(
    geometry: Geometry, tracker: Tracker, frames: int = 8, matches: int = 300
) -> tuple[Segment, np.ndarray]:
    random = np.random.default_rng(0)
    poses = np.zeros((frames, 6))
    poses[:, :4] = random.normal(0, 0.05, (frames, 4))
    poses[:, 5] = -0.12 * np.arange(frames)
    tracked = [
        TrackedFrame(i, i / 10, (480, 480), np.zeros(4), np.zeros((4, 3)), None) for i in range(frames)
    ]
    pairs = []
    for second in range(frames):
        for first in (second + 1, second + 3):
            if first < frames:
                wall = random.uniform([0, 0.8], [2 * np.pi, 1.8], (matches, 2))
                ends = [
                    TRUE.to_picture(wall - np.array([0, poses[i, 5] - poses[second, 5]]), poses[i, :4])
                    + random.normal(0, 0.2, (matches, 2))
                    for i in (first, second)
                ]
                kept = tracker.store.keep(np.hstack([*ends, np.ones((matches, 1))]).astype(np.float32))
                pairs.append(Pair(first, second, kept, matches, np.zeros(2), {}))
    chain = [np.array([0.0, -0.11 * i]) for i in range(frames)]
    return Segment(geometry, strip_shape(geometry, 800), tracked, pairs, chain), poses


def test_settling_finds_the_poses() -> None:
    options = StitchOptions(track=TrackOptions(iterations=20))
    tracker = Tracker(options, {})
    piece, poses = segment(TRUE, tracker)
    result = settle(piece, tracker, options)
    assert np.abs(np.diff(result.poses[:, 5] - poses[:, 5])).max() < 0.01
    assert np.abs(result.poses[:, :4] - poses[:, :4]).max() < 0.03
    assert result.rms < 0.5


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_a_wrong_focal_length_is_calibrated_within_eight_percent(factor: float) -> None:
    wrong = Geometry("cylinder", Lens("equidistant", 190.0 * factor), (239.5, 239.5), 232.0, 2.2)
    options = StitchOptions(unfold=UnfoldOptions(calibrate=True))
    tracker = Tracker(options, {})
    piece, _ = segment(wrong, tracker, frames=6, matches=120)
    result = settle(piece, tracker, options)
    assert abs(result.segment.geometry.lens.focal / 190 - 1) < 0.08


def test_without_pose_only_roll_and_depth_move() -> None:
    options = StitchOptions(unfold=UnfoldOptions(pose=False))
    tracker = Tracker(options, {})
    piece, _ = segment(TRUE, tracker)
    result = settle(piece, tracker, options)
    assert (result.poses[:, :4] == 0).all()
    assert (result.poses[1:, 5] != piece.first_poses()[1:, 5]).all()


def test_edges_are_capped_and_balanced() -> None:
    tracker = Tracker(StitchOptions(), {})
    piece, _ = segment(TRUE, tracker)
    edges = edges_of(piece, tracker, StitchOptions())
    assert len(edges) == len(piece.pairs)
    assert all(len(edge.weight) == 250 for edge in edges)
    assert all((edge.weight > 0).all() for edge in edges)
