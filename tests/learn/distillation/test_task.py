import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.plan import resolve
from fewer.learn.distillation.task import Source, Synthetic, Task, denormalise, normalise
from tests.learn.distillation.conftest import make_pictures, tiny_plan

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "channels"), [(60, 1), (123, 3)])
def test_a_source_is_normalised_and_sorted(count: int, channels: int) -> None:
    data = make_pictures(count=count, channels=channels)
    source = Source.of(data, CPU)
    assert source.images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (source.images.std((0, 2, 3)) - 1).abs().max() < 1e-2
    for label in range(3):
        assert len(source.of_class(label)) == source.count(label) == int((data.labels == label).sum())
    back = denormalise(source.images, source.mean, source.deviation) * 255
    torch.testing.assert_close(back, data.select(source.order).as_float() * 255, atol=1e-2, rtol=0)


def test_samples_have_the_class_they_should() -> None:
    source = Source.of(make_pictures(count=12), CPU)
    rows = source.rows(4, torch.Generator().manual_seed(0))
    assert torch.equal(source.labels[rows], torch.arange(3)[:, None].expand(3, 4))
    assert all(len(set(row.tolist())) == 4 for row in rows)  # enough pictures: none twice
    assert source.sample(50, torch.Generator()).shape == (3, 50, 1, 8, 8)  # too few: some twice


def test_one_class_and_an_empty_class_are_refused() -> None:
    data = make_pictures()
    with pytest.raises(DataError, match="1 class"):
        Source.of(LabelledImages(data.images, data.labels * 0, data.class_names), CPU)
    with pytest.raises(DataError, match="class-1"):
        Source.of(data.select(torch.nonzero(data.labels != 1).flatten()), CPU)


def test_randomness_is_a_function_of_seed_and_step() -> None:
    task = Task.of(make_pictures(), resolve(tiny_plan(), ()), CPU)
    again = Task.of(make_pictures(), resolve(tiny_plan(), ()), CPU)
    a, b, other = task.fresh_network(3), again.fresh_network(3), task.fresh_network(4)
    assert torch.equal(a["head.weight"], b["head.weight"])
    assert not torch.equal(a["head.weight"], other["head.weight"])


@pytest.mark.parametrize("factor", [1, 2])
def test_a_synthetic_set_keeps_its_classes_in_order(factor: int) -> None:
    images = torch.arange(3.0).repeat_interleave(2)[:, None, None, None].expand(6, 1, 8, 8).clone()
    synthetic = Synthetic(images, 3, factor)
    by_class = synthetic.by_class()
    assert by_class.shape == (3, 2 * factor**2, 1, 8, 8)
    assert all(bool((by_class[k] == k).all()) for k in range(3))
    assert torch.equal(synthetic.labels(), torch.arange(3).repeat_interleave(2 * factor**2))
    assert synthetic.targets().ndim == 1


def test_normalise_by_hand() -> None:
    image = torch.full((1, 2, 1, 1), 0.75)
    found = normalise(image, torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 1.0]))


def test_under_privacy_the_normalisation_does_not_look_at_the_data() -> None:
    from fewer.learn.distillation.plan import PrivacyPlan

    plan = resolve(tiny_plan(privacy=PrivacyPlan(noise_multiplier=1.0)), ())
    assert Task.of(make_pictures(), plan, CPU).source.mean.tolist() == [0.5]
