from dataclasses import replace

import numpy as np
import torch

from fewer.stitch import stitch
from fewer.stitch.frames.source import open_frames
from fewer.stitch.match.loftr import load_tiny_loftr
from fewer.stitch.match.tiny import TinyMatcher
from fewer.stitch.mosaic.foresight import Foresight
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.mosaic.workers import Workers
from fewer.stitch.options import StitchOptions
from fewer.stitch.panorama import Panorama


def same(one: Panorama, other: Panorama) -> bool:
    return one.report == other.report and all(
        (mine.image == theirs.image).all()
        and (mine.provenance.x == theirs.provenance.x).all()
        and (mine.poses == theirs.poses).all()
        for mine, theirs in zip(one.segments, other.segments, strict=True)
    )


def test_the_map_is_the_same_with_any_number_of_workers(
    small_frames: list, small_options: StitchOptions, small_map: Panorama
) -> None:
    assert same(stitch(small_frames, small_options, workers=1), small_map)


def test_the_map_is_the_same_where_frames_are_lost(small_frames: list, small_options: StitchOptions) -> None:
    noise = np.random.default_rng(0).integers(0, 255, small_frames[0].shape, np.uint8)
    mixed = [*small_frames[:3], noise, *small_frames[3:5], small_frames[9], small_frames[5]]
    assert same(*(stitch(mixed, small_options, workers=count) for count in (1, 4)))


def test_the_pairs_of_every_frame_are_foreseen_and_asked_for(
    small_frames: list, small_options: StitchOptions
) -> None:
    with Workers(2) as workers:
        tracker = Tracker(small_options, {}, workers=workers)
        survey = Survey(open_frames(small_frames[:5]), small_options, workers=workers)
        for record, frame in Foresight(survey, tracker, small_options, {}, workers):
            assert frame is not None
            wanted = [(record.index, record.index - back) for back in (1, 3) if back <= record.index]
            assert set(wanted) <= set(tracker.foreseen)
            tracker.add(frame, survey.views[frame.size].geometry, survey.views[frame.size].shape)
            assert not set(wanted) & set(tracker.foreseen)
        assert tracker.foreseen == {}


def test_a_network_may_look_at_groups_of_frames(small_frames: list, small_options: StitchOptions) -> None:
    options = replace(small_options, match=replace(small_options.match, matchers=("loftr",)))

    def chain(together: int) -> np.ndarray:
        torch.manual_seed(0)
        matcher = TinyMatcher(load_tiny_loftr(), options.match.student_confidence, "loftr", together)
        learned = {"loftr": matcher}
        with Workers(2) as workers:
            tracker = Tracker(options, learned, workers=workers)
            survey = Survey(open_frames(small_frames[:5]), options, learned=learned, workers=workers)
            for _, frame in Foresight(survey, tracker, options, learned, workers):
                assert frame is not None
                tracker.add(frame, survey.views[frame.size].geometry, survey.views[frame.size].shape)
        assert len(tracker.segments) == 1
        return tracker.segments[0].first_poses()

    # five frames in groups of three: the last group is filled up
    assert np.allclose(chain(1), chain(3), atol=1e-3)
