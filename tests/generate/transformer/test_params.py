"""Shapes of the published models, and contradictions that are refused."""

import pytest

from fewer.core.errors import ConfigError
from fewer.generate.transformer import PUBLISHED, SanaParams, published


def test_widths_and_resolutions():
    assert {params.width for params in PUBLISHED.values()} == {1152, 2240}
    for name, params in PUBLISHED.items():
        assert params.check() is params
        assert params.sample_size == int(name.rpartition("-")[2]) // 32
        assert (params.interpolation_scale is not None) == (params.sample_size > 32)


def test_unknown_names_and_contradictions_are_refused():
    with pytest.raises(ConfigError, match=r"sana-0\.6b-512"):
        published("sana-9b")
    with pytest.raises(ConfigError, match="divisible by 4"):
        SanaParams(heads=1, head_dim=6, interpolation_scale=1.0).check()
    with pytest.raises(ConfigError, match="patch_size 3"):
        SanaParams(patch_size=3).check()
