"""One small world for all tests of the room: a planted rule, and models trained on it for seconds."""

import pytest

from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.planted import planted_lag
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.fitting import FitSettings, fit
from fewer.recommend.methods import Sizes
from fewer.recommend.recommender import Recommender
from fewer.recommend.training.loop import TrainingPlan


@pytest.fixture(scope="session")
def planted() -> Interactions:
    return planted_lag(1, items=20, users=80, length=9, seed=3)


@pytest.fixture(scope="session")
def split(planted: Interactions) -> Split:
    return leave_last_out(planted)


@pytest.fixture(scope="session")
def trained(planted: Interactions) -> Recommender:
    sizes = Sizes(
        length=7, dim=16, layers=1, candidates=(2,), hidden_channel=16, hidden_sequence=8, dropout=0.0
    )
    plan = TrainingPlan(epochs=12, batch_size=64, learning_rate=1e-2)
    return fit(planted, FitSettings(sizes=sizes, training=plan, device="cpu"))
