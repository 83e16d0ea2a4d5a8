from pathlib import Path

import numpy as np
import pytest

from fewer.core.progress import SilentProgress
from fewer.stitch import stitch
from fewer.stitch.mosaic import journal as module
from fewer.stitch.options import StitchOptions
from fewer.stitch.panorama import Panorama


class Interrupt(SilentProgress):
    """Ctrl-C after some frames."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._left -= steps
        if self._left < 0:
            raise KeyboardInterrupt


def same(one: Panorama, other: Panorama) -> bool:
    pictures = (one.image == other.image).all() and (one.provenance.frame == other.provenance.frame).all()
    poses = all(
        (mine.poses == theirs.poses).all() for mine, theirs in zip(one.segments, other.segments, strict=True)
    )
    return bool(pictures and poses) and one.report == other.report


@pytest.mark.parametrize("after", [1, 9, 13])
def test_a_resumed_run_gives_the_same_bytes(
    tmp_path: Path, small_frames: list, small_options: StitchOptions, small_map: Panorama, after: int
) -> None:
    work = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        stitch(small_frames, small_options, work=work, progress=Interrupt(after))
    assert (work / "journal.jsonl").stat().st_size > 100
    assert same(stitch(small_frames, small_options, work=work, resume=True), small_map)
    assert not work.exists()


def test_frames_with_a_line_are_not_measured_again(
    tmp_path: Path, small_frames: list, small_options: StitchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        stitch(small_frames, small_options, work=tmp_path, progress=Interrupt(9))
    from fewer.stitch.mosaic import survey

    measured = []
    plain = survey._measure

    def counted(frame, *rest):
        measured.append(frame.index)
        return plain(frame, *rest)

    monkeypatch.setattr(survey, "_measure", counted)
    stitch(small_frames, small_options, work=tmp_path, resume=True)
    assert sorted(measured) == list(range(3, 10))


def test_a_torn_line_and_a_longer_store_are_cut_back(
    tmp_path: Path, small_frames: list, small_options: StitchOptions, small_map: Panorama
) -> None:
    with pytest.raises(KeyboardInterrupt):
        stitch(small_frames, small_options, work=tmp_path, progress=Interrupt(7))
    journal, store = tmp_path / "journal.jsonl", tmp_path / "store.bin"
    journal.write_bytes(journal.read_bytes()[:-30])
    store.write_bytes(store.read_bytes() + b"x" * 1000)
    assert same(stitch(small_frames, small_options, work=tmp_path, resume=True), small_map)


def test_another_video_other_options_or_no_resume_begin_anew(
    tmp_path: Path, small_frames: list, small_options: StitchOptions
) -> None:
    def left(frames: list, seed: int, resume: bool) -> dict:
        with pytest.raises(KeyboardInterrupt):
            stitch(frames, StitchOptions(match=small_options.match, unfold=small_options.unfold, seed=seed),
                   work=tmp_path, resume=resume, progress=Interrupt(1))  # fmt: skip
        first, *lines = (tmp_path / "journal.jsonl").read_text().splitlines()
        return {"key": first, "lines": len(lines)}

    begun = left(small_frames, 0, False)
    assert left(small_frames, 1, True)["key"] != begun["key"]
    assert left(small_frames[::-1], 1, True)["lines"] <= begun["lines"]
    assert module.Journal(tmp_path, "other", True, 6).lines == {}
    assert np.frombuffer((tmp_path / "store.bin").read_bytes(), np.uint8).size == 0
