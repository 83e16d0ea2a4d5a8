from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewer.core.errors import DataError
from fewer.recommend.data.interactions import Interactions


def test_rows_are_sorted_by_user_and_time_and_the_sort_is_stable() -> None:
    made = Interactions.build(["a", "b", "a", "a"], [10, 11, 12, 13], [5.0, 1.0, 3.0, 5.0])
    assert [made.item_ids[i - 1] for i in made.history(0)] == ["12", "10", "13"]
    assert any("sorted by user and time" in note for note in made.notes)
    assert any("1 interactions share a timestamp" in note for note in made.notes)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_and_every_history_is_in_time_order(rows: list[tuple[int, int, int]]) -> None:
    users, items, times = zip(*rows, strict=True)
    made = Interactions.build(users, items, times)
    back = sorted(
        (made.user_ids[u], made.item_ids[i - 1], t)
        for u, i, t in zip(made.user_codes, made.items, made.times, strict=True)
    )
    assert back == sorted((str(u), str(i), float(t)) for u, i, t in rows)
    for user in range(made.user_count):
        own = made.times[made.offsets[user] : made.offsets[user + 1]]
        assert (np.diff(own) >= 0).all()


def test_duplicates_are_kept_unless_asked_otherwise() -> None:
    columns = (["a", "a", "a"], ["x", "x", "x"], [1, 1, 2])
    kept, dropped = Interactions.build(*columns), Interactions.build(*columns, deduplicate=True)
    assert (len(kept), len(dropped)) == (3, 2)
    assert any("1 duplicate rows kept" in note for note in kept.notes)


def test_repeats_are_noticed_and_decide_about_seen_items() -> None:
    faithful = Interactions.build([1] * 4, ["x", "y", "x", "x"])
    curious = Interactions.build([1] * 4, ["x", "y", "z", "w"])
    assert (faithful.repeat_share, curious.repeat_share) == (0.5, 0.0)
    assert faithful.repeats and not curious.repeats
    assert "seen items stay" in faithful.notes[-1] and "left out" in curious.notes[-1]


def test_core_keeps_only_what_is_frequent_and_renumbers() -> None:
    users = [1, 1, 1, 2, 2, 2, 3]
    items = ["a", "b", "rare", "a", "b", "a", "a"]
    made = Interactions.build(users, items).core(2, 2)
    assert made.user_ids == ("1", "2") and set(made.item_ids) == {"a", "b"}
    assert made.lengths.tolist() == [2, 3] and made.items.max() == made.item_count == 2
    with pytest.raises(DataError, match="no user has 9"):
        made.core(9, 1)


def test_what_was_noticed_on_reading_outlives_the_core() -> None:
    made = Interactions.build(["a"] * 3, ["x", "y", "x"], [3, 2, 1]).core(1, 2)
    assert made.notes[0].startswith("rows were not in time order") and made.notes[-1].startswith("50.0%")


DAYS = [datetime(2024, 1, 2), datetime(2024, 1, 1)]


@pytest.mark.parametrize(
    "times", [DAYS, np.array(DAYS, "datetime64[ns]"), [d.replace(tzinfo=UTC) for d in DAYS]]
)
def test_dates_are_times(times: list | np.ndarray) -> None:
    made = Interactions.build(["u", "u"], ["late", "early"], times)
    assert made.times is not None and made.times.tolist() == [1704067200.0, 1704153600.0]
    assert made.items.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("users", "times", "said"),
    [
        (["u", None], [1, 2], "user of row 2 is None"),
        ([float("nan"), 1.0], [1, 2], "user of row 1 is nan"),
        (["u", "u"], np.array(["1", "2"]), "numbers or dates"),
        (["u", "u"], np.array([1, None]), "2 is nan"),
        (["u", "u"], np.array([1, object()]), "numbers or dates"),
        (["u", "u"], np.array(["2024-01-01", "NaT"], "datetime64[s]"), "2 is nan"),
    ],
)
def test_missing_ids_and_odd_times_are_named(users: list, times: list | np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Interactions.build(users, ["x", "y"], times)


def test_unknown_items_of_a_history_are_counted() -> None:
    made = Interactions.build([1, 1], ["x", "y"])
    assert made.numbers(["y", "nobody", "x", 7]) == ([2, 1], 2)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (([], []), "no interactions"),
        (([1], [1, 2]), "differ in length"),
        (([1, 1], [1, 2], [0.0, float("nan")]), "row 2 is nan"),
        (([1, 1], [1, 2], [0.0, float("inf")]), "row 2 is inf"),
    ],
)
def test_columns_that_cannot_be_used_are_named(columns: tuple, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Interactions.build(*columns)
