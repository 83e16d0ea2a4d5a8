"""Starts one process a device, or joins the world that `torchrun` has already made.

The parent watches its ranks: when one dies, the others are ended at once and the error names it.
"""

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from torch import multiprocessing

from fewer.core.errors import ConfigError, FewerError
from fewer.core.ranks import announced_ranks, ranks_of_launcher, under_torchrun
from fewer.parallel.group import GroupFailed
from fewer.parallel.heartbeat import STUCK
from fewer.parallel.process_group import ProcessGroup
from fewer.parallel.rank_process import RankMain, rank_process
from fewer.parallel.simulated import lone_rank

Reported = dict[int, tuple[str, object]]
"""What each rank has answered: "answer" or "error", and its value."""


def run_on_devices(
    rank_main: RankMain,
    devices: int,
    *arguments: object,
    device_type: str = "auto",
    timeout_seconds: float = 60.0,
) -> object:
    """Runs `rank_main(group, *arguments)` once a device; gives rank 0's answer.

    `rank_main` and its arguments must be importable and small, since they are sent to fresh processes.
    Raises `ConfigError` if there are fewer GPUs than asked for, `GroupFailed` naming the rank that died,
    or the error that a rank raised. Under torchrun every rank runs in place and gets its own answer.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device_type == "auto" else device_type
    if kind == "cuda" and torch.cuda.device_count() < devices:
        here = torch.cuda.device_count()
        fewer = f"ask for at most {here}, or use --device cpu" if here else "use --device cpu"
        raise ConfigError(f"{devices} devices were asked for, {here} GPUs are here; {fewer}")
    if under_torchrun():
        return _join_torchrun(rank_main, devices, arguments, kind, timeout_seconds)
    with RankPool(devices, device_type=kind, timeout_seconds=timeout_seconds) as pool:
        return pool.call(rank_main, *arguments)


def _join_torchrun(
    rank_main: RankMain, devices: int, arguments: tuple, kind: str, timeout_seconds: float
) -> object:
    if announced_ranks() != devices:
        raise ConfigError(
            f"torchrun started {announced_ranks()} ranks, but --devices is {devices}; make them equal"
        )
    if devices == 1:  # nobody to join
        return rank_main(lone_rank(), *arguments)
    with ranks_of_launcher(kind, timeout_seconds):
        return rank_main(ProcessGroup(timeout_seconds=timeout_seconds), *arguments)


class RankPool:
    """Ranks that stay from call to call: started by the first one, and anew by the one after a failure.

    What a rank wants to keep (a loaded model) it puts into `group.kept`. For one caller at a time: whoever
    calls while another call runs, or a stream is not yet closed, gets a `ConfigError`.
    """

    def __init__(self, devices: int, *, device_type: str = "cpu", timeout_seconds: float = 60.0) -> None:
        self.devices, self.kind, self.timeout_seconds = devices, device_type, timeout_seconds
        self._processes: list = []
        self._pipes: list = []
        self._answers: Any = None
        self._stop: Any = None
        self._folder: tempfile.TemporaryDirectory | None = None
        self._in_use = threading.Lock()

    def call(self, rank_main: RankMain, *arguments: object) -> object:
        """Runs `rank_main(group, *arguments)` on every rank; gives rank 0's answer.

        Raises as `run_on_devices`; after any error the group is taken down, and the next call starts another.
        """
        reported: Reported = {}
        with self._alone():
            try:
                self._send(rank_main, arguments, False)
                for _ in _hear(self._processes, self._answers, reported):
                    pass
            except BaseException as error:
                self.close(patient=isinstance(error, FewerError))
                raise
        return reported[0][1]

    def stream(self, rank_main: RankMain, *arguments: object) -> Iterator[object]:
        """Runs the generator `rank_main(group, *arguments)` on every rank; gives what rank 0's yields.

        All ranks must yield equally often. Closing the iteration ends every rank's generator before its next
        step, and the ranks stay. Errors are raised as in `call`.
        """
        reported: Reported = {}
        with self._alone():
            try:
                self._send(rank_main, arguments, True)
                try:
                    yield from _hear(self._processes, self._answers, reported)
                except GeneratorExit:
                    self._stop.set()
                    for _ in _hear(self._processes, self._answers, reported):
                        pass
                    raise
            except GeneratorExit:
                raise
            except BaseException as error:
                self.close(patient=isinstance(error, FewerError))
                raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # Answers of one call must not be taken for those of another.
        if not self._in_use.acquire(blocking=False):
            raise ConfigError(
                "these ranks are busy with another call; wait for it, close its stream, or use another pool"
            )
        try:
            yield
        finally:
            self._in_use.release()

    def _send(self, rank_main: RankMain, arguments: tuple, streamed: bool) -> None:
        if not self._processes:
            self._start()
        self._stop.clear()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a rank that has died is named when its answer is missed
                pipe.send((rank_main, arguments, streamed))

    def close(self, patient: bool = True) -> None:
        """Ends all ranks: those that are idle leave by themselves, if one is `patient`; the rest is ended."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        failed = any(process.exitcode not in (None, 0) for process in self._processes)
        deadline = time.monotonic() + (5 if patient and not failed else 0)
        for process in self._processes:
            process.join(max(0.1, deadline - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                process.terminate()
                process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="fewer-ranks-")
        self._answers, self._stop = context.Queue(), context.Event()
        store = str(Path(self._folder.name) / "store")
        for rank in range(self.devices):
            here, there = context.Pipe()
            process = context.Process(
                target=rank_process,
                args=(
                    rank,
                    self.devices,
                    store,
                    self.kind,
                    self.timeout_seconds,
                    self._answers,
                    there,
                    self._stop,
                ),
                daemon=True,
            )
            with _interrupts_for_the_parent():
                process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def _interrupts_for_the_parent() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C, which a terminal sends to all: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear(processes: list, answers: Any, reported: Reported) -> Iterator[object]:
    """Rank 0's events until all ranks have answered; the first that dies or reports an error decides."""
    left: set[int] = set()
    while len(reported) < len(processes):
        try:
            rank, outcome, value = answers.get(timeout=0.1)
            if outcome != "error":
                value = ForkingPickler.loads(value)
            if outcome == "event":
                yield value
                continue
            reported[rank] = (outcome, value)
            if outcome == "error":
                _raise_first(reported, processes)
        except Empty:
            for rank, process in enumerate(processes):
                if rank in reported or process.exitcode is None:
                    continue
                if process.exitcode == 0 and rank not in left:
                    left.add(rank)  # what it said before it left may still be on its way
                    continue
                raise GroupFailed(
                    f"rank {rank} of {len(processes)} died ({_death(process.exitcode)}); "
                    "the others were ended; run again, or with fewer devices",
                    rank,
                ) from None


def _raise_first(reported: Reported, processes: list) -> None:
    # A rank that lost its group is a victim: give the culprit a moment to be seen.
    rank, error = next((rank, value) for rank, (outcome, value) in reported.items() if outcome == "error")
    if isinstance(error, GroupFailed):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for other, process in enumerate(processes):
                if process.exitcode not in (None, 0) and other not in reported:
                    raise GroupFailed(f"rank {other} died ({_death(process.exitcode)}): {error}", other)
            time.sleep(0.05)
    if isinstance(error, FewerError):
        raise error
    raise GroupFailed(f"rank {rank}: {error}", rank)


def _death(code: int | None) -> str:
    if code == STUCK:
        return "a step on its GPU did not end in time"
    if code == 0:
        return "it left without an answer"
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
