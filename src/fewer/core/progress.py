"""Progress: a bar for people, plain lines in a log file, one JSON line per event for machines.

Everything goes to standard error; standard output belongs to results.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from io import TextIOBase
from typing import Literal, Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")
Style = Literal["auto", "bar", "lines", "json", "silent"]


@runtime_checkable
class Progress(Protocol):
    """What long work reports to. `total=0` means that the length is not known."""

    def start(self, what: str, total: int) -> None: ...
    def advance(self, steps: int = 1, **figures: float) -> None: ...
    def stop(self) -> None: ...
    def say(self, text: str) -> None: ...


def make_progress(style: Style = "auto", stream: TextIOBase | None = None) -> Progress:
    """`auto` draws a bar on a terminal and prints a line every ten seconds elsewhere."""
    stream = stream or sys.stderr  # pyright: ignore
    if style == "silent" or stream is None:  # the shell closed it (2>&-)
        return SilentProgress()
    if style == "json":
        return JsonProgress(stream)
    if style == "bar" or (style == "auto" and stream.isatty()):
        return BarProgress(stream)
    return LineProgress(stream)


def track(items: Iterable[Item], progress: Progress, what: str, total: int = 0) -> Iterator[Item]:
    """Yields the items and reports each one that was used."""
    progress.start(what, total or (len(items) if hasattr(items, "__len__") else 0))  # pyright: ignore
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.stop()


class SilentProgress:
    """Reports nothing: the default of the Python API."""

    def start(self, what: str, total: int) -> None: ...
    def advance(self, steps: int = 1, **figures: float) -> None: ...
    def stop(self) -> None: ...
    def say(self, text: str) -> None: ...


class BarProgress:
    """A rich bar with rate and time left; honours NO_COLOR."""

    def __init__(self, stream: TextIOBase) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._bar = None
        self._task = None
        self._counter = _Counter()

    def start(self, what: str, total: int) -> None:
        from rich import progress as bars

        self.stop()
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(what, total=total or None, figures="", rate="")
        self._counter.begin(what, total)
        self._bar.start()

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self._bar is not None and self._task is not None:
            self._counter.done += steps
            said = {"rate": f"{self._counter.rate():.2f}/s"}
            if figures:
                said["figures"] = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._bar.update(self._task, advance=steps, **said)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


class _Counter:
    """Steps done and seconds passed since `start`."""

    def begin(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.began = what, total, 0, time.monotonic()
        self.reported = self.began

    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.began, 1e-9)

    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate() if self.total and self.done else None


class LineProgress:
    """A line at most every ten seconds, and one at the end."""

    interval = 10.0

    def __init__(self, stream: TextIOBase) -> None:
        self._stream, self._counter, self._running = stream, _Counter(), False

    def start(self, what: str, total: int) -> None:
        self._counter.begin(what, total)
        self._running = True

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._counter.done += steps
        if time.monotonic() - self._counter.reported >= self.interval:
            self._counter.reported = time.monotonic()
            self._line(figures)

    def stop(self) -> None:
        if self._running:
            self._line({})
            self._running = False

    def say(self, text: str) -> None:
        _write_line(self._stream, text)

    def _line(self, figures: dict[str, float]) -> None:
        counter = self._counter
        left = counter.seconds_left()
        shown = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        remaining = f", {left:.0f} s left" if left else ""
        of = f"/{counter.total}" if counter.total else ""
        self.say(f"{counter.what}: {counter.done}{of}, {counter.rate():.2f}/s{remaining}{shown}")


class JsonProgress:
    """One JSON object a line: {"event", "what", "done", "total", "rate", "seconds_left", ...figures}."""

    def __init__(self, stream: TextIOBase) -> None:
        self._stream, self._counter, self._running = stream, _Counter(), False

    def start(self, what: str, total: int) -> None:
        self._counter.begin(what, total)
        self._running = True
        self._write("start", {})

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._counter.done += steps
        self._write("advance", figures)

    def stop(self) -> None:
        if self._running:
            self._write("stop", {})
            self._running = False

    def say(self, text: str) -> None:
        _write_line(self._stream, json.dumps({"event": "say", "text": text}))

    def _write(self, event: str, figures: dict[str, float]) -> None:
        counter = self._counter
        line = {
            "event": event,
            "what": counter.what,
            "done": counter.done,
            "total": counter.total,
            "rate": round(counter.rate(), 4),
            "seconds_left": counter.seconds_left(),
            **figures,
        }
        _write_line(self._stream, json.dumps(line))


def _write_line(stream: TextIOBase, text: str) -> None:
    """Work goes on where its log cannot be written: the disk is full, or the reader has gone."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        drop_unwritten(stream)


def drop_unwritten(stream: TextIOBase) -> None:
    """What could not be written is not tried again when the interpreter ends: the exit code stays."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
