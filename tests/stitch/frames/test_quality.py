from pathlib import Path

import cv2
import numpy as np
import pytest

from fewer.stitch.frames.quality import FrameJudge, Quality, highlight_mask, measure
from fewer.stitch.options import SelectOptions
from fewer.stitch.tube.render import Tube

TILES = sorted(Path("data/endoscopy/tiles").glob("*.jpg"))


def verdicts(tube: Tube, indices: range) -> dict[int, str]:
    judge = FrameJudge(SelectOptions())
    out = {}
    for index in indices:
        picture = tube.frame(index)
        shining = highlight_mask(picture)
        out[index] = judge.verdict(measure(picture, picture.max(axis=2) > 8, shining), picture)
    return out


def test_every_blurred_frame_is_rejected_and_no_other() -> None:
    tube = Tube("C", seed=2, frames=24, size=240)
    for index, reason in verdicts(tube, range(4, 24)).items():
        assert reason == ("blurred" if tube.is_blurred(index) else "")


def test_bubbles_are_rejected() -> None:
    tube = Tube("E", seed=2, frames=20, size=160)
    found = verdicts(tube, range(4, 16))
    assert all((found[index] == "bubbles") == tube.is_burst(index) for index in found)


@pytest.mark.parametrize(
    ("value", "reason"), [(0, "blank"), (128, "blank"), (250, "blank")], ids=["black", "constant", "white"]
)
def test_frames_without_content_are_blank(value: int, reason: str) -> None:
    picture = np.full((123, 77, 3), value, np.uint8)
    usable = np.ones((123, 77), bool)
    quality = measure(picture, usable, np.zeros((123, 77), bool))
    assert FrameJudge(SelectOptions()).verdict(quality, picture) == reason


def test_a_repeated_frame_is_a_duplicate(small_frames: list[np.ndarray]) -> None:
    judge = FrameJudge(SelectOptions())
    picture = small_frames[0]
    quality = measure(picture, picture.max(axis=2) > 8, highlight_mask(picture))
    assert judge.verdict(quality, picture) == ""
    assert judge.verdict(quality, picture) == "duplicate"


def test_a_slow_camera_is_not_taken_for_a_still_one() -> None:
    judge = FrameJudge(SelectOptions())
    quality = Quality(0.01, 100.0, 30.0, 0.0)
    ramp = np.tile(np.linspace(40, 200, 128, dtype=np.float32), (128, 1))
    # a fifth of a grey level a frame: each is like the one before, but the tenth is not like the first
    frames = [np.repeat((ramp + 0.2 * step)[..., None], 3, axis=2).astype(np.uint8) for step in range(30)]
    verdicts = [judge.verdict(quality, frame) for frame in frames]
    assert 3 < verdicts.count("") < 20
    assert "" in verdicts[15:]


def test_highlights_and_the_green_box_are_masked() -> None:
    picture = np.full((480, 480, 3), (90, 100, 160), np.uint8)
    cv2.circle(picture, (100, 100), 6, (255, 255, 255), -1)
    picture[300:340, 300:380] = (40, 200, 60)
    mask = highlight_mask(picture)
    assert mask[100, 100]
    assert mask[104 + 5, 100]  # dilated
    assert mask[320, 340]
    assert not mask[200, 200]
    assert mask.mean() < 0.05


@pytest.mark.parametrize("path", TILES, ids=lambda path: path.stem)
def test_real_tiles_are_measured(path: Path) -> None:
    picture = cv2.imread(str(path))
    shining = highlight_mask(picture)
    quality = measure(picture, picture.max(axis=2) > 20, shining)
    assert 0 <= quality.highlight < 0.9
    assert np.isfinite([quality.sharpness, quality.mean, quality.spread]).all()
