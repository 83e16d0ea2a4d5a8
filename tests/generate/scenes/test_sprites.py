"""Sprites: rendered from SVG, kept in one file, refused when names are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.scenes.drawing import resize_rgba
from fewer.generate.scenes.sprites import (
    fetch_packages,
    load_sprites,
    render_sprites,
    save_sprites,
)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A package with one icon: a red rectangle, off centre, twice as wide as high."""
    folder = tmp_path / "node_modules" / "@iconify-json" / "noto"
    folder.mkdir(parents=True)
    icon = {"body": '<rect x="2" y="20" width="40" height="20" fill="#f00"/>'}
    (folder / "icons.json").write_text(
        json.dumps({"prefix": "noto", "width": 64, "height": 64, "icons": {"a": icon}})
    )
    return tmp_path / "node_modules"


def test_a_drawing_fills_its_square_and_keeps_its_shape(packages: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra build-model is not installed")
    pixels = render_sprites(packages, {"a": "thing"}, ("glossy",), 32).pixels[0, 0]
    rows, columns = np.nonzero(pixels[..., 3] > 128)
    assert columns.min() <= 1 and columns.max() >= 30
    assert 14 <= rows.max() - rows.min() + 1 <= 18
    assert abs(rows.mean() - 15.5) < 1
    assert tuple(pixels[16, 16]) == (255, 0, 0, 255)


def test_unknown_names_and_missing_packages_are_refused(packages: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra build-model is not installed")
    with pytest.raises(ConfigError, match="'b'"):
        render_sprites(packages, {"b": "thing"}, ("glossy",), 16)
    with pytest.raises(ConfigError, match="outlined"):
        render_sprites(packages, {"a": "thing"}, ("outlined",), 16)
    with pytest.raises(FileError) as error:
        render_sprites(packages, {"a": "thing"}, ("flat",), 16)
    assert error.value.exit_code == 4


def test_a_sheet_survives_its_file(sheet, tmp_path: Path) -> None:
    save_sprites(sheet, tmp_path / "s.safetensors")
    again = load_sprites(tmp_path / "s.safetensors")
    assert again.concepts == sheet.concepts and again.styles == sheet.styles
    assert np.array_equal(again.pixels, sheet.pixels)


def test_a_file_without_sprites_is_refused(sheet, tmp_path: Path) -> None:
    import torch

    write_tensors(tmp_path / "x.safetensors", {"pixels": torch.zeros(1)})
    with pytest.raises(FileError, match="no sprites"):
        load_sprites(tmp_path / "x.safetensors")
    facts = {"concepts": "a", "words": "a", "styles": "flat"}
    write_tensors(tmp_path / "y.safetensors", {"pixels": torch.zeros(2, 2, 4, 4, 4)}, facts)
    with pytest.raises(FileError, match="names 1 concepts"):
        load_sprites(tmp_path / "y.safetensors")


def test_hidden_colours_do_not_bleed_when_resized() -> None:
    picture = np.zeros((8, 8, 4), dtype=np.uint8)
    picture[..., 0] = 255  # transparent red
    picture[:, :4] = (0, 255, 0, 255)
    small = np.asarray(resize_rgba(Image.fromarray(picture), 4, 4))
    visible = small[small[..., 3] > 0]
    assert (visible[:, 0] <= 1).all()


def test_without_npm_the_message_says_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileError, match="npm") as error:
        fetch_packages(tmp_path / "here")
    assert error.value.exit_code == 4
