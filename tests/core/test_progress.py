import errno
import io
import json

import pytest

from fewer.core.progress import BarProgress, LineProgress, SilentProgress, make_progress, track


def test_json_progress_writes_one_object_a_line_and_counts_right() -> None:
    stream = io.StringIO()
    assert list(track(range(3), make_progress("json", stream), "steps")) == [0, 1, 2]
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["start", "advance", "advance", "advance", "stop"]
    assert lines[-1]["done"] == lines[-1]["total"] == 3
    assert lines[0]["seconds_left"] is None


def test_figures_reach_the_machine() -> None:
    stream = io.StringIO()
    progress = make_progress("json", stream)
    progress.start("training", 0)
    progress.advance(2, loss=0.5)
    assert json.loads(stream.getvalue().splitlines()[-1])["loss"] == 0.5


def test_lines_are_rare_and_the_last_one_is_complete() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    list(track(range(1000), progress, "frames"))
    progress.stop()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("frames: 1000/1000")


def test_not_a_terminal_means_lines_and_silence_is_silent() -> None:
    assert isinstance(make_progress("auto", io.StringIO()), LineProgress)
    assert isinstance(make_progress("silent"), SilentProgress)


def test_the_bar_shows_what_was_done_and_stops_when_the_caller_breaks() -> None:
    stream = io.StringIO()
    for item in track(range(10), BarProgress(stream), "drawing"):
        if item == 4:
            break
    assert "4/10" in stream.getvalue() and "/s" in stream.getvalue()


def test_work_goes_on_where_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    for style in ("lines", "json"):
        progress = make_progress(style, Full())  # pyright: ignore
        progress.say("a")
        assert list(track(range(3), progress, "steps")) == [0, 1, 2]
    monkeypatch.setattr("sys.stderr", None)
    assert isinstance(make_progress("auto"), SilentProgress)
