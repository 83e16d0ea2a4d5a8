"""`fewer train style` and `fewer generate --style` from end to end."""

import json
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.core.tensors import tensor_header
from fewer.generate.command import GenerateCommand, generate_command
from fewer.generate.picture import read_request
from fewer.generate.pipeline import TextToImage
from fewer.generate.training.command_style import TrainStyleRequest, train_style_command
from tests.generate.training.test_own_pictures import base, pictures  # noqa: F401


def test_a_style_is_trained_worn_and_repeated(base: Path, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    request = TrainStyleRequest(
        data=pictures, output=tmp_path / "out", name="my ink", model=str(base), steps=3, batch=2,
        learning_rate=0.05, device="cpu",
    )  # fmt: skip
    found = train_style_command(request, SilentProgress())
    file = Path(str(found["output"]))
    assert found["steps"] == 3 and found["pictures"] == 3 and file.parent == tmp_path / "out"
    assert json.loads(tensor_header(file)[1]["names"]) == ["my ink"]
    drawn = {}
    for style in ("", str(file), f"{file}:0"):
        command = GenerateCommand(
            prompt=("a dog",), model=str(base), style=style, steps=2, output=tmp_path / "dog.png",
            device="cpu",
        )  # fmt: skip
        generate_command(command, SilentProgress())
        drawn[style] = (tmp_path / "dog.png").read_bytes()
        assert read_request(tmp_path / "dog.png")[0].style == Path(style).name
    pixels = {style: TextToImage.load(str(base), device="cpu", style=style) for style in drawn}
    images = {style: pipe("a dog", steps=2).images[0].tobytes() for style, pipe in pixels.items()}
    assert images[""] == images[f"{file}:0"] != images[str(file)]
    with pytest.raises(ConfigError, match="was loaded with"):
        pixels[""]("a dog", steps=2, style=str(file))
