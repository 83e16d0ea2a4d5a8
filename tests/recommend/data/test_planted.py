import pytest

from fewer.recommend.data.planted import planted_lag


@pytest.mark.parametrize("lag", [1, 3])
def test_most_items_follow_from_the_item_lag_steps_back(lag: int) -> None:
    made = planted_lag(lag, items=50, users=40, length=20, seed=1)
    table = made.items.reshape(40, 20)
    follows = {}
    for row in table:
        for step in range(lag, 20):
            follows.setdefault(int(row[step - lag]), []).append(int(row[step]))
    agreeing = sum(max(map(after.count, set(after))) for after in follows.values())
    assert 0.85 < agreeing / sum(map(len, follows.values())) <= 1
    assert (made.items == planted_lag(lag, items=50, users=40, length=20, seed=1).items).all()
    assert (made.items != planted_lag(lag, items=50, users=40, length=20, seed=2).items).any()
