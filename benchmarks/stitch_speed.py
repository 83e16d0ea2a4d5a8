"""Frames a second, end to end, on 60 frames of 480 pixels of the rendered tube (variant B).

    python benchmarks/stitch_speed.py --output benchmarks/results/stitch_speed.json

Wall time depends on what else the machine does, so processor time (user + system, all threads) stands
beside it: two free cores cannot be quicker than half of it, and one core cannot be slower than all of it. The
first twenty frames are stitched once before, so that imports are not counted. `--workers 1 4 8 16` shows what
more threads bring. On a GPU: `--matchers loftr --frames 240 --workers 4 8 16 --onboard auto off`.
"""
# bench: cpu, 2 min: --output benchmarks/results/stitch_speed.json

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import cv2
import numpy as np
from stitch_tube import rendered

from fewer.stitch.options import MatchOptions, StitchOptions
from fewer.stitch.panorama import stitch
from fewer.stitch.tube.render import Tube

SETS = {"sift,orb": 5.0, "loftr": 2.0, "sift,orb,loftr": None, "loftr-tube": None}


def measured(
    frames: list[np.ndarray], matchers: str, workers: int | None, onboard: str = "auto"
) -> dict[str, float | int | str | None]:
    options = StitchOptions(match=MatchOptions(matchers=tuple(matchers.split(","))))  # pyright: ignore
    stitch(frames[:20], options, workers=workers, onboard=onboard)  # pyright: ignore
    load, before, began = os.getloadavg()[0], processor_seconds(), time.perf_counter()
    panorama = stitch(frames, options, workers=workers, onboard=onboard)  # pyright: ignore
    wall, cpu = time.perf_counter() - began, processor_seconds() - before
    count = len(frames)
    return {
        "workers": workers,
        "onboard": onboard,
        "frames_used": panorama.report["frames_used"],  # pyright: ignore
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "frames_per_second": count / wall,
        "frames_per_second_of_one_core": count / cpu,
        "cores_got": cpu / wall,
        "load_before": load,
    }


def processor_seconds() -> float:
    """User and system, of this process and of those it has divided itself into."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--matchers", nargs="+", default=list(SETS))
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0], help="0: one a processor, at most sixteen"
    )
    parser.add_argument(
        "--onboard", nargs="+", default=["auto"], help="off: OpenCV on the processor, also beside a GPU"
    )
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    frames = list(rendered(Tube("B", seed=0, frames=arguments.frames), arguments.cache))
    rows = {}
    for matchers in arguments.matchers:
        runs = [
            measured(frames, matchers, count or None, onboard)
            for onboard in arguments.onboard
            for count in arguments.workers
            for _ in range(arguments.repeats)
        ]
        best = max(runs, key=lambda run: run["frames_per_second"] or 0)
        rows[matchers] = {"bar": SETS[matchers], "best": best, "runs": runs}
        print(matchers, json.dumps(best), flush=True)
    facts = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores",
        "opencv": cv2.__version__,
        "frames": len(frames),
        "opencv_threads": cv2.getNumThreads(),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
