import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.data import ImageSplits, LabelledImages
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.training import Recipe
from fewer.learn.distillation.variation import mix, study_variation
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def test_small_variation_shares_classes_and_great_does_not() -> None:
    a, b = make_pictures(count=30), make_pictures(count=18, size=16, channels=3, seed=1)
    small, great = mix([a, b], "small", ["a", "b"]), mix([a, b], "great", ["a", "b"])
    assert small.classes == 3 and great.classes == 6 and len(small) == len(great) == 48
    assert small.images.shape == (48, 8, 8, 3)
    assert great.class_names[0] == "a/class-0" and great.class_names[5] == "b/class-2"
    assert torch.equal(great.labels[30:], b.labels + 3)


def test_unlike_classes_one_set_and_equal_names_are_refused() -> None:
    a = make_pictures()
    other = LabelledImages(a.images, a.labels, ("x", "y", "z"))
    for sets, kind, names, words in (
        ([a, other], "small", ["a", "b"], "classes differ"),
        ([a], "great", ["a"], "at least 2"),
        ([a, a], "great", ["a", "a"], "same name"),
    ):
        with pytest.raises(DataError, match=words):
            mix(sets, kind, names)


@pytest.mark.parametrize("kind", ["small", "great"])
def test_both_ways_have_the_same_number_of_pictures(kind: str) -> None:
    splits = [
        ImageSplits(make_pictures(seed=k), test=make_pictures(count=30, seed=k + 9), name=f"s{k}")
        for k in (0, 1)
    ]
    made = []

    def distil(train: LabelledImages, images_per_class: int):
        made.append(distill(train, images_per_class, plan=tiny_plan("random")))
        return made[-1]

    found = study_variation(splits, kind, distil, 2, recipe=Recipe(epochs=10), seeds=(0,))
    assert len(made[0]) == len(made[1]) + len(made[2])
    assert set(found.single) == {"s0", "s1"}
    assert 0 <= found.of_union.balanced_accuracy <= 1 and found.union_of.runs == 1
