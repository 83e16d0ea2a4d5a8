import pytest

from fewer.core.errors import ConfigError
from fewer.stitch.output.marks import depth_scale, parse_mark, parse_marks
from fewer.stitch.panorama import Panorama


@pytest.mark.parametrize(
    ("text", "wanted"), [("12.3=35", (12.3, 35.0)), ("01:02=30cm", (62.0, 30.0)), (" 0=0.5cm ", (0.0, 0.5))]
)
def test_marks_are_read(text: str, wanted: tuple[float, float]) -> None:
    assert parse_mark(text) == wanted


@pytest.mark.parametrize("text", ["", "12", "a=b", "12=", "=3", "1:2:3=4", "-1=3", "1=3mm", "9" * 400 + "=1"])
def test_other_marks_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--mark"):
        parse_mark(text)


def test_two_marks_make_a_scale_through_both(small_map: Panorama) -> None:
    segment = small_map.segments[0]
    marks = (f"{segment.seconds[0]:.3f}=30", f"{segment.seconds[-1]:.3f}=29")
    scale = depth_scale(marks, segment)
    assert scale is not None
    per_radian = segment.image.shape[1] / 6.283185307179586
    for place, depth in ((0, 30), (-1, 29)):
        row = (segment.poses[place, 5] - segment.top) * per_radian
        assert scale.top_cm + scale.cm_per_row * row == pytest.approx(depth, abs=1e-6)
    assert scale.cm_per_row > 0  # the camera is withdrawn: deeper rows are further down


def test_one_mark_or_marks_elsewhere_give_none(small_map: Panorama) -> None:
    segment = small_map.segments[0]
    assert depth_scale(("0=30",), segment) is None
    assert depth_scale(("100=30", "200=20"), segment) is None


def test_one_mark_alone_is_refused() -> None:
    assert parse_marks(()) == []
    with pytest.raises(ConfigError, match="two different times"):
        parse_marks(("1=30", "1=31"))
