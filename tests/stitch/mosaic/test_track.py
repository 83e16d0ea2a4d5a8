import numpy as np

from fewer.stitch.match.features import Features, StripView
from fewer.stitch.mosaic.exposure import SAMPLES
from fewer.stitch.mosaic.segment import TrackedFrame
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.options import StitchOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens
from fewer.stitch.unfold.strip import StripShape, strip_shape

FORM = Geometry("cylinder", Lens("equidistant", 190.0), (239.5, 239.5), 232.0, 2.2)
SHAPE: StripShape = strip_shape(FORM, 400)
WALL = np.random.default_rng(0).uniform([0, -3], [2 * np.pi, 6], (3000, 2))
NAMES = np.random.default_rng(1).normal(size=(3000, 128)).astype(np.float32)
NAMES /= np.linalg.norm(NAMES, axis=1, keepdims=True)


def frame(index: int, axial: float, roll: float = 0.0, seconds: float | None = None) -> TrackedFrame:
    """A frame whose points are those of a known wall, seen from `axial`."""
    xy = SHAPE.to_pixels(WALL - np.array([roll, axial]))
    seen = (xy[:, 1] > 5) & (xy[:, 1] < SHAPE.height - 5)
    view = StripView(
        np.zeros((SHAPE.height, 400), np.uint8),
        np.ones((SHAPE.height, 400), bool),
        {"sift": Features(xy[seen], NAMES[seen])},
    )
    time = index / 10 if seconds is None else seconds
    return TrackedFrame(index, time, (480, 480), np.zeros(4), np.zeros((SAMPLES, 3)), view)


def test_the_chain_adds_up_steps_and_rolls() -> None:
    tracker = Tracker(StitchOptions(), {})
    for index in range(8):
        assert tracker.add(frame(index, -0.1 * index, 0.05 * index), FORM, SHAPE)
    assert len(tracker.segments) == 1
    poses = tracker.segments[0].first_poses()
    assert np.allclose(poses[:, 5], -0.1 * np.arange(8), atol=0.01)
    assert np.allclose(poses[:, 4], 0.05 * np.arange(8), atol=0.01)


def test_a_jump_opens_a_new_segment_and_single_misses_do_not() -> None:
    tracker = Tracker(StitchOptions(), {})
    places = [0, -0.1, -0.2, 40.0, -0.3, -0.4]  # one frame of something else in between
    used = [tracker.add(frame(i, z), FORM, SHAPE) for i, z in enumerate(places)]
    assert used == [True, True, True, False, True, True]
    assert len(tracker.segments) == 1
    for index in range(6, 10):
        tracker.add(frame(index, -2.9 - 0.05 * index), FORM, SHAPE)
    assert len(tracker.segments) == 2


def test_a_failed_pair_after_a_long_gap_breaks_at_once() -> None:
    tracker = Tracker(StitchOptions(), {})
    tracker.add(frame(0, 0.0), FORM, SHAPE)
    tracker.add(frame(1, -0.1), FORM, SHAPE)
    assert tracker.add(frame(9, 3.5, seconds=0.9), FORM, SHAPE)
    assert len(tracker.segments) == 2


def test_another_frame_size_opens_a_new_segment() -> None:
    tracker = Tracker(StitchOptions(), {})
    tracker.add(frame(0, 0.0), FORM, SHAPE)
    other = Geometry("cylinder", Lens("equidistant", 95.0), (119.5, 119.5), 116.0, 2.2)
    assert tracker.add(frame(1, 0.0), other, SHAPE)
    assert len(tracker.segments) == 2


def test_a_return_closes_a_loop_and_a_later_segment_is_attached() -> None:
    tracker = Tracker(StitchOptions(), {})
    out = [-0.12 * i for i in range(14)]
    for index, z in enumerate(out + out[::-1]):
        tracker.add(frame(index, z), FORM, SHAPE)
    segment = tracker.segments[0]
    loops = tracker.close_loops(segment, segment.first_poses())
    assert len(loops) >= 3
    assert all(pair.loop and pair.first - pair.second >= 10 for pair in loops)
    late = Tracker(StitchOptions(), {}, tracker.store)
    for index in range(3):
        late.add(frame(100 + index, -0.5 - 0.1 * index, 0.4), FORM, SHAPE)
    whole = tracker.attach(segment, late.segments[0])
    assert whole is not None
    assert len(whole.frames) == 31
    assert np.allclose(whole.first_poses()[-3:, 5], [-0.5, -0.6, -0.7], atol=0.05)
    assert np.allclose(whole.first_poses()[-3:, 4], 0.4, atol=0.05)
    far = Tracker(StitchOptions(), {}, tracker.store)
    far.add(frame(200, 3.9), FORM, SHAPE)
    assert tracker.attach(segment, far.segments[0]) is None


def test_memory_of_old_views_is_given_back_and_keyframes_are_kept_on_disk() -> None:
    tracker = Tracker(StitchOptions(), {})
    for index in range(14):
        tracker.add(frame(index, -0.05 * index), FORM, SHAPE)
    frames = tracker.segments[0].frames
    assert all(tracked.view is None for tracked in frames[:7])
    assert all(tracked.view is not None for tracked in frames[8:])
    assert all((tracked.kept_view is not None) == tracked.keyframe for tracked in frames)
    assert 1 < sum(tracked.keyframe for tracked in frames) < 14


def test_a_replayed_tracker_is_the_one_that_matched() -> None:
    first = Tracker(StitchOptions(), {})
    places = [0, -0.1, -0.2, 40.0, -0.3, -0.4]
    used = [first.add(frame(index, z), FORM, SHAPE) for index, z in enumerate(places)]
    again = Tracker(StitchOptions(), {}, first.store)
    segment = first.segments[0]
    for index, z in enumerate(places):
        if not used[index]:
            again.replay_failure()
            continue
        place = [tracked.index for tracked in segment.frames].index(index)
        mine = [pair for pair in segment.pairs if pair.first == place]
        again.replay(frame(index, z), FORM, SHAPE, place == 0, mine)
    assert (again.segments[0].first_poses() == segment.first_poses()).all()
    for tracker in (first, again):
        assert tracker.add(frame(6, -0.5), FORM, SHAPE)
    assert (again.segments[0].first_poses() == segment.first_poses()).all()
    assert [p.count for p in again.segments[0].pairs] == [p.count for p in segment.pairs]
