import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fewer.cli import main
from fewer.core.alone import alone_in
from fewer.stitch.command import StitchRequest, options_of
from fewer.stitch.options import UnfoldOptions

CLIP = "data/endoscopy/laparoscopy_circle_640x360_25fps.mp4"


def test_a_folder_of_frames_becomes_a_map(
    tmp_path: Path, small_frames: list, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, picture in enumerate(small_frames[:4]):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    words = ["stitch", str(folder), "--output", str(tmp_path / "out"), "--json", "--matchers", "sift"]
    assert main([*words, "--unfold.strip-width", "300", "--unfold.width", "300", "--resume"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["frames_used"] == 4
    assert Path(out["page"]).exists()
    assert not (tmp_path / "out" / "unfinished").exists()
    assert 0 < out["held_out_rmse"] < 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["gone.mp4"], 4),
        (["tests"], 2),
        ([CLIP, "--mark", "x"], 2),
        ([CLIP, "--fov", "500"], 2),
        ([CLIP, "--matchers", "surf"], 2),
        ([CLIP, "--require", "loftr"], 2),
        ([CLIP, "--matchers", "loftr-full", "--require", "loftr-full"], 4),
        ([CLIP, "--select.max-frames", "2", "--stride", "40"], 3),
    ],
)
def test_exit_codes_of_the_contract(
    words: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["stitch", *words, "--output", str(tmp_path / "out")]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) >= 1
    assert not (tmp_path / "out" / "report.json").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The second would empty the first one's store while it is at work."""
    with alone_in(tmp_path):
        assert main(["stitch", CLIP, "--output", str(tmp_path)]) == 2
    assert "another run is writing" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_short_flags_win_over_groups_only_when_given() -> None:
    grouped = StitchRequest(
        source=Path("a"), output=Path("b"), unfold=UnfoldOptions(lens="pinhole", field_of_view=100.0)
    )
    assert options_of(grouped).unfold.lens == "pinhole"
    assert options_of(grouped).unfold.field_of_view == 100.0
    short = StitchRequest(source=Path("a"), output=Path("b"), fov=120.0, matchers="orb,loftr", stride=3)
    assert options_of(short).unfold.field_of_view == 120.0
    assert options_of(short).match.matchers == ("orb", "loftr")
    assert options_of(short).select.stride == 3


def test_the_real_clip_runs_or_is_refused_never_crashes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code = main(
        [
            "stitch",
            CLIP,
            "--output",
            str(tmp_path / "out"),
            "--stride",
            "12",
            "--select.max-frames",
            "6",
            "--json",
        ]
    )
    assert code in (0, 3)
    assert np.isfinite(len(capsys.readouterr().err))


def test_what_is_missing_and_what_holds_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "map")]
    assert main(["stitch", str(tmp_path / "nowhere.mp4"), *output]) == 4
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert main(["stitch", str(tmp_path / "list.txt"), *output]) == 3
    said = capsys.readouterr().err
    assert "0 read; at least 2" in said and "2 notes, the first: frame 0: " in said
