from dataclasses import fields, replace
from typing import get_args

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.learn.distillation.plan import DistillPlan, MethodName, PrivacyPlan, resolve


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_has_every_default(method: str) -> None:
    plan = resolve(DistillPlan(method=method), ("crop",))
    unset = [entry.name for entry in fields(plan) if getattr(plan, entry.name) is None]
    assert set(unset) <= {"seconds", "batched", "privacy"}


def test_what_is_given_stays() -> None:
    plan = resolve(
        DistillPlan(method="dsa", iterations=7, augmentations=(), factor=3, start="real"), ("crop",)
    )
    assert (plan.iterations, plan.augmentations, plan.factor, plan.start) == (7, (), 3, "real")


def test_ncfm_draws_the_published_batch_where_every_class_has_it() -> None:
    ncfm = DistillPlan(method="ncfm")
    found = [resolve(ncfm, (), smallest).real_batch for smallest in (5000, 1024, 700, 30)]
    assert found == [1024, 1024, 700, 256]
    assert resolve(replace(ncfm, real_batch=64), (), 5000).real_batch == 64
    assert resolve(DistillPlan(method="dm"), (), 5000).real_batch == 256


@pytest.mark.parametrize(("count", "steps"), [(1, (1, 1)), (10, (10, 50)), (50, (50, 10)), (5, (5, 100))])
def test_the_steps_of_dc_follow_its_table(count: int, steps: tuple[int, int]) -> None:
    plan = resolve(DistillPlan(method="dc", images_per_class=count), ())
    assert (plan.outer_steps, plan.inner_steps) == steps


def test_privacy_starts_from_noise_without_a_teacher() -> None:
    plan = resolve(DistillPlan(method="dm", privacy=PrivacyPlan(epsilon=3.0)), ())
    assert plan.start == "noise" and not plan.soft_labels


@pytest.mark.parametrize("wrong", [{"images_per_class": 0}, {"method": "magic"}, {"seed": -1}, {"colour": 1}])
def test_wrong_settings_name_their_field(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        validate(DistillPlan, wrong)
