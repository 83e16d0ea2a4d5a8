from pathlib import Path

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.generate.training.command_large import TrainLargeRequest


@pytest.mark.parametrize("wrong", [{"part": "half"}, {"rank": 0}, {"minutes": -1}, {"scenes": 2}])
def test_bad_options_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        validate(TrainLargeRequest, {"output": tmp_path, **wrong})
