"""What each matcher, each filter and each weight is worth: mean pair error M1 on the same frames, same poses.

    python benchmarks/stitch_ablation.py --variants B C --seeds 0 1 2 \\
        --output benchmarks/results/stitch_ablation.json

Pixels of a strip of 1000 columns. Every row uses the poses found by the full method, so that only pairs
differ. Under "matches": for each matcher, before any filter, how many matches a pair has, how many lie
within 3 pixels of the exact place, their median error, and how much of the strip they cover.
"""
# bench: cpu, 30 min: --variants B C --seeds 0 1 2 --output benchmarks/results/stitch_ablation.json

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from stitch_tube import rendered

from fewer.stitch.frames.source import open_frames
from fewer.stitch.homography.dwho import fit_pair
from fewer.stitch.match.features import match_features
from fewer.stitch.match.learned import load_matchers
from fewer.stitch.match.pool import Matches, displacement, fill_pool
from fewer.stitch.mosaic.pairs import PairResult, resolution_share
from fewer.stitch.mosaic.settle import settle
from fewer.stitch.mosaic.survey import Survey
from fewer.stitch.mosaic.track import Tracker
from fewer.stitch.options import HomographyOptions, MatchOptions, StitchOptions, UnfoldOptions
from fewer.stitch.panorama import SegmentMap
from fewer.stitch.tube.metrics import pair_truth, strip_error
from fewer.stitch.tube.render import Tube

FILTERS_OFF = {"motion_filter": False, "merge_filter": False, "neighbour_filter": False, "cell_cap": 10_000}
POOL = ("sift", "orb", "loftr")
OWN = ("sift", "orb", "loftr-tube")
RIGHT = 3.0  # pixels
# name -> (matchers, match options, "ransac" or homography options)
ROWS: dict[str, tuple[tuple[str, ...], dict, str | dict]] = {
    "SIFT, RANSAC": (("sift",), FILTERS_OFF, "ransac"),
    "ORB, RANSAC": (("orb",), FILTERS_OFF, "ransac"),
    "tiny LoFTR, RANSAC": (("loftr",), FILTERS_OFF, "ransac"),
    "SIFT+ORB unfiltered, RANSAC": (("sift", "orb"), FILTERS_OFF, "ransac"),
    "SIFT+ORB filtered, RANSAC": (("sift", "orb"), {}, "ransac"),
    "SIFT, DWHO": (("sift",), {}, {}),
    "ORB, DWHO": (("orb",), {}, {}),
    "tiny LoFTR, DWHO": (("loftr",), {}, {}),
    "SIFT+ORB unfiltered, DWHO": (("sift", "orb"), FILTERS_OFF, {}),
    "SIFT+ORB, DWHO (default)": (("sift", "orb"), {}, {}),
    "SIFT+ORB+LoFTR unfiltered, RANSAC": (POOL, FILTERS_OFF, "ransac"),
    "SIFT+ORB+LoFTR filtered, RANSAC": (POOL, {}, "ransac"),
    "SIFT+ORB+LoFTR unfiltered, DWHO": (POOL, FILTERS_OFF, {}),
    "SIFT+ORB+LoFTR, DWHO": (POOL, {}, {}),
    "own LoFTR, RANSAC": (("loftr-tube",), FILTERS_OFF, "ransac"),
    "own LoFTR, DWHO": (("loftr-tube",), {}, {}),
    "SIFT+ORB+own LoFTR unfiltered, DWHO": (OWN, FILTERS_OFF, {}),
    "SIFT+ORB+own LoFTR, DWHO": (OWN, {}, {}),
    "no motion filter": (("sift", "orb"), {"motion_filter": False}, {}),
    "no merging": (("sift", "orb"), {"merge_filter": False}, {}),
    "no neighbour filter": (("sift", "orb"), {"neighbour_filter": False}, {}),
    "no density (gamma 0)": (("sift", "orb"), {}, {"sample_gamma": 0.0, "fit_gamma": 0.0}),
    "gamma +0.5 in the fit": (("sift", "orb"), {}, {"fit_gamma": 0.5}),
    "no resolution weight": (("sift", "orb"), {}, {"resolution_weight": False}),
    "density of the new strip alone": (("sift", "orb"), {}, {"symmetric": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", nargs="+", default=["B", "C"])
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # what is in the file already stays: a long table can be made in pieces
    results = json.loads(arguments.output.read_text())["seeds"] if arguments.output.exists() else {}
    for variant in arguments.variants:
        for seed in arguments.seeds:
            tube = Tube(variant, seed=seed, frames=60)
            frames = rendered(tube, arguments.cache)[: arguments.frames]
            results.setdefault(variant, {})[str(seed)] = ablate(tube, list(frames))
            medians = {name: median_rows(found) for name, found in results.items()}
            print(
                variant,
                seed,
                json.dumps(
                    {name: row.get("m1", row.get("right_share")) for name, row in medians[variant].items()}
                ),
            )
            facts = {"frames": arguments.frames, "medians": medians, "seeds": results}
            arguments.output.write_text(json.dumps(facts, indent=1))


def median_rows(seeds: dict[str, dict]) -> dict[str, dict]:
    """Median over the seeds of each figure of each row."""
    rows = list(seeds.values())
    return {
        name: {key: float(np.median([each[name][key] for each in rows if name in each])) for key in row}
        for name, row in max(rows, key=len).items()
    }


def ablate(tube: Tube, frames: list[np.ndarray]) -> dict[str, dict]:
    options = StitchOptions(unfold=UnfoldOptions(lens="pinhole" if tube.recipe.pinhole else "equidistant"))
    learned = load_matchers(MatchOptions(matchers=("loftr", "loftr-tube")), [])
    tracker, views = Tracker(options, {}), {}
    survey = Survey(open_frames(frames), options)
    for _, frame in survey:
        if frame is not None:
            view = survey.views[frame.size]
            views[frame.index] = frame.view
            tracker.add(frame, view.geometry, view.shape)
    settled = settle(tracker.segments[0], tracker, options)
    segment = settled.segment
    numbers = [frame.index for frame in segment.frames]
    size = (segment.shape.width, segment.shape.height)
    piece = SegmentMap(
        np.zeros((1, 1, 3), np.uint8), None, numbers, [], settled.poses, [], segment.geometry,
        segment.shape, 0.0, 0.0 )  # fmt: skip
    found, quality = [], {name: [] for name in ("sift", "orb", *learned)}
    for place in range(1, len(numbers)):
        new, old = views[numbers[place]], views[numbers[place - 1]]
        groups = {}
        for name in quality:
            began = time.process_time()
            if name in learned:
                groups[name] = learned[name](new, old)
            else:
                groups[name] = match_features(name, new.features[name], old.features[name], 0.8)
            seconds = time.process_time() - began
            quality[name].append({**judge(tube, segment, place, groups[name]), "cpu_seconds_a_pair": seconds})
        pair = PairResult(numbers[place], numbers[place - 1], None, None, None, {}, False)
        found.append((place, groups, pair_truth(tube, piece, pair)))
    rows = {}
    for name, (matchers, match, fit) in ROWS.items():
        began, errors, counts = time.process_time(), [], []
        for place, groups, truth in found:
            pool = fill_pool(
                [groups[each] for each in matchers], size[::-1], replace(options.match, **match)
            ).matches
            p, q = through_poses(segment, settled.poses, place, pool)
            homography = ransac(p, q, size) if fit == "ransac" else dwho(p, q, pool, segment, size, fit)
            errors.append(strip_error(homography, *truth, segment.shape))
            counts.append(len(p))
        seconds = (time.process_time() - began) / len(found)
        rows[name] = {
            "m1": float(np.mean(errors)),
            "matches": float(np.mean(counts)),
            "cpu_seconds_a_pair": seconds,
        }
    for name, figures in quality.items():
        rows[f"matches of {name}"] = {
            key: float(np.mean([each[key] for each in figures])) for key in figures[0]
        }
    return rows


def judge(tube: Tube, segment, place: int, found: Matches) -> dict[str, float]:
    """How good a matcher's matches are by themselves: against the exact place of each of its points."""
    sides = [(segment.frames[each], segment.frames[each].pose) for each in (place, place - 1)]
    (new, new_pose), (old, old_pose) = sides
    geometry, shape = segment.geometry, segment.shape
    theta, z = tube.locate(new.index, geometry.to_picture(shape.to_wall(found.p), new_pose))
    truth = shape.to_pixels(geometry.to_wall(tube.project(old.index, theta, z), old_pose))
    off = found.q - truth
    off[:, 0] = np.mod(off[:, 0] + shape.width / 2, shape.width) - shape.width / 2
    error = np.nan_to_num(np.hypot(*off.T), nan=np.inf) * 1000 / shape.width
    right = error <= RIGHT
    cells = (found.p[right] * [16, 8] / [shape.width, shape.height]).astype(int)
    return {
        "matches": len(found),
        "right": float(right.sum()),
        "right_share": float(right.mean()) if len(right) else 0.0,
        "median_error": float(np.median(error[right])) if right.any() else RIGHT,
        "cells_covered": len(np.unique(cells, axis=0)) / (16 * 8),
    }


def through_poses(segment, poses: np.ndarray, place: int, pool) -> tuple[np.ndarray, np.ndarray]:
    sides = []
    for index, points in ((place, pool.p), (place - 1, pool.q)):
        xy = segment.geometry.to_picture(segment.shape.to_wall(points), segment.frames[index].pose)
        sides.append(segment.shape.to_pixels(segment.geometry.to_wall(xy, poses[index, :4])))
    shift = (poses[place, 4:] - poses[place - 1, 4:]) * segment.shape.scale
    return sides[0], sides[0] + shift + displacement(sides[0] + shift, sides[1], segment.shape.width)


def ransac(p: np.ndarray, q: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    homography = cv2.findHomography(p, q, cv2.RANSAC, 4.0)[0] if len(p) >= 4 else None
    return np.eye(3) if homography is None else homography


def dwho(p: np.ndarray, q: np.ndarray, pool, segment, size: tuple[int, int], values: dict) -> np.ndarray:
    options = replace(HomographyOptions(), **values)
    trust = pool.confidence
    if options.resolution_weight:
        trust = trust * resolution_share(segment.geometry, segment.shape, p)
    return fit_pair(p, q, trust, np.median(q - p, axis=0), size, options, (0,)).homography


if __name__ == "__main__":
    main()
