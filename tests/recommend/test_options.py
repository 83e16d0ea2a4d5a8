from pathlib import Path

import pytest

from fewer.core.errors import ConfigError
from fewer.recommend.command import SearchRequest, TrainRequest
from fewer.recommend.command_serving import EvaluateRequest, SuggestRequest
from fewer.recommend.options import LearningOptions, LogOptions, RunOptions

LOG = "user,item\n" + "".join(f"u{u},{item}\n" for u in range(4) for item in ("a", "b", "rare" + str(u)))


def test_one_option_is_written_once() -> None:
    inherited = {TrainRequest: LearningOptions, SearchRequest: LearningOptions, EvaluateRequest: LogOptions}
    for request, options in {**inherited, SuggestRequest: RunOptions}.items():
        assert issubclass(request, options)
        assert not set(vars(request)["__annotations__"]) & set(options.__dataclass_fields__)


def test_a_log_is_read_with_its_cleaning(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    assert LogOptions(data=path).read().item_count == 6
    cleaned = LearningOptions(data=path, user_minimum=2, item_minimum=2)
    assert cleaned.read().item_count == 2 and cleaned.item_features(cleaned.read()) is None
    assert LogOptions(log=path).read().item_count == 6
    for both in (LogOptions(), LogOptions(log=path, data=path)):
        with pytest.raises(ConfigError, match="name one file"):
            both.read()
    with pytest.raises(ConfigError, match="its own"):
        LogOptions(data=path, user_column="item", item_column="item").read()


def test_plans_carry_what_was_asked() -> None:
    asked = LearningOptions(data=Path("x"), penalty=0.5, relaxation="mixture", seed=7, dim=8, candidates=(4,))
    plan = asked.search_plan(9)
    assert (plan.epochs, plan.penalty, plan.relaxation, plan.seed) == (9, 0.5, "mixture", 7)
    assert (asked.sizes().dim, asked.sizes().candidates) == (8, (4,))
