"""Where the time of `fewer stitch` goes: processor milliseconds a frame, stage by stage, one worker.

    python benchmarks/stitch_stages.py --output benchmarks/results/stitch_stages.json

The clock is that of the thread (other work on the machine does not count). What a stage calls and is a stage
itself is taken off it. From these figures follows what a machine with many cores can reach at best.
"""
# bench: cpu, 2 min: --output benchmarks/results/stitch_stages.json

import argparse
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import cv2
from stitch_tube import rendered

from fewer.stitch.options import MatchOptions, StitchOptions
from fewer.stitch.panorama import stitch
from fewer.stitch.tube.render import Tube

STAGES = {
    "highlight mask": ["mosaic.survey:highlight_mask", "mosaic.paint:highlight_mask"],
    "quality": ["mosaic.survey:measure", "frames.quality:FrameJudge.verdict"],
    "lumen": ["mosaic.survey:find_lumen"],
    "unrolling": ["mosaic.survey:picture_coordinates", "mosaic.survey:unwrap", "mosaic.survey:unwrap_mask"],
    "equalise and fill": ["mosaic.survey:look"],
    "SIFT": ["match.features:_sift"],
    "ORB": ["match.features:_orb"],
    "brightness profile": ["mosaic.survey:brightness_profile"],
    "describe (network)": ["match.tiny:TinyMatcher.look"],
    "compare (network)": ["match.tiny:TinyMatcher.propose"],
    "sub-pixel tracking": ["match.tiny:refine_by_tracking"],
    "match points": ["mosaic.find:match_features"],
    "filters": ["mosaic.find:fill_pool"],
    "verify": ["mosaic.find:verified"],
    "tracking, the rest": ["mosaic.track:Tracker.add"],
    "unroll on the device": ["device.strips:unroll"],
    "paint on the device": ["device.canvas:DeviceCanvas.lay"],
    "poses": ["panorama:settle"],
    "pair fits": ["mosaic.pairs:_fit_some"],
    "map coordinates": ["mosaic.canvas:picture_coordinates"],
    "paint, prepare": ["mosaic.canvas:Canvas.prepare"],
    "paint, add": ["mosaic.canvas:Canvas.add"],
    "paint, finish": ["mosaic.canvas:Canvas.finish"],
    "thumbnails": ["mosaic.paint:make_thumbnail"],
}


class Clock:
    """Thread time of each stage without that of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def watch(self, stage: str, function: Callable) -> Callable:
        def timed(*arguments, **options):
            stack = self._inside.__dict__.setdefault("stack", [])
            stack.append(0.0)
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                took, inner = time.thread_time() - began, stack.pop()
                self.seconds[stage] += took - inner
                if stack:
                    stack[-1] += took

        return timed

    def install(self) -> None:
        for stage, places in STAGES.items():
            for place in places:
                module, _, path = place.partition(":")
                holder = import_module(f"fewer.stitch.{module}")
                *outer, name = path.split(".")
                for part in outer:
                    holder = getattr(holder, part)
                if hasattr(holder, name):
                    setattr(holder, name, self.watch(stage, getattr(holder, name)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="+", default=[480, 720])
    parser.add_argument("--matchers", nargs="+", default=["sift,orb", "loftr"])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    clock, rows = Clock(), {}
    clock.install()
    for size in arguments.sizes:
        frames = list(rendered(Tube("B", seed=0, frames=arguments.frames, size=size), arguments.cache))
        for matchers in arguments.matchers:
            options = StitchOptions(match=MatchOptions(matchers=tuple(matchers.split(","))))  # pyright: ignore
            stitch(frames[:4], options, workers=1)
            clock.seconds.clear()
            began, wall = time.process_time(), time.perf_counter()
            panorama = stitch(frames, options, workers=1)
            cpu, wall = time.process_time() - began, time.perf_counter() - wall
            each = {stage: 1000 * seconds / len(frames) for stage, seconds in clock.seconds.items()}
            each["everything else"] = 1000 * cpu / len(frames) - sum(each.values())
            rows[f"{matchers} at {size}"] = {
                "frames_used": panorama.report["frames_used"],
                "milliseconds_a_frame": each,
                "processor_milliseconds_a_frame": 1000 * cpu / len(frames),
                "wall_milliseconds_a_frame": 1000 * wall / len(frames),
            }
            print(matchers, size, json.dumps(rows[f"{matchers} at {size}"], indent=1), flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"opencv": cv2.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
