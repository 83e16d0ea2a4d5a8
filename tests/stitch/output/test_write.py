import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.core.errors import FileError
from fewer.core.files import read_arrays
from fewer.stitch.output.write import write_panorama
from fewer.stitch.panorama import Panorama


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_what_is_written_can_be_read_back(tmp_path: Path, small_map: Panorama, kind: str) -> None:
    result = write_panorama(small_map, tmp_path / "out", kind)
    segment = small_map.segments[0]
    picture = np.asarray(Image.open(tmp_path / "out" / f"pano_0.{kind}"))
    assert (picture[..., ::-1] == segment.image).all()
    arrays = read_arrays(tmp_path / "out" / "prov_0.npz")
    assert (arrays["frame"] == segment.provenance.frame).all()
    assert (arrays["x"] == segment.provenance.x).all()
    seen = segment.provenance.frame >= 0
    assert set(arrays["seconds"][arrays["frame"][seen]]) <= set(segment.seconds)
    assert 0 < np.nanmedian(arrays["error"][arrays["frame"][seen]]) < 2
    assert result["segments"] == 1
    entries = json.loads((tmp_path / "out" / "segments.json").read_text())["segments"]
    assert entries[0]["width"] == segment.image.shape[1]
    frames = json.loads((tmp_path / "out" / "frames.json").read_text())
    assert [entry["frame"] for entry in frames["placed"]] == segment.frames
    assert all(entry["error"] > 0 and len(entry["outline"]) > 10 for entry in frames["placed"])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["frames_used"] == 10
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_pictures_carry_no_metadata(tmp_path: Path, small_map: Panorama) -> None:
    write_panorama(small_map, tmp_path)
    assert Image.open(tmp_path / "pano_0.png").info == {}


def test_marks_reach_the_files(tmp_path: Path, small_map: Panorama) -> None:
    times = small_map.segments[0].seconds
    write_panorama(small_map, tmp_path, marks=(f"{times[0]}=30", f"{times[-1]:.2f}=29"))
    depth = json.loads((tmp_path / "segments.json").read_text())["segments"][0]["depth"]
    assert depth["cm_per_row"] > 0


def test_a_file_in_the_way_is_named(tmp_path: Path, small_map: Panorama) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(FileError, match="taken"):
        write_panorama(small_map, tmp_path / "taken")


def test_maps_of_an_earlier_run_go_and_other_files_stay(tmp_path: Path, small_map: Panorama) -> None:
    write_panorama(small_map, tmp_path, "tiff", deep_zoom=True)
    for name in ("pano_1.png", "prov_1.npz", "pano_1.dzi", "pano_x.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"old")
    write_panorama(small_map, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "pano_0.png", "prov_0.npz", "segments.json", "frames.json", "report.json", "report.html",
        "pano_x.png", "notes.txt",
    }  # fmt: skip


def test_marks_that_give_no_scale_are_told_of(tmp_path: Path, small_map: Panorama) -> None:
    result = write_panorama(small_map, tmp_path, marks=("100=30", "200=25"))
    assert any("no depth in centimetres" in warning for warning in result["warnings"])
    assert result["warnings"] == json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert small_map.report["warnings"] == []
