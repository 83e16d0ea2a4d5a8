"""The benchmark "tube": our map, OpenCV's Stitcher and a plain SIFT + RANSAC chain against exact ground
truth.

    python benchmarks/stitch_tube.py --variants A B C D E F --seeds 0 1 2
        --output benchmarks/results/stitch_tube.json

M1 is in pixels of a strip of 1000 columns, M2 and M5 in millimetres. `--cache DIR` keeps rendered frames.
"""
# bench: cpu, 60 min: --output benchmarks/results/stitch_tube.json

import argparse
import json
import os
import platform
import time
from pathlib import Path

import cv2
import numpy as np

from fewer.stitch.homography.project import apply
from fewer.stitch.match.features import equalise
from fewer.stitch.options import StitchOptions, UnfoldOptions
from fewer.stitch.panorama import Panorama, SegmentMap, stitch
from fewer.stitch.tube.metrics import (
    coverage,
    drift,
    map_error,
    pair_errors,
    pair_truth,
    source_similarity,
    source_truth,
    strip_error,
    texture_similarity,
)
from fewer.stitch.tube.render import Tube
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import make_lens
from fewer.stitch.unfold.strip import picture_coordinates, strip_shape, unwrap


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", nargs="+", default=list("ABCDEF"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--cache", type=Path)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["ours", "chain", "scans"],
        default=["ours", "chain", "scans"],
        help="parts of a run; the file keeps the others",
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # runs of other variants and seeds already in the file stay: long benchmarks can be run in pieces
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
    for variant in arguments.variants:
        for seed in arguments.seeds:
            tube = Tube(variant, seed=seed, frames=arguments.frames, size=arguments.size)
            frames = rendered(tube, arguments.cache)
            run = next((old for old in runs if (old["variant"], old["seed"]) == (variant, seed)), {})
            run = {**run, "variant": variant, "seed": seed}
            if "ours" in arguments.only:
                run["ours"] = ours(tube, frames)
            if "chain" in arguments.only:
                run["sift_ransac_chain"] = plain_chain(tube, frames)
            if "scans" in arguments.only:
                run["opencv_scans"] = opencv_scans(tube, frames)
            runs = [old for old in runs if (old["variant"], old["seed"]) != (variant, seed)] + [run]
            runs.sort(key=lambda each: (each["variant"], each["seed"]))
            print(json.dumps(run))
            save(arguments, runs)
    print(json.dumps(medians(runs), indent=1))


def save(arguments: argparse.Namespace, runs: list[dict]) -> None:
    facts = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "frames": arguments.frames,
        "size": arguments.size,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, "medians": medians(runs), "runs": runs}, indent=1)
    arguments.output.write_text(text)


def medians(runs: list[dict]) -> dict[str, dict]:
    """Median over the seeds of each figure of a variant; that of a run's segments is their worst."""
    out: dict[str, dict] = {}
    for variant in sorted({run["variant"] for run in runs}):
        mine = [run for run in runs if run["variant"] == variant]
        rows = [_flat(run) for run in mine]
        names = sorted({name for row in rows for name in row})
        values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
        out[variant] = {name: float(np.median(found)) for name, found in values.items() if found}
        out[variant]["seeds"] = len(mine)
    return out


def _flat(run: dict) -> dict[str, float]:
    """One row of numbers for a run."""
    row: dict[str, float] = {}
    ours = run.get("ours")
    if ours is not None:
        pieces = ours["segments"]
        row["segments"] = len(pieces)
        for name in ("m1", "m1_ransac_same_matches", "m2", "m2_p95", "m5_drift"):
            row[name] = max(piece[name] for piece in pieces)
        for name in ("m3_ssim", "ssim_at_true_places", "m4_coverage"):
            row[name] = min(piece[name] for piece in pieces)
        row["gain_over_ransac"] = 1 - max(piece["m1"] / piece["m1_ransac_same_matches"] for piece in pieces)
        for name in ("frames_used", "spoiled_frames_used", "pairs_kept", "out_and_back_mm", "cpu_seconds"):
            row[name] = ours[name]
    for peer in ("sift_ransac_chain", "opencv_scans"):
        for name in ("m1", "m2", "kept", "given"):
            if peer in run and run[peer].get(name) is not None:
                row[f"{peer}_{name}"] = run[peer][name]
    return row


def rendered(tube: Tube, cache: Path | None) -> np.ndarray:
    path = None if cache is None else cache / f"tube_{tube.variant}_{tube.frames}_{tube.seed}_{tube.size}.npy"
    if path is not None and path.exists():
        return np.load(path)
    frames = np.stack([tube.frame(index) for index in range(tube.frames)])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, frames)
    return frames


def ours(tube: Tube, frames: np.ndarray) -> dict:
    options = StitchOptions(unfold=UnfoldOptions(lens="pinhole" if tube.recipe.pinhole else "equidistant"))
    wall, cpu = time.perf_counter(), time.process_time()
    panorama = stitch(list(frames), options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    used = [frame for segment in panorama.segments for frame in segment.frames]
    spoiled = [i for i in range(tube.frames) if tube.is_blurred(i) or tube.is_burst(i)]
    return {
        "frames_used": len(used) / tube.frames,
        "spoiled_frames_used": len(set(used) & set(spoiled)),
        "segments": [segment_figures(tube, segment) for segment in panorama.segments],
        "pairs_kept": pairs_kept(panorama),
        "out_and_back_mm": out_and_back(tube, panorama.segments[0]) if tube.recipe.returns else None,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "frames_per_second": tube.frames / wall,
    }


def segment_figures(tube: Tube, segment: SegmentMap) -> dict:
    pixels, truth, frames = source_truth(tube, segment)
    error = map_error(pixels, truth, segment.image.shape[1])
    same_matches = [ransac_error(tube, segment, pair) for pair in neighbours(segment)]
    return {
        "frames": len(segment.frames),
        "m1": float(pair_errors(tube, segment).mean()),
        "m1_ransac_same_matches": float(np.mean(same_matches)),
        "m2": error.rmse,
        "m2_p95": error.p95,
        "m3_ssim": texture_similarity(tube, segment, error),
        "ssim_at_true_places": source_similarity(tube, segment),
        "m4_coverage": coverage(tube, segment, error),
        "m5_drift": drift(pixels, truth, frames, segment.image.shape[1]),
    }


def neighbours(segment: SegmentMap) -> list:
    place = {frame: number for number, frame in enumerate(segment.frames)}
    return [pair for pair in segment.pairs if pair.fit.ok and place[pair.new] - place[pair.old] == 1]


def ransac_error(tube: Tube, segment: SegmentMap, pair) -> float:
    """M1 of cv2.findHomography(RANSAC, 4) on the matches that our fit had."""
    width = segment.shape.width
    shift = apply(pair.fit.homography, pair.p) - pair.p
    near = pair.q + width * np.round((pair.p + shift - pair.q) / width * [1, 0])
    homography, _ = cv2.findHomography(pair.p, near, cv2.RANSAC, 4.0)
    homography = np.eye(3) if homography is None else homography
    return strip_error(homography, *pair_truth(tube, segment, pair), segment.shape)


def pairs_kept(panorama: Panorama) -> float:
    pairs = [pair for segment in panorama.segments for pair in segment.pairs]
    return float(np.mean([pair.fit.ok for pair in pairs]))


def out_and_back(tube: Tube, segment: SegmentMap) -> float:
    """RMS distance (mm) on the map between where the way out and the way back put the same wall points."""
    places = {frame: number for number, frame in enumerate(segment.frames)}
    turn = tube.frames // 2
    depth = np.array([tube.pose(frame).origin[2] for frame in segment.frames])
    errors = []
    for frame in [f for f in segment.frames if f < turn][::3]:
        later = [f for f in segment.frames if f > turn + 3]
        other = min(later, key=lambda f: abs(depth[places[f]] - depth[places[frame]]))
        theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        z = np.full(40, tube.pose(frame).origin[2] + 9.0)
        put = []
        for each in (frame, other):
            xy = tube.project(each, theta, z)
            pose = segment.poses[places[each]]
            put.append(segment.geometry.to_wall(np.nan_to_num(xy), pose[:4]) + pose[4:])
            put[-1][np.isnan(xy).any(axis=1)] = np.nan
        off = put[0] - put[1]
        off[:, 0] = np.angle(np.exp(1j * off[:, 0]))
        errors.append(off[np.isfinite(off).all(axis=1)] * tube.shape.radius)
    return float(np.sqrt((np.concatenate(errors) ** 2).sum(axis=1).mean()))


def linear_strips(tube: Tube, frames: np.ndarray) -> tuple[Geometry, object, list[np.ndarray]]:
    """The published unwrapping: linear in the radius, round the middle of the picture."""
    options = UnfoldOptions(unwrap="linear")
    lens = make_lens(options, tube.field_radius)
    geometry = Geometry("linear", lens, (tube.centre, tube.centre), tube.field_radius, 1.0)
    shape = strip_shape(geometry, 1000, far=0.7)
    places = picture_coordinates(geometry, shape, np.zeros(4))
    return geometry, shape, [unwrap(frame, places) for frame in frames]


def plain_chain(tube: Tube, frames: np.ndarray) -> dict:
    """SIFT(3000), ratio 0.8, cv2 RANSAC 4 px, M_i = M_(i-1) H: what one writes in an afternoon."""
    began = time.perf_counter()
    geometry, shape, strips = linear_strips(tube, frames)
    detector = cv2.SIFT_create(3000, contrastThreshold=0.01)
    found = [detector.detectAndCompute(equalise(strip), None) for strip in strips]
    matcher, chain, errors, failed = cv2.BFMatcher(), [np.eye(3)], [], 0
    for new in range(1, len(found)):
        pairs = matcher.knnMatch(found[new][1], found[new - 1][1], k=2)
        good = [a for a, b in pairs if a.distance < 0.8 * b.distance]
        p = np.array([found[new][0][m.queryIdx].pt for m in good])
        q = np.array([found[new - 1][0][m.trainIdx].pt for m in good])
        homography = cv2.findHomography(p, q, cv2.RANSAC, 4.0)[0] if len(good) >= 4 else None
        failed += homography is None
        homography = np.eye(3) if homography is None else homography
        chain.append(chain[-1] @ homography)
        errors.append(chain_pair_error(tube, geometry, shape, new, homography))
    return {
        "m1": float(np.nanmean(errors)),
        "m2": chain_map_error(tube, geometry, shape, chain, range(len(chain))),
        "pairs_failed": int(failed),
        "wall_seconds": time.perf_counter() - began,
    }


def chain_pair_error(tube: Tube, geometry: Geometry, shape, new: int, homography: np.ndarray) -> float:
    p = np.random.default_rng([new, 5]).uniform([0, 0], [shape.width, shape.height], (400, 2))
    theta, z = tube.locate(new, geometry.to_picture(shape.to_wall(p), np.zeros(4)))
    target = tube.project(new - 1, theta, z)
    good = np.isfinite(target).all(axis=1) & (np.abs(z - tube.pose(new).origin[2]) < 35)
    q = shape.to_pixels(geometry.to_wall(target[good], np.zeros(4)))
    return strip_error(homography, p[good], q, shape)


def chain_map_error(tube: Tube, geometry: Geometry, shape, chain: list, frames: range | list) -> float:
    """M2 of where the chain puts the near third of each strip."""
    put, truth = [], []
    for number, frame in enumerate(frames):
        p = np.random.default_rng([frame, 6]).uniform([0, 5], [shape.width, shape.height / 3], (60, 2))
        theta, z = tube.locate(frame, geometry.to_picture(shape.to_wall(p), np.zeros(4)))
        put.append(apply(chain[number], p))
        truth.append(np.stack([theta * tube.shape.radius, z], axis=1))
    return map_error(np.concatenate(put), np.concatenate(truth), shape.width).rmse


def opencv_scans(tube: Tube, frames: np.ndarray) -> dict:
    """cv2.Stitcher in scans mode on every second strip (its matching is quadratic in the number of
    pictures).
    """
    began = time.perf_counter()
    geometry, shape, strips = linear_strips(tube, frames)
    chosen = list(range(0, len(strips), 2))
    stitcher = cv2.Stitcher_create(cv2.Stitcher_SCANS)
    stitcher.setRegistrationResol(-1)
    cv2.setRNGSeed(0)
    try:
        status = stitcher.estimateTransform([strips[index] for index in chosen])
    except cv2.error as error:
        return {"status": str(error.err)[:80], "kept": 0, "wall_seconds": time.perf_counter() - began}
    result = {"status": int(status), "given": len(chosen), "wall_seconds": time.perf_counter() - began}
    if status != cv2.Stitcher_OK:
        return {**result, "kept": 0}
    kept = [chosen[int(index)] for index in np.ravel(stitcher.component())]
    placed = [np.asarray(camera.R, np.float64) for camera in stitcher.cameras()]
    # whichever direction the matrices have: the better reading counts
    errors = [
        chain_map_error(tube, geometry, shape, matrices, kept)
        for matrices in (placed, [np.linalg.inv(matrix) for matrix in placed])
    ]
    return {**result, "kept": len(kept), "m2": float(np.nanmin(errors))}


if __name__ == "__main__":
    main()
