import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.learn.few_labels.plan import SemiSupervisedPlan


def test_memory_of_the_averages_fits_the_run() -> None:
    assert SemiSupervisedPlan(steps=100).ema_decay() == pytest.approx(0.9)
    assert SemiSupervisedPlan(steps=2**20).ema_decay() == 0.999
    assert SemiSupervisedPlan(steps=5).ema_decay() == 0
    assert SemiSupervisedPlan(ema=0.5).running_momentum() == 0.5
    assert SemiSupervisedPlan(running=0.7).running_momentum() == 0.7


@pytest.mark.parametrize(
    "values",
    [
        {"cutoff": 0.0},
        {"cutoff": 1.1},
        {"steps": 0},
        {"ema": 1.0},
        {"method": "magic"},
        {"seed": -1},
        {"mu": 7},
    ],
)
def test_values_outside_their_range(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        validate(SemiSupervisedPlan, values)
