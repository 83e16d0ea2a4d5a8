from dataclasses import replace

import numpy as np
import pytest

from fewer.core.errors import DataError
from fewer.stitch import stitch
from fewer.stitch.homography.project import apply
from fewer.stitch.options import BlendOptions, MatchOptions, StitchOptions, TrackOptions, UnfoldOptions
from fewer.stitch.panorama import Panorama
from fewer.stitch.tube.metrics import pair_truth
from fewer.stitch.tube.render import Tube


def test_all_frames_are_used_and_all_pairs_kept(small_map: Panorama) -> None:
    assert len(small_map.segments) == 1
    assert small_map.segments[0].frames == list(range(10))
    assert all(pair.fit.ok for pair in small_map.segments[0].pairs)
    assert small_map.image is small_map.segments[0].image


def test_homographies_lead_to_the_true_places(small_tube: Tube, small_map: Panorama) -> None:
    segment = small_map.segments[0]
    pair = next(pair for pair in segment.pairs if pair.new - pair.old == 1)
    p, q = pair_truth(small_tube, segment, pair)
    off = apply(pair.fit.homography, p) - q
    off[:, 0] = np.mod(off[:, 0] + 200, 400) - 200
    assert np.median(np.hypot(*off.T)) < 1.0


def test_one_seed_one_map(small_frames: list, small_options: StitchOptions) -> None:
    first, second = (stitch(small_frames[:4], small_options) for _ in range(2))
    assert (first.image == second.image).all()
    assert (first.segments[0].poses == second.segments[0].poses).all()


def test_an_iterator_gives_the_same_map_as_a_list(small_frames: list, small_options: StitchOptions) -> None:
    assert (
        stitch(iter(small_frames[:3]), small_options).image == stitch(small_frames[:3], small_options).image
    ).all()


@pytest.mark.parametrize("mode", ["linear", "log"])
def test_the_published_unwrappings_run_too(
    small_frames: list, small_options: StitchOptions, mode: str
) -> None:
    options = replace(small_options, unfold=UnfoldOptions(unwrap=mode, width=300, strip_width=700))
    panorama = stitch(small_frames[:4], options)
    assert len(panorama.segments[0].frames) >= 3
    assert (panorama.provenance.frame >= 0).mean() > 0.5


def test_the_tiny_loftr_can_map_alone(small_frames: list) -> None:
    options = StitchOptions(
        match=MatchOptions(matchers=("loftr",), offsets=(1,)),
        unfold=UnfoldOptions(width=400, strip_width=480),
        blend=BlendOptions(blend="feather"),
        track=TrackOptions(loops=False),
    )
    panorama = stitch(small_frames[:3], options)
    assert len(panorama.segments[0].frames) == 3
    assert panorama.report["segments"][0]["matches"]["loftr"] > 40


def bad(kind: str) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "none": [],
        "one": [random.integers(0, 255, (100, 100, 3), np.uint8)],
        "black": [np.zeros((100, 100, 3), np.uint8)] * 4,
        "constant": [np.full((100, 100, 3), 130, np.uint8)] * 4,
        "flat wall": [
            np.repeat(random.integers(100, 200, (120, 120, 1), np.uint8), 3, axis=2) for _ in range(4)
        ],
    }[kind]


@pytest.mark.parametrize("kind", ["none", "one", "black", "constant", "flat wall"])
def test_what_cannot_be_mapped_is_refused_with_the_reasons(kind: str, small_options: StitchOptions) -> None:
    with pytest.raises(DataError, match=r"frames|black") as caught:
        stitch(bad(kind), small_options)
    assert caught.value.exit_code == 3


def test_a_size_change_in_the_middle_opens_a_segment(
    small_frames: list, small_options: StitchOptions
) -> None:
    mixed = [*small_frames[:3], *(frame[10:230, 10:230] for frame in small_frames[3:6])]
    panorama = stitch(mixed, small_options)
    assert [segment.frames for segment in panorama.segments] == [[0, 1, 2], [3, 4, 5]]
    assert any("segments" in warning for warning in panorama.report["warnings"])


def test_what_comes_after_something_else_is_joined_to_what_was_before(
    small_frames: list, small_options: StitchOptions
) -> None:
    other = [
        np.ascontiguousarray(frame[:, ::-1]) for frame in small_frames[2:4]
    ]  # a mirrored wall matches none
    options = replace(small_options, track=TrackOptions(lost_after=1))
    panorama = stitch([*small_frames[:2], *other, *small_frames[2:4]], options)
    assert [piece.frames for piece in panorama.segments] == [[0, 1, 4, 5], [2, 3]]


@pytest.mark.parametrize(("matchers", "grey", "pixels"), [(("loftr",), 0.3, 0.1), (("orb",), 1.5, 2.0)])
def test_the_map_made_in_torch_is_that_of_opencv(
    matchers: tuple, grey: float, pixels: float, small_frames: list, small_options: StitchOptions
) -> None:
    """To rounding; a grey level can move ORB's corners, and they the poses, by a little."""
    options = replace(small_options, match=replace(small_options.match, matchers=matchers))
    off = stitch(small_frames[:6], options, workers=2, onboard="off")
    mine = stitch(small_frames[:6], options, workers=2, onboard="cpu")
    assert mine.report["frames_used"] == off.report["frames_used"] == 6
    assert mine.image.shape == off.image.shape
    assert np.abs(mine.image.astype(int) - off.image).mean() < grey
    same = mine.provenance.frame == off.provenance.frame
    assert same.mean() > 0.98
    assert np.abs(mine.provenance.x - off.provenance.x)[same].max() < pixels
    assert [len(each.p) > 0 for each in mine.segments[0].pairs] == [True] * len(off.segments[0].pairs)
    assert list(mine.thumbnails) == list(off.thumbnails)
