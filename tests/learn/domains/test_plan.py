"""The schedule of updates and its impossible settings."""

from dataclasses import replace

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.learn.domains.plan import InvariantPlan, mask_policy


def test_published_defaults_update_seven_times() -> None:
    plan = InvariantPlan(steps=5001, warmup=1000, delta=400, exchange_end=3000)
    policy = mask_policy(plan)
    updates = [t for t in range(4001) if policy.updates_at(t)]
    assert updates == [400, 800, 1200, 1600, 2000, 2400, 2800]
    gathered = [t for t in range(4001) if policy.gathers_at(t)]
    assert gathered[:20] == list(range(381, 401))
    assert len(gathered) == 20 * 7


@pytest.mark.parametrize("steps", [30, 100, 1000, 5001])
def test_a_scaled_schedule_keeps_at_least_five_updates(steps: int) -> None:
    policy = mask_policy(InvariantPlan(steps=steps))
    assert sum(policy.updates_at(t) for t in range(steps - policy.warmup)) >= 5


@pytest.mark.parametrize("steps", [100, 400, 1500, 5001])
def test_a_scaled_schedule_gathers_in_an_eighth_of_the_steps_at_most(steps: int) -> None:
    """Each of them costs about two thirds of a step more; the whole must stay under 15 %."""
    policy = mask_policy(InvariantPlan(steps=steps))
    gathered = sum(policy.gathers_at(t) for t in range(steps - policy.warmup))
    assert 0.005 * steps < gathered <= steps / 8


def test_modes_and_controls() -> None:
    plan = InvariantPlan()
    faithful = mask_policy(plan)
    assert (faithful.first, faithful.drop, faithful.score) == ("weight", "magnitude", "domain")
    extended = mask_policy(replace(plan, mode="extended"))
    assert (extended.first, extended.drop, extended.score) == ("domain-fisher", "domain", "domain")
    released = mask_policy(replace(plan, mode="tmllab"))
    assert (released.score, released.head_learns, released.clears_moments) == ("mixed", False, False)
    rigl = mask_policy(replace(plan, method="rigl", mode="extended"))
    assert (rigl.drop, rigl.score, rigl.grows_largest) == ("magnitude", "task", True)
    assert not mask_policy(replace(plan, method="random")).exchanges
    assert mask_policy(replace(plan, method="magnitude")).first == "weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 0.0}, "above 0 and at most 1"),
        ({"density": 1.2}, "above 0 and at most 1"),
        ({"delta": 20, "accumulation": 20}, "delta from 21 up"),
        ({"delta": 100, "exchange_end": 50}, "exchange_end from 100 up"),
        ({"base": "irm", "batch": 1}, "at least 2 are needed"),
    ],
)
def test_impossible_settings_name_the_allowed_range(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mask_policy(replace(InvariantPlan(), **change))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="base"):
        validate(InvariantPlan, {"base": "magic"})
