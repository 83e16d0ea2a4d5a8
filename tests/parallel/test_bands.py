import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewer.core.errors import ConfigError
from fewer.parallel.bands import cut, cut_ragged


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4))
def test_bands_cover_everything_and_differ_by_one_unit_at_most(units: int, parts: int, unit: int) -> None:
    if units < parts:
        with pytest.raises(ConfigError, match="cannot be cut"):
            cut(units * unit, parts, unit)
        return
    bands = cut(units * unit, parts, unit)
    assert sum(bands.lengths) == bands.length == units * unit
    assert max(bands.lengths) - min(bands.lengths) <= unit
    assert list(bands.lengths) == sorted(bands.lengths, reverse=True)
    assert [bands.start(rank) for rank in range(parts)] == [
        sum(bands.lengths[:rank]) for rank in range(parts)
    ]
    assert bands.scaled(2).length == 2 * bands.length


def test_what_cannot_be_cut_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="units of 4; the nearest size is 12"):
        cut(13, 2, 4)
    with pytest.raises(ConfigError, match="at most 3 devices or at least 16 rows"):
        cut(7, 8, least=2)


def test_only_the_last_of_ragged_bands_ends_within_a_unit() -> None:
    assert cut_ragged(13, 3, 4).lengths == (8, 4, 1)
    assert cut_ragged(13, 1, 4).lengths == (13,)
    assert cut_ragged(16, 2, 4).lengths == (8, 8)
    assert cut_ragged(13, 3, 4).halved(2).lengths == (2, 1, 1)
