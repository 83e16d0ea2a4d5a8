"""A rank that hangs must not lose what comes after: worlds that are watched, ended and begun anew."""

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fewer.core.errors import FewerError
from fewer.parallel.launch import RankPool

STARTING = 30.0
"""Seconds that ranks may take to come up."""


class Watch:
    """Ends all ranks of a pool when no row has come for so many seconds."""

    def __init__(self, pool: RankPool, lines: Path, silence: float) -> None:
        self._pool, self._lines, self._silence = pool, lines, silence
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._began = time.time()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            heard = max(self._began + STARTING, self._lines.stat().st_mtime)
            if time.time() - heard > self._silence:
                for process in self._pool._processes:
                    process.kill()
                return


def watched(rank_main: Callable, options: argparse.Namespace) -> list[dict]:
    """`rank_main(group, options)` on as many ranks as the largest count, until no item is left.

    An item whose ranks were lost is tried once more with exchanges as collectives, then left out.
    """
    waiting = list(options.items)
    options.lines.touch()
    while waiting and time.time() < options.deadline:
        options.items, before = waiting, len(rows_in(options.lines))
        try:
            with (
                RankPool(
                    max(options.devices), device_type=options.device, timeout_seconds=options.timeout
                ) as pool,
                Watch(pool, options.lines, options.silence),
            ):
                pool.call(rank_main, options)
            break
        except FewerError as error:
            begun = [row["item"] for row in rows_in(options.lines)[before:] if row.get("begun")]
            lost = begun[-1] if begun else None
            add(
                options.lines,
                {"item": lost or "start", "failed": str(error)[:400], "exchange": options.exchange},
            )
            print(f"lost the ranks in {lost or 'start'}: {str(error)[:200]}", flush=True)
            if options.exchange == "off" and lost is None:
                break
            rest = waiting[waiting.index(lost) :] if lost else waiting
            waiting = rest if options.exchange == "auto" else rest[1:]
            options.exchange = "off"
    return rows_in(options.lines)


def rows_in(lines: Path) -> list[dict]:
    """What has been written so far."""
    return [json.loads(line) for line in lines.read_text().splitlines()]


def add(lines: Path, row: dict) -> None:
    """Another row, at once."""
    with lines.open("a") as file:
        file.write(json.dumps(row) + "\n")
