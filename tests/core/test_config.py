from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field

from fewer.core.config import read_toml, validate
from fewer.core.errors import ConfigError, FileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    __pydantic_config__ = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, le=100)] = 20
    sampler: Literal["euler", "dpm"] = "dpm"


def test_good_values_come_back_and_defaults_fill_in() -> None:
    assert validate(Order, {"steps": 3}) == Order(steps=3)
    assert validate(Order, Order(steps=4)) == Order(steps=4)


def test_what_two_values_say_against_each_other_comes_as_it_was_put() -> None:
    @dataclass(frozen=True)
    class Span:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ConfigError("low is above high; swap them")

    with pytest.raises(ConfigError) as caught:
        validate(Span, {"low": 2, "high": 1})
    assert str(caught.value) == "low is above high; swap them"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"steps": 0}, "steps was 0"),
        ({"steps": 10**400}, "steps was"),
        ({"steps": float("nan")}, "steps was nan"),
        ({"sampler": "magic"}, "'euler' or 'dpm'"),
        ({"stepz": 3}, "stepz is not a known setting"),
        ("text", "the request"),
    ],
)
def test_bad_values_are_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Order, value)
    assert said in str(caught.value)


def test_an_instance_that_its_constructor_let_pass_is_checked() -> None:
    with pytest.raises(ConfigError, match="steps was 1000"):
        validate(Order, Order(steps=1000))


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("steps = 5\n")
    assert read_toml(path) == {"steps": 5}
    path.write_text("steps = = 5")
    with pytest.raises(FileError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(FileError, match="not there") as caught:
        read_toml(tmp_path / "none.toml")
    assert caught.value.exit_code == 4
