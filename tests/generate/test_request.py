"""Requests: sizes, seeds, and one request per picture."""

import pytest

from fewer.core.errors import ConfigError
from fewer.generate.request import GenerateRequest, as_prompts


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ({}, (20, 30)),
        ({"size": 64}, (64, 64)),
        ({"width": 64}, (64, 64)),
        ({"height": 32}, (32, 32)),
        ({"height": 32, "width": 64}, (32, 64)),
    ],
)
def test_sides(given, sides):
    assert GenerateRequest(**given).sides((20, 30)) == sides


def test_each_picture_has_its_own_request():
    singles = GenerateRequest(prompt=("a", "b"), seed=7, count=3, negative="c").singles()
    assert [(single.prompt, single.seed) for single in singles] == [
        ((prompt,), seed) for prompt in "ab" for seed in (7, 8, 9)
    ]
    assert all(single.count == 1 and single.negative == "c" for single in singles)
    assert [single.singles() for single in singles] == [[single] for single in singles]


def test_nothing_to_draw_and_too_many_seeds_are_refused():
    with pytest.raises(ConfigError, match="no prompt"):
        GenerateRequest().singles()
    with pytest.raises(ConfigError, match="seed"):
        GenerateRequest(prompt=("a",), seed=2**63 - 2, count=3).singles()


def test_one_prompt_or_several():
    assert as_prompts("abc") == ("abc",)
    assert as_prompts(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a red\napple 🍎", "a red\napple 🍎"),
        ("яблоко".encode().decode("ascii", "surrogateescape"), "яблоко"),
    ],
)
def test_prompts_of_an_ascii_locale_are_read_as_utf_8(given: str, read: str) -> None:
    (single,) = GenerateRequest(prompt=(given,), negative=given).singles()
    assert (single.prompt, single.negative) == ((read,), read)


@pytest.mark.parametrize("given", ["\ud83d", "a \udcff", "\udcd1"])
def test_what_is_no_text_is_refused(given: str) -> None:
    for request in (GenerateRequest(prompt=(given,)), GenerateRequest(prompt=("a",), negative=given)):
        with pytest.raises(ConfigError, match="prompt holds what is no text"):
            request.singles()
