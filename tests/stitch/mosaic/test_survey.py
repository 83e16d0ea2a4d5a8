import numpy as np
import pytest

from fewer.core.errors import DataError
from fewer.stitch.frames.source import open_frames
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.options import SelectOptions, StitchOptions


def with_select(options: StitchOptions, **values: object) -> StitchOptions:
    from dataclasses import replace

    return replace(options, select=SelectOptions(**values))


def test_frames_come_in_order_with_their_view(small_frames: list, small_options: StitchOptions) -> None:
    survey = Survey(open_frames(small_frames), small_options)
    found = list(survey)
    assert [record.index for record, _ in found] == list(range(10))
    assert all(frame is not None and frame.view is not None for _, frame in found)
    view = survey.views[240, 240]
    assert np.hypot(view.field.centre[0] - 119.5, view.field.centre[1] - 119.5) < 1
    assert abs(view.field.radius - 116) < 1.5


def test_two_runs_give_the_same_points(small_frames: list, small_options: StitchOptions) -> None:
    runs = [list(Survey(open_frames(small_frames[:3]), small_options)) for _ in range(2)]
    for (_, one), (_, two) in zip(*runs, strict=True):
        assert (one.view.features["sift"].xy == two.view.features["sift"].xy).all()


def test_stride_trim_and_limit(small_frames: list, small_options: StitchOptions) -> None:
    source = open_frames(small_frames, rate=10.0)
    stride = Survey(source, with_select(small_options, stride=3))
    assert [frame.index for frame in stride.picked()] == [0, 3, 6, 9]
    trimmed = Survey(source, with_select(small_options, trim_seconds=0.45))
    assert [frame.index for frame in trimmed.picked()] == [5, 6, 7, 8, 9]
    few = Survey(source, with_select(small_options, max_frames=2))
    assert [frame.index for frame in few.picked()] == [0, 1]


def test_another_size_gets_its_own_view(small_frames: list, small_options: StitchOptions) -> None:
    mixed = [*small_frames[:2], *(frame[20:220, 20:220] for frame in small_frames[2:4])]
    survey = Survey(open_frames(mixed), small_options)
    assert len(list(survey)) == 4
    assert set(survey.views) == {(240, 240), (200, 200)}


def test_a_mask_of_another_size_is_refused(
    tmp_path, small_frames: list, small_options: StitchOptions
) -> None:
    import cv2

    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), np.full((50, 60), 255, np.uint8))
    with pytest.raises(DataError, match="60 x 50"):
        list(Survey(open_frames(small_frames), with_select(small_options, mask=path)))


def test_a_wall_without_lumen_is_rejected_frame_by_frame(small_options: StitchOptions) -> None:
    random = np.random.default_rng(0)
    flat = [np.repeat(random.integers(110, 190, (200, 200, 1), np.uint8), 3, axis=2) for _ in range(3)]
    reasons = [record.reason for record, frame in Survey(open_frames(flat), small_options) if frame is None]
    assert reasons == ["no lumen"] * 3


def test_a_video_that_begins_black_shows_its_field_later(
    small_frames: list, small_options: StitchOptions
) -> None:
    black = np.zeros_like(small_frames[0])
    survey = Survey(open_frames([black] * 320 + small_frames[:3]), small_options)
    found = list(survey)
    assert [record.reason for record, _ in found[:320]] == ["blank"] * 320
    assert all(frame is not None for _, frame in found[320:])
