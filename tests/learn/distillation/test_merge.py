from dataclasses import replace

import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.merge import merge
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def site(seed: int, names: tuple[str, ...], method: str = "random", **changes: object):
    data = make_pictures(count=30 * (seed + 1), seed=seed)
    return distill(LabelledImages(data.images, data.labels, names), plan=tiny_plan(method, **changes))


def test_classes_are_aligned_by_name_and_provenance_is_kept() -> None:
    a, b = site(0, ("cat", "dog", "owl")), site(1, ("owl", "cat", "fox"))
    joined = merge([a, b])
    assert joined.datasheet.class_names == ("cat", "dog", "owl", "fox")
    assert joined.labels.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 0, 0, 3, 3]
    assert torch.equal(joined.images, torch.cat([a.images, b.images]))
    assert joined.datasheet.sources == a.datasheet.sources + b.datasheet.sources
    assert len(joined.datasheet.privacy["parts"]) == 2


def test_statistics_are_those_of_all_pictures_together() -> None:
    names = ("a", "b", "c")
    joined = merge([site(0, names), site(1, names)])
    pixels = torch.cat(
        [make_pictures(count=30, seed=0).as_float(), make_pictures(count=60, seed=1).as_float()]
    )
    assert float(joined.mean) == pytest.approx(float(pixels.mean()), abs=1e-5)
    assert float(joined.deviation) == pytest.approx(float(pixels.std(correction=0)), abs=1e-5)


def test_soft_and_hard_labels_meet() -> None:
    a, b = site(0, ("a", "b", "c")), site(1, ("c", "d", "e"), soft_labels=True)
    soft = merge([a, b]).soft_labels
    assert soft.shape == (12, 5)
    torch.testing.assert_close(soft.float().sum(1), torch.ones(12), atol=2e-3, rtol=0)
    assert torch.equal(soft[0], torch.tensor([1, 0, 0, 0, 0]).half())
    assert soft[6:, :2].abs().sum() == 0


def test_beside_a_coloured_set_a_grey_one_is_coloured() -> None:
    grey, pictures = site(0, ("a", "b", "c")), make_pictures(count=30, channels=3)
    coloured = distill(LabelledImages(pictures.images, pictures.labels, ("a", "b", "c")), plan=tiny_plan())
    joined = merge([grey, coloured])
    assert joined.datasheet.channels == 3 and joined.images.shape[1:] == (3, 8, 8)
    assert torch.equal(joined.images[: len(grey)], grey.images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(joined.mean, (grey.mean + coloured.mean) / 2)


def test_what_cannot_be_joined_is_named() -> None:
    a = site(0, ("a", "b", "c"))
    with pytest.raises(DataError, match="at least 2"):
        merge([a])
    other = replace(a, datasheet=replace(a.datasheet, image_size=(9, 9)))
    with pytest.raises(DataError, match=r"set 2 has image_size \(9, 9\)"):
        merge([a, other])
