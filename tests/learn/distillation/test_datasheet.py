import json
from dataclasses import asdict, replace

import pytest

from fewer.core.errors import FileError
from fewer.learn.distillation.datasheet import Datasheet, SourceFacts, from_text, to_markdown, to_text


@pytest.fixture
def sheet() -> Datasheet:
    return Datasheet(
        class_names=("normal", "ill | <b>"),
        image_size=(28, 28),
        channels=1,
        images_per_class=10,
        method="dm",
        sources=(SourceFacts(name="hospital A", licence="CC BY 4.0"),),
        metrics={"distilled": {"accuracy": 0.9}},
    )


def test_the_text_round_trip_is_exact(sheet: Datasheet) -> None:
    assert from_text(to_text(sheet), "x") == sheet


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"class_names": ["one"]},
        {"channels": 7},
        {"unknown": 1},
        {"images_per_class": -1},
        {"recipe": {"epochs": 0}},
        {"image_size": [28]},
        {"sources": [{"path": "/home/somebody"}]},
    ],
)
def test_a_wrong_field_is_named(sheet: Datasheet, change: dict) -> None:
    text = json.dumps({**asdict(sheet), **change})
    with pytest.raises(FileError, match=next(iter(change))):
        from_text(text, "set.distilled.safetensors")


def test_what_is_no_json_is_refused() -> None:
    for text in ("{", "[]", "null", "[" * 100_000):
        with pytest.raises(FileError):
            from_text(text, "x")


def test_markdown_shows_the_facts_and_no_markup(sheet: Datasheet) -> None:
    page = to_markdown(replace(sheet, title="<script>\n# x", licence="<i>", task="<u>"))
    assert "hospital A" in page and "CC BY 4.0" in page and "not anonymous" in page
    assert "<" not in page and "\n# x" not in page
