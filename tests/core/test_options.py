"""Words and TOML to a request, and what is said when they make none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError, FileError
from fewer.core.options import one_line, parse_request, take_common


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Draws."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output: Path
    """Where to."""
    steps: Annotated[int, Field(ge=1)] = 20
    sampler: Literal["euler", "dpm"] = "dpm"
    batch_size: int = 1


def test_common_options_stand_anywhere_but_behind_two_dashes() -> None:
    common = take_common(["a", "--json", "b", "--config", "x.toml", "--", "--json"])
    assert common.rest == ["a", "b", "--", "--json"] and common.as_json and common.config == Path("x.toml")
    assert take_common(["--config=y.toml"]).config == Path("y.toml")
    assert take_common([]).config is None and not take_common([]).as_json
    for words in (["--config"], ["--config="]):
        with pytest.raises(ConfigError, match="path of a TOML"):
            take_common(words)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('output = "here"\nsteps = 7\n')
    assert parse_request("draw", Request, [], config)[0] == Request(output=Path("here"), steps=7)
    assert parse_request("draw", Request, ["--steps", "8"], config)[0] == Request(
        output=Path("here"), steps=8
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """Takes several words, and one option that is called otherwise than its field."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    how: Request = Request(output=Path("out"))
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None


@pytest.mark.parametrize("name", ["from", "source"])
def test_a_file_knows_the_names_of_flags_and_one_word_is_enough_where_several_may_stand(
    tmp_path: Path, name: str
) -> None:
    config = tmp_path / "a.toml"
    config.write_text(f'prompt = "red"\n{name} = "x.png"\n')
    expected = Several(prompt=("red",), source=Path("x.png"))
    assert parse_request("draw", Several, [], config)[0] == expected
    assert parse_request("draw", Several, ["--from", "x.png", "--prompt", "red"], None)[0] == expected
    config.write_text("[how]\noutput = 'x'\nbatch-size = 3\n")
    assert parse_request("draw", Several, [], config)[0] == Several(
        how=Request(output=Path("x"), batch_size=3)
    )
    config.write_text("form = 1\n")
    with pytest.raises(ConfigError, match="sets form; allowed: from, how, prompt"):
        parse_request("draw", Several, [], config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = 'many'", "steps was 'many'"),
        ("stepz = 3", "sets stepz; allowed: batch_size, output, sampler, steps"),
        ("steps = [", "not valid TOML"),
        (f"steps = {'[' * 5000}", "not valid TOML"),
        (f"steps = {'9' * 5000}", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises((ConfigError, FileError), match=said) as caught:
        parse_request("draw", Request, ["--output", "x"], tmp_path / "a.toml")
    assert "a.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "x", "--stps", "3"], "Unrecognized options: --stps, 3; perhaps you meant --steps; see"),
        (["--output", "x", "--sampler", "ddim"], "invalid choice 'ddim'"),
        (["--output", "x", "--steps", "1.5"], "Error parsing --steps: '1.5' is no INT; see"),
        (["--output", "x", "--steps", "0"], "steps was 0"),
        ([], "--output PATH"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request("draw", Request, words, None)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_help_is_a_page_and_no_request() -> None:
    request, page = parse_request("draw", Request, ["--help"], None)
    assert request is None and "usage: fewer draw" in page and "Where to." in page
    assert "--json" in page and "--config" in page and "Draws." in page
    assert "A pencil." in parse_request("draw", Request, ["--help"], None, "A pencil.")[1]


def test_a_box_without_words_still_points_to_help() -> None:
    assert one_line("", "draw") == "the options could not be read; see: fewer draw --help"
