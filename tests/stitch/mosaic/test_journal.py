from pathlib import Path

import cv2
import pytest

from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.stitch import stitch
from fewer.stitch.frames.source import mark_of, open_frames
from fewer.stitch.mosaic.journal import Journal
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


def test_another_video_or_other_options_are_refused_and_no_resume_begins_anew(
    tmp_path: Path, small_frames: list, small_options: StitchOptions
) -> None:
    work = tmp_path / "work"

    def left(frames: object, seed: int, resume: bool) -> int:
        with pytest.raises(KeyboardInterrupt):
            stitch(frames, StitchOptions(match=small_options.match, unfold=small_options.unfold, seed=seed),
                   work=work, resume=resume, progress=Interrupt(1))  # fmt: skip
        return len((work / "journal.jsonl").read_text().splitlines())

    for name in ("one", "other"):  # two videos that begin and end alike
        (tmp_path / name).mkdir()
        for index, frame in enumerate(small_frames):
            shown = small_frames[0] if name == "other" and index == 5 else frame
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), shown)
    begun = left(tmp_path / "one", 0, False)
    journal = (work / "journal.jsonl").read_bytes()
    for frames, seed in ((tmp_path / "other", 0), (tmp_path / "one", 1)):
        with pytest.raises(ConfigError, match="another video or other options"):
            left(frames, seed, True)
        assert (work / "journal.jsonl").read_bytes() == journal
    assert left(tmp_path / "one", 0, True) >= begun
    assert left(tmp_path / "other", 0, False) == begun
    assert mark_of(open_frames(small_frames)) != mark_of(open_frames(small_frames[::-1]))
    (work / "journal.jsonl").write_bytes(journal[:20])  # torn in its first line: nothing to go on from
    assert Journal(work, "other", True, 6).lines == {}
    assert (work / "store.bin").stat().st_size == 0
