"""How well the focal length is found from the video alone, on the rendered tube (B equidistant, D pinhole).

    python benchmarks/stitch_lens.py --output benchmarks/results/stitch_lens.json

The search starts from a field of view that is wrong by the given factors. The bar of variant D asks for 8 %.
"""
# bench: cpu, 5 min: --output benchmarks/results/stitch_lens.json

import argparse
import json
import math
from pathlib import Path

import numpy as np
from stitch_tube import rendered

from fewer.stitch.frames.source import open_frames
from fewer.stitch.mosaic.settle import settle
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.options import StitchOptions, UnfoldOptions
from fewer.stitch.tube.render import Tube


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", nargs="+", default=["B", "D"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--fields", nargs="+", type=float, default=[125.0, 150.0], help="degrees; true: 140")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
    for variant in arguments.variants:
        for seed in arguments.seeds:
            tube = Tube(variant, seed=seed, frames=60)
            frames = list(rendered(tube, arguments.cache)[: arguments.frames])
            for field in arguments.fields:
                run = {"variant": variant, "seed": seed, **found(tube, frames, field)}
                runs = [old for old in runs if key(old) != key(run)] + [run]
                print(json.dumps(run), flush=True)
                medians = {
                    name: float(np.median([abs(each["error"]) for each in runs if each["variant"] == name]))
                    for name in sorted({each["variant"] for each in runs})
                }
                worst = max(abs(each["error"]) for each in runs)
                facts = {"frames": arguments.frames, "median_error": medians, "worst_error": worst}
                arguments.output.write_text(json.dumps({**facts, "runs": runs}, indent=1))


def key(run: dict) -> tuple:
    return run["variant"], run["seed"], run["field_given"]


def found(tube: Tube, frames: list[np.ndarray], field: float) -> dict[str, float]:
    """The focal length found, against that of the renderer."""
    pinhole = tube.recipe.pinhole
    lens = "pinhole" if pinhole else "equidistant"
    options = StitchOptions(unfold=UnfoldOptions(lens=lens, field_of_view=field, calibrate=True))
    tracker, survey = Tracker(options, {}), Survey(open_frames(frames), options)
    for _, frame in survey:
        if frame is not None:
            view = survey.views[frame.size]
            tracker.add(frame, view.geometry, view.shape)
    segment = max(tracker.segments, key=lambda each: len(each.frames))
    first = segment.geometry.lens.focal
    focal = settle(segment, tracker, options).segment.geometry.lens.focal
    half = math.radians(70)
    true = tube.field_radius / (math.tan(half) if pinhole else half)
    return {
        "field_given": field,
        "frames_used": len(segment.frames),
        "error_at_start": first / true - 1,
        "error": focal / true - 1,
    }


if __name__ == "__main__":
    main()
