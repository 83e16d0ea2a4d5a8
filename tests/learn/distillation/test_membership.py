import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.data import LabelledImages
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.membership import (
    attack,
    membership_by_distance,
    membership_by_loss,
    membership_by_shadows,
    shadow_ratios,
)
from tests.learn.distillation.conftest import make_pictures, tiny_plan
from tests.learn.distillation.test_audit import short


def test_an_attack_that_knows_nothing_is_at_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    found = attack(torch.randn(400, generator=generator), torch.randn(300, generator=generator))
    assert found.low < 0.5 < found.high and found.high - found.low < 0.15
    assert found.true_positives_at_1_percent < 0.05
    sure = attack(torch.ones(50), torch.zeros(50))
    assert (sure.auc, sure.true_positives_at_1_percent) == (1.0, 1.0)


def test_distance_finds_copies() -> None:
    members, others = torch.rand(30, 1, 6, 6), torch.rand(40, 1, 6, 6)
    assert membership_by_distance(members, members, others).auc == 1.0


def test_loss_finds_pictures_that_were_learnt_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(255, (80, 8, 8, 1), generator=generator).to(torch.uint8)
    data = LabelledImages(noise, torch.arange(80) % 2, ("a", "b"))  # nothing to generalise
    members, others = data.select(torch.arange(40)), data.select(torch.arange(40, 80))
    made = short(distill(members, plan=tiny_plan("random", images_per_class=20)), epochs=150)
    assert membership_by_loss(made, members, others, networks=1).auc > 0.85


def test_shadow_ratios_point_to_the_sets_that_had_the_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(8, 200, generator=generator) < 0.5
    confidence = torch.randn(8, 200, generator=generator) + 3.0 * inside
    ratios = shadow_ratios(confidence, inside)
    assert ratios[inside].mean() > 0 > ratios[~inside].mean()
    assert attack(ratios[inside], ratios[~inside]).auc > 0.9


def test_shadows_distil_halves_and_need_enough_of_them() -> None:
    sizes = []

    def distil(half: LabelledImages, number: int) -> DistilledSet:
        sizes.append(len(half))
        return short(distill(half, plan=tiny_plan("random"), seed=number))

    found = membership_by_shadows(make_pictures(count=60), distil, splits=4, networks=1)
    assert sizes == [30] * 4 and found.members == found.others == 120
    with pytest.raises(ConfigError, match="at least 4"):
        membership_by_shadows(make_pictures(), distil, splits=2)
