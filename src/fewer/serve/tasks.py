"""Other rooms' work as jobs: stitch a video, reconstruct a picture, classify pictures, suggest items.

A room's command runs in a thread and reports through `Progress`; each report becomes a `StepEvent`, and
closing the iteration ends the command at its next report. Results go into the job's folder.
"""

import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fewer.core.errors import FileError
from fewer.core.progress import Progress
from fewer.serve.engine import EngineEvent, OutcomeEvent, StepEvent

Run = Callable[[dict, Path, str, Progress], dict[str, object]]


class _Stopped(Exception):
    """The job was cancelled."""


class _Reports:
    """A `Progress` that queues its reports and raises once the job is cancelled."""

    def __init__(self, reports: "queue.Queue[StepEvent | None]") -> None:
        self._reports, self.stopped = reports, threading.Event()
        self._done, self._total = 0, 0

    def start(self, what: str, total: int) -> None:
        self._done, self._total = 0, total
        self._tell()

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps
        self._tell()

    def stop(self) -> None: ...

    def say(self, text: str) -> None:
        self._tell()

    def _tell(self) -> None:
        if self.stopped.is_set():
            raise _Stopped
        self._reports.put(StepEvent(0, self._done, max(self._total, self._done)))


def run_task(request: dict, results: str | None, device: str) -> Iterator[EngineEvent]:
    """Runs `request["task"]` for the job `request["job"]`. Raises what the room's command raises."""
    if results is None:
        raise FileError("this server keeps no results, so it can run no tasks", missing=True)
    folder = Path(results) / request["job"]
    shutil.rmtree(folder, ignore_errors=True)  # a former attempt may have left something
    folder.mkdir(parents=True)
    reports: queue.Queue[StepEvent | None] = queue.Queue()
    progress, ended = _Reports(reports), {}

    def work() -> None:
        try:
            ended["facts"] = _RUNS[request["task"]](request["options"], folder, device, progress)
        except _Stopped:
            ended["error"] = None
        except BaseException as error:  # carried over to the caller, who knows what to say of it
            ended["error"] = error
        reports.put(None)

    thread = threading.Thread(target=work, name=request["task"], daemon=True)
    thread.start()
    try:
        while (report := reports.get()) is not None:
            yield report
    finally:
        progress.stopped.set()
        thread.join()
    if ended.get("error") is not None:
        raise ended["error"]
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    yield OutcomeEvent(without_paths(ended["facts"], folder), tuple(files))


def without_paths(value: Any, folder: Path) -> Any:
    """The facts as a stranger may see them: paths in the result folder relative to it, others by name."""
    if isinstance(value, dict):
        return {str(key): without_paths(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one, folder) for one in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
        path = Path(value)
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name
    return value


def _stitch(options: dict, folder: Path, device: str, progress: Progress) -> dict[str, object]:
    from fewer.core.config import validate
    from fewer.stitch.command import StitchRequest, stitch_command

    wanted = {"source": options.pop("file"), "output": str(folder), "device": device, **options}
    return stitch_command(validate(StitchRequest, wanted), progress)


def _reconstruct(options: dict, folder: Path, device: str, progress: Progress) -> dict[str, object]:
    from fewer.core.config import validate
    from fewer.generate.command_reconstruct import ReconstructRequest, reconstruct_command

    wanted = {"image": options.pop("file"), "output": str(folder / "reconstruction.png"), "device": device}
    return reconstruct_command(validate(ReconstructRequest, wanted | options), progress)


def _classify(options: dict, folder: Path, device: str, progress: Progress) -> dict[str, object]:
    from fewer.core.config import validate
    from fewer.learn.command_predict import PredictRequest, predict_command

    pictures, table = tuple(options["files"]), folder / "probabilities.csv"
    wanted = {"model": options["model"], "pictures": pictures, "output": str(table), "device": device}
    facts = predict_command(validate(PredictRequest, wanted), progress)
    text = table.read_text("utf-8")
    for parent in {f"{Path(picture).parent}/" for picture in pictures}:
        text = text.replace(parent, "")  # the table names files, a stranger needs no folders
    table.write_text(text, "utf-8")
    return facts


def _suggest(options: dict, folder: Path, device: str, progress: Progress) -> dict[str, object]:
    from fewer.core.config import validate
    from fewer.recommend.command_serving import SuggestRequest, suggest_command

    wanted = {"model": options["model"], "history": ",".join(options["history"]), "k": options["k"]}
    return suggest_command(validate(SuggestRequest, wanted | {"device": device}), progress)


_RUNS: dict[str, Run] = {
    "stitch": _stitch,
    "reconstruct": _reconstruct,
    "classify": _classify,
    "suggest": _suggest,
}
