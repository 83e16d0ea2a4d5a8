"""Training folders: three ways to give captions, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewer.core.errors import DataError, FileError
from fewer.generate.training.folder import count_buckets, encode_pictures, picture_tensor, read_folder


def draw(path: Path, size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def test_captions_come_from_the_list_then_the_text_then_the_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/red-car_02.png"):
        draw(tmp_path / name)
    (tmp_path / "b.txt").write_text("31.5\ta blue cat\na cat\n\n")
    entry = {"file_name": "a.png", "text": ["one", "two"], "scores": [20, 30]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(entry) + "\n")
    found = {picture.path.name: picture.captions for picture in read_folder(tmp_path)}
    assert found["a.png"] == (("one", 20.0), ("two", 30.0))
    assert found["b.png"] == (("a blue cat", 31.5), ("a cat", 30.0))
    assert found["red-car_02.png"] == (("red car", 30.0),)


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"file_name": "a.png"}', '{"file_name": "a.png", "text": "x", "scores": [1, 2]}', "3"],
)
def test_a_damaged_list_names_its_line(tmp_path: Path, line: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(FileError, match="line 2"):
        read_folder(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        read_folder(tmp_path / "nowhere")
    assert error.value.exit_code == 4
    with pytest.raises(DataError):
        read_folder(tmp_path)
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="no caption"):
        read_folder(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(FileError, match="leads out"):
        read_folder(tmp_path / "data")


def test_pictures_are_encoded_in_the_bucket_that_fits(tmp_path: Path, small_autoencoder) -> None:
    draw(tmp_path / "wide.png", (123, 31))
    draw(tmp_path / "square.png", (5, 5))
    latents = encode_pictures(read_folder(tmp_path), small_autoencoder, [(16, 16), (8, 32)])
    assert [tuple(found.shape) for found in latents] == [(4, 4, 4), (4, 2, 8)]
    assert count_buckets(latents) == {"4x4": 1, "2x8": 1}


def test_pixels_are_in_the_autoencoders_range() -> None:
    found = picture_tensor(Image.new("RGB", (3, 2), (255, 0, 0)))
    assert found.shape == (3, 2, 3)
    assert torch.equal(found[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
