import io
from pathlib import Path

import pytest
from PIL import Image

from fewer.core.errors import FileError
from fewer.serve.results import Results, encode


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "blue").save(stream, "PNG")
    return stream.getvalue()


def test_png_is_kept_as_it_is_and_others_are_encoded() -> None:
    assert encode(png(), "png", None) == png()
    for kind in ("jpeg", "webp"):
        with Image.open(io.BytesIO(encode(png(), kind, 50))) as picture:
            assert picture.format == kind.upper() and picture.size == (16, 16)


@pytest.mark.parametrize("name", ["../x.png", "0.png/..", "a.png", "0.svg", "00000.png", ""])
def test_only_our_own_names_are_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        Results(tmp_path).read("0" * 32, name)
    assert caught.value.missing


def test_dropping_a_job_takes_its_folder_and_nothing_else(tmp_path: Path) -> None:
    results = Results(tmp_path)
    (tmp_path / ("a" * 32)).mkdir()
    (tmp_path / "keep").mkdir()
    results.drop("a" * 32)
    results.drop("keep")
    results.drop("../x")
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
