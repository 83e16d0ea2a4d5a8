"""Pictures of a class through the server's engine, held against `fewer generate --class-name`."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from fewer.cli import main
from fewer.core.errors import ConfigError
from fewer.generate.conditional.formats import save_folder
from fewer.serve.engine import ImageEvent, StepEvent, local_engine
from tests.generate.conditional.conftest import upgraded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(upgraded("cat tokens"), tmp_path / "letters", ("a", "b", "c", "d", "e"))
    return tmp_path / "letters"


def wanted(prompt: str, **options: object) -> dict:
    return {"generate": {"prompt": [prompt], "model": "letters", "seed": 3, "steps": 2} | options}


def test_a_class_is_drawn_as_the_command_draws_it(folder: Path, tmp_path: Path) -> None:
    options = {"models": {"letters": str(folder)}, "classes": ["letters"], "device": "cpu"}
    engine = local_engine(options)
    events = list(engine.run(wanted("b", count=2)))
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2]
    pictures = [event for event in events if isinstance(event, ImageEvent)]
    assert [(picture.image, picture.seed) for picture in pictures] == [(0, 3), (1, 4)]
    words = ["--class-name", "b", "--seed", "3", "--count", "2", "--steps", "2", "--output", str(tmp_path)]
    assert main(["generate", "--model", str(folder), "--device", "cpu", *words]) == 0
    for picture in pictures:
        with (
            Image.open(io.BytesIO(picture.png)) as served,
            Image.open(tmp_path / f"b-{picture.seed}.png") as own,
        ):
            assert ImageChops.difference(served, own).getbbox() is None, "the same picture"
    number = next(event for event in engine.run(wanted("1")) if isinstance(event, ImageEvent))
    assert number.png == pictures[0].png
    with pytest.raises(ConfigError, match="'z' is not known"):
        list(engine.run(wanted("z")))


def test_the_door_names_the_classes_and_refuses_what_has_no_effect(serve) -> None:
    from fewer.serve.served_models import Served, ServedModel

    client = serve(start=False)
    letters = ServedModel("/x", "classes", ("a", "b"))
    client.app.state.context.served = Served({"default": ServedModel(), "letters": letters})

    def ask(prompt: str, **more: object) -> tuple[int, str | None]:
        answer = client.post("/jobs", json={"prompt": prompt, "model": "letters"} | more)
        return answer.status_code, (answer.json().get("error") or {}).get("param")

    assert client.get("/v1/models/letters").json()["classes"] == ["a", "b"]
    assert ask("a") == ask("1") == (202, None)
    assert ask("2") == ask("a cat") == (400, "prompt")
    assert ask("a", size="64x64") == (400, "size") and ask("a", negative_prompt="b")[1] == "negative_prompt"
