"""Memory of a long video: a camera withdrawn for ever through a tube whose lining repeats every sixty frames.

    python benchmarks/stitch_memory.py --frames 10000 --size 160 --width 320 --features 250 \\
        --output benchmarks/results/stitch_memory.json

Frames come from a source that makes one at a time; the map grows by a millimetre a frame. Resident memory of
the process is sampled every quarter of a second. `--work DIR` lets a run
be stopped and gone on with; `--minutes` stops it by itself.
"""
# bench: cpu, 15 min: --frames 10000 --size 160 --width 320 --features 250 --output outputs/stitch_memory.json

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from fewer.core.progress import SilentProgress
from fewer.stitch.frames.source import Frame
from fewer.stitch.options import MatchOptions, StitchOptions, UnfoldOptions
from fewer.stitch.panorama import stitch
from fewer.stitch.tube.render import Tube
from fewer.stitch.tube.wall import PIXELS_PER_MM, Texture

PERIOD = 60


class EndlessTube:
    """A source of `length` frames: sixty pictures whose last leads to the first again."""

    def __init__(self, length: int, size: int) -> None:
        self.length, self.warnings = length, []
        tube = Tube("A", seed=0, frames=PERIOD + 1, size=size)
        lap = abs(tube.pose(PERIOD).origin[2] - tube.pose(0).origin[2])
        tube.__dict__["texture"] = periodic(tube.texture, lap)
        self._pictures = [tube.frame(index) for index in range(PERIOD)]

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.length):
            yield Frame(index, index / 10, self._pictures[index % PERIOD].copy())


def periodic(texture: Texture, lap: float) -> Texture:
    """The texture repeated every `lap` mm, its seam faded over 5 mm."""
    rows, fade = round(lap * PIXELS_PER_MM), round(5 * PIXELS_PER_MM)
    piece = texture.picture[: rows + fade].astype(np.float32)
    mix = np.linspace(0, 1, fade, dtype=np.float32)[:, None, None]
    piece[:fade] = mix * piece[:fade] + (1 - mix) * piece[rows : rows + fade]
    times = -(-len(texture.picture) // rows)
    tiled = np.concatenate([piece[:rows]] * times)[: len(texture.picture)]
    return Texture(tiled.astype(np.uint8), texture.z_start)


class Watch(SilentProgress):
    """Samples resident memory against frames done; ends the run when its time is over."""

    def __init__(self, minutes: float) -> None:
        self.samples: list[tuple[str, int, float]] = []
        self._what, self._done, self._stop = "reading", 0, time.monotonic() + 60 * minutes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def start(self, what: str, total: int = 0) -> None:
        self._what, self._done = what, 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps
        if time.monotonic() > self._stop:
            raise KeyboardInterrupt

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.25):
            self.samples.append((self._what, self._done, resident()))


def resident() -> float:
    """MiB of this process in memory, files it has mapped included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(samples: list[tuple[str, int, float]], what: str) -> float | None:
    """MiB gained for each thousand frames over the second half of a stage: a line through the samples."""
    mine = np.array([(done, memory) for name, done, memory in samples if name == what])
    mine = mine[mine[:, 0] > mine[:, 0].max() / 2] if len(mine) else mine
    return float(np.polyfit(mine[:, 0] / 1000, mine[:, 1], 1)[0]) if len(mine) > 8 else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--features", type=int, default=250)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    source, watch = EndlessTube(arguments.frames, arguments.size), Watch(arguments.minutes)
    options = StitchOptions(
        unfold=UnfoldOptions(width=arguments.width, strip_width=arguments.width),
        match=MatchOptions(sift_features=arguments.features, orb_features=arguments.features),
    )
    before, began, cpu = resident(), time.perf_counter(), time.process_time()
    try:
        panorama = stitch(source, replace(options), progress=watch, work=arguments.work, resume=True)
    except KeyboardInterrupt:
        watch.end()
        print(
            f"stopped after {watch.samples[-1]}; peak {max(memory for *_, memory in watch.samples):.0f} MiB"
        )
        return
    watch.end()
    facts = {
        "frames": arguments.frames,
        "frames_used": panorama.report["frames_used"],
        "size": arguments.size,
        "strip_width": arguments.width,
        "segments": len(panorama.segments),
        "map": list(panorama.image.shape[:2]),
        "map_metres": panorama.image.shape[0] / panorama.image.shape[1] * 2 * np.pi * 0.01,
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "mib_before": before,
        "mib_peak": max(memory for *_, memory in watch.samples),
        "mib_per_1000_frames": {
            what: slope(watch.samples, what) for what in ("following the tube", "painting the map")
        },
        "samples": watch.samples[:: max(1, len(watch.samples) // 200)],
    }
    results = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
    key = ("frames", "size")
    results = [run for run in results if [run[name] for name in key] != [facts[name] for name in key]]
    arguments.output.write_text(json.dumps({"runs": [*results, facts]}, indent=1))
    print(json.dumps({name: value for name, value in facts.items() if name != "samples"}))


if __name__ == "__main__":
    main()
