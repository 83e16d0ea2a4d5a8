from fewer.learn.data import ImageSplits
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.study import study_indicator
from fewer.learn.distillation.training import Recipe
from tests.learn.distillation.conftest import make_pictures


def test_every_data_set_becomes_one_point() -> None:
    splits = [
        ImageSplits(make_pictures(seed=k), test=make_pictures(count=30, seed=k + 9), name=name)
        for k, name in enumerate(("a", ""))
    ]
    points = study_indicator(
        splits,
        "dm",
        2,
        network=NetworkPlan(width=8, depth=2),
        recipe=Recipe(epochs=15),
        iterations=2,
        draws=2,
    )
    assert [point.name for point in points] == ["a", "set1"]
    assert all(1 / 3 < point.distilled <= 1 and 0 < point.random <= 1 for point in points)
