"""What a PNG tells, what it keeps to itself, and what is refused when read back."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewer.core.errors import ConfigError, FewerError, FileError
from fewer.generate.picture import CHUNK, Picture, parameters, read_request, repeat
from fewer.generate.request import GenerateRequest

REQUEST = GenerateRequest(
    prompt=("three apples, 日本 <b>",),
    negative="blur",
    steps=20,
    guidance=4.5,
    seed=7,
    width=64,
    height=32,
    lora=("a.safetensors:0.5",),
)


def picture(request: GenerateRequest = REQUEST) -> Picture:
    return Picture(image=Image.new("RGB", (64, 32), "teal"), request=request, dtype="bf16")


def test_the_request_comes_back(tmp_path):
    path = picture().save(tmp_path / "a.png")
    assert read_request(path) == (REQUEST, "bf16")


def test_other_tools_find_their_line(tmp_path):
    path = picture().save(tmp_path / "a.png")
    with Image.open(path) as opened:
        text = opened.info["parameters"]
    assert text == parameters(REQUEST, (64, 32))
    assert text.splitlines() == [
        "three apples, 日本 <b>",
        "Negative prompt: blur",
        "Steps: 20, Sampler: Flow DPM, CFG scale: 4.5, Seed: 7, Size: 64x32, Model: default",
    ]


def test_folders_stay_private_and_metadata_can_be_left_out(tmp_path):
    private = GenerateRequest(
        prompt=("a",), model="/home/someone/models/sana", lora=("/home/someone/x.safetensors:2",)
    )
    data = picture(private).png()
    assert b"someone" not in data and b"x.safetensors:2" in data
    bare = picture().png(metadata=False)
    assert b"apples" not in bare and b"fewer" not in bare
    path = tmp_path / "bare.png"
    path.write_bytes(bare)
    with pytest.raises(FileError, match="no-metadata"):
        read_request(path)


def test_the_same_picture_is_the_same_bytes():
    assert picture().png() == picture().png()


def test_what_is_given_wins_over_what_is_stored():
    merged = repeat(GenerateRequest(seed=9, size=128), REQUEST)
    assert (merged.seed, merged.prompt, merged.size) == (9, REQUEST.prompt, 128)
    assert merged.sides((1, 1)) == (128, 128)
    assert repeat(GenerateRequest(), REQUEST) == REQUEST


def test_pictures_from_before_prompts_were_read_are_drawn_word_for_word(tmp_path):
    path = hostile(tmp_path, json.dumps({"format": 1, "dtype": "fp32", "request": {"prompt": ["a puppy"]}}))
    stored, _ = read_request(path)
    assert stored.as_written
    assert not repeat(GenerateRequest(prompt=("a kitten",)), stored).as_written, "another prompt is read"
    assert repeat(GenerateRequest(seed=3), stored).as_written


def hostile(tmp_path: Path, text: str | bytes) -> Path:
    info = PngInfo()
    info.add_text(CHUNK, text)
    path = tmp_path / "hostile.png"
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 5000,
        json.dumps({"format": 2, "request": {}}),
        json.dumps({"format": 1, "dtype": "int1", "request": {}}),
        json.dumps({"format": 1, "dtype": "fp32", "request": {"stranger": 1}}),
        json.dumps({"format": 1, "dtype": "fp32", "request": {"steps": 10**9}}),
        json.dumps({"format": 1, "dtype": "fp32", "request": {"prompt": "a" * 70_000}}),
        json.dumps({"format": 1, "dtype": "fp32", "request": "x"}),
        json.dumps({"format": 1, "dtype": "fp32"}),
    ],
)
def test_hostile_chunks_are_named(tmp_path, text):
    with pytest.raises(FewerError):
        read_request(hostile(tmp_path, text))


def test_other_files_are_refused(tmp_path):
    for name, content in (("a.png", b"no picture"), ("b.png", picture().png()[:60]), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError):
            read_request(tmp_path / name)
    Image.new("RGB", (2, 2)).save(tmp_path / "jpeg.png", "JPEG")
    with pytest.raises(FileError, match="PNG"):
        read_request(tmp_path / "jpeg.png")
    with pytest.raises(FileError) as caught:
        read_request(tmp_path / "absent.png")
    assert caught.value.exit_code == 4
    with pytest.raises(ConfigError, match=r"\.png"):
        picture().save(tmp_path / "a.jpg")
