import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.stitch.options import HomographyOptions, MatchOptions, StitchOptions, UnfoldOptions


def test_defaults_are_valid_and_frozen() -> None:
    options = validate(StitchOptions, StitchOptions())
    assert options == StitchOptions()
    with pytest.raises(AttributeError):
        options.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (UnfoldOptions, {"width": 0}),
        (UnfoldOptions, {"lens": "fish"}),
        (MatchOptions, {"ratio": float("nan")}),
        (MatchOptions, {"offsets": (2, 3)}),
        (UnfoldOptions, {"kannala_brandt": (0.0, float("nan"), 0.0, 0.0)}),
        (HomographyOptions, {"fit_gamma": float("nan")}),
        (HomographyOptions, {"threshold": -1}),
        (HomographyOptions, {"gama": 1}),
    ],
)
def test_wrong_values_are_refused_by_name(cls: type, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        validate(cls, wrong)


def test_groups_are_checked_within_the_whole() -> None:
    """A constructor checks nothing, and the command line makes the groups by theirs."""
    for wrong in (MatchOptions(offsets=(2,)), MatchOptions(ratio=5.0), MatchOptions(ratio=float("nan"))):
        with pytest.raises(ConfigError, match=r"match\.(offsets|ratio)"):
            validate(StitchOptions, StitchOptions(match=wrong))
