"""M1-M6: how far a map of the rendered tube is from the truth. Millimetres, except M1 (pixels of a
1000-column strip).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from fewer.stitch.homography.project import apply
from fewer.stitch.mosaic.pairs import PairResult
from fewer.stitch.panorama import SegmentMap
from fewer.stitch.tube.render import Tube
from fewer.stitch.unfold.strip import StripShape

_STRIP = 1000.0
_REACH_MM = 35.0
_CLIP = 200.0


@dataclass(frozen=True, slots=True)
class MapError:
    """M2: error of map pixels against the best affine map onto (theta R, z), mm."""

    rmse: float
    p95: float
    affine: Float[np.ndarray, "3 2"]


def pair_truth(
    tube: Tube, segment: SegmentMap, pair: PairResult, count: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Random points of the new frame's strip and where they truly lie in the old frame's strip (strip
    pixels).
    """
    random = np.random.default_rng([pair.new, pair.old, 5])
    places = {frame: place for place, frame in enumerate(segment.frames)}
    poses, geometry, shape = segment.poses, segment.geometry, segment.shape
    p = random.uniform([0, 0], [shape.width, shape.height], (count, 2))
    xy = geometry.to_picture(shape.to_wall(p), poses[places[pair.new], :4])
    inside = np.hypot(*(xy - tube.centre).T) < tube.field_radius - 2
    theta, z = tube.locate(pair.new, xy[inside])
    near = np.abs(z - tube.pose(pair.new).origin[2]) < _REACH_MM
    target = tube.project(pair.old, theta, z)
    good = near & np.isfinite(target).all(axis=1)
    q = shape.to_pixels(geometry.to_wall(target[good], poses[places[pair.old], :4]))
    return p[inside][good], q


def strip_error(
    homography: Float[np.ndarray, "3 3"], p: np.ndarray, q: np.ndarray, shape: StripShape
) -> float:
    """M1 of one pair: RMS of |H p - q|, clipped at 200, scaled to a strip of 1000 columns."""
    if not len(p):
        return float("nan")
    off = apply(homography, p) - q
    off[:, 0] = np.mod(off[:, 0] + shape.width / 2, shape.width) - shape.width / 2
    error = np.hypot(off[:, 0], off[:, 1]) * _STRIP / shape.width
    return float(np.sqrt((np.minimum(error, _CLIP) ** 2).mean()))


def pair_errors(tube: Tube, segment: SegmentMap) -> Float[np.ndarray, "pairs"]:
    """M1 of the pairs of neighbouring frames that were kept."""
    step = {frame: place for place, frame in enumerate(segment.frames)}
    chosen = [pair for pair in segment.pairs if pair.fit.ok and step[pair.new] - step[pair.old] == 1]
    return np.array(
        [strip_error(pair.fit.homography, *pair_truth(tube, segment, pair), segment.shape) for pair in chosen]
    )


def source_truth(
    tube: Tube, segment: SegmentMap, every: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map pixels (x, y), the truth (theta R, z) in mm of their source pixels, and their frame."""
    provenance = segment.provenance
    rows, columns = np.nonzero(provenance.frame[::every, ::every] >= 0)
    rows, columns = rows * every, columns * every
    frames = provenance.frame[rows, columns]
    xy = np.stack([provenance.x[rows, columns], provenance.y[rows, columns]], axis=1).astype(np.float64)
    truth = np.zeros((len(rows), 2))
    for frame in np.unique(frames):
        chosen = frames == frame
        theta, z = tube.locate(int(frame), xy[chosen])
        truth[chosen] = np.stack([theta * tube.shape.radius, z], axis=1)
    return np.stack([columns, rows], axis=1).astype(np.float64), truth, frames


def map_error(
    pixels: Float[np.ndarray, "points 2"],
    truth: Float[np.ndarray, "points 2"],
    width: int,
    radius: float = 10.0,
) -> MapError:
    """M2. theta is known up to full turns: they are taken out along the map's own columns, then one affine
    fit.
    """
    around = 2 * np.pi * radius
    guess = pixels[:, 0] * around / width
    # a common offset first (circular mean), so that no point lies at the cut
    phase = (truth[:, 0] - guess) * 2 * np.pi / around
    offset = np.angle(np.exp(1j * phase).mean()) * around / (2 * np.pi)
    unrolled = truth.copy()
    difference = truth[:, 0] - guess - offset
    unrolled[:, 0] -= around * np.round(difference / around)
    design = np.column_stack([pixels, np.ones(len(pixels))])
    affine, *_ = np.linalg.lstsq(design, unrolled, rcond=None)
    error = np.hypot(*(design @ affine - unrolled).T)
    return MapError(float(np.sqrt((error**2).mean())), float(np.quantile(error, 0.95)), affine)


def drift(
    pixels: np.ndarray, truth: np.ndarray, frames: np.ndarray, width: int, radius: float = 10.0
) -> float:
    """M5: RMS at the map's last tenth (by frame) after taking out the fit of its first tenth; a rigid fit
    plus scale 1.
    """
    first, last = np.quantile(frames, [0.1, 0.9])
    around = 2 * np.pi * radius
    scale = around / width
    predicted = pixels * scale
    off = truth - predicted
    off[:, 0] = np.angle(np.exp(1j * off[:, 0] / radius)) * radius
    start = off[frames <= first]
    phase = np.angle(np.exp(1j * start[:, 0] / radius).mean()) * radius
    end = off[frames >= last] - [phase, start[:, 1].mean()]
    end[:, 0] = np.angle(np.exp(1j * end[:, 0] / radius)) * radius
    return float(np.hypot(*end.mean(axis=0)))


def texture_similarity(tube: Tube, segment: SegmentMap, error: MapError) -> float:
    """M3: SSIM (7 x 7, grey) of the map against the true texture seen through the fitted affine map."""
    rows, columns = np.indices(segment.image.shape[:2])
    design = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], axis=1)
    place = design @ error.affine
    truth = tube.texture.sample(place[:, 0] / tube.shape.radius, place[:, 1]).reshape(*rows.shape, 3)
    seen = segment.provenance.frame >= 0
    true = cv2.cvtColor(truth.astype(np.uint8), cv2.COLOR_BGR2GRAY).astype(np.float64)
    return _matched_similarity(segment.image, true, seen)


def source_similarity(tube: Tube, segment: SegmentMap, columns: int = 256) -> float:
    """SSIM of the map's first columns against the texture at the true places of their source pixels.

    Where M3 also pays for a millimetre's shift of the whole, this asks only whether what was painted is what
    the wall looks like there: it falls with double vessels, blur and wrong light, not with placement.
    """
    provenance, image = segment.provenance, segment.image[:, :columns]
    rows, across = np.nonzero(provenance.frame[:, :columns] >= 0)
    frames = provenance.frame[rows, across]
    xy = np.stack([provenance.x[rows, across], provenance.y[rows, across]], axis=1).astype(np.float64)
    true = np.zeros(image.shape[:2])
    for frame in np.unique(frames):
        chosen = frames == frame
        colour = tube.texture.sample(*tube.locate(int(frame), xy[chosen])).astype(np.float32)
        true[rows[chosen], across[chosen]] = cv2.cvtColor(colour[None], cv2.COLOR_BGR2GRAY)[0]
    return _matched_similarity(image, true, provenance.frame[:, :columns] >= 0)


def _matched_similarity(image: np.ndarray, true: np.ndarray, seen: np.ndarray) -> float:
    """Mean SSIM where seen, with mean and spread of the picture matched to those of the truth."""
    ours = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY).astype(np.float64)
    mean, spread = ours[seen].mean(), max(ours[seen].std(), 1e-9)
    ours = np.where(seen, (ours - mean) / spread * true[seen].std() + true[seen].mean(), 0)
    similar = ssim_map(ours, np.where(seen, true, 0))
    inner = cv2.erode(seen.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    return float(similar[inner].mean())


def ssim_map(
    first: Float[np.ndarray, "height width"], second: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width"]:
    """Structural similarity with a uniform 7 x 7 window and data range 255 (Wang et al. 2004)."""
    window = 49

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (7, 7))

    mu_first, mu_second = mean(first), mean(second)
    unbiased = window / (window - 1)
    var_first = unbiased * (mean(first * first) - mu_first**2)
    var_second = unbiased * (mean(second * second) - mu_second**2)
    cov = unbiased * (mean(first * second) - mu_first * mu_second)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mu_first * mu_second + c1) * (2 * cov + c2)
    return top / ((mu_first**2 + mu_second**2 + c1) * (var_first + var_second + c2))


def coverage(tube: Tube, segment: SegmentMap, error: MapError) -> float:
    """M4: share of the wall within the blended reach of any used frame that the map holds.

    Visible means: inside the field of a used frame and not deeper than the map's own far limit of that frame.
    """
    around = 2 * np.pi * tube.shape.radius
    low = min(tube.pose(index).origin[2] for index in segment.frames)
    high = max(tube.pose(index).origin[2] for index in segment.frames) + 10.0
    theta, z = np.meshgrid(np.linspace(0, 2 * np.pi, 90, endpoint=False), np.arange(low, high, 0.7))
    theta, z = theta.ravel(), z.ravel()
    visible = np.zeros(len(z), bool)
    for index in segment.frames:
        ahead = z - tube.pose(index).origin[2]
        near = (ahead > 0) & (ahead < 1.2 * tube.shape.radius)
        xy = tube.project(index, theta[near], z[near])
        visible[np.flatnonzero(near)[np.isfinite(xy).all(axis=1)]] = True
    inverse = np.linalg.inv(np.column_stack([error.affine, [0, 0, 1]]))
    target = np.column_stack([theta * tube.shape.radius, z, np.ones(len(z))])
    place = target @ inverse
    width = segment.image.shape[1]
    turn = around * inverse[0, :2]
    column = np.round(place[:, 0] - width * np.floor(place[:, 0] / width)).astype(int) % width
    row = np.round(place[:, 1] - turn[1] * np.floor(place[:, 0] / width)).astype(int)
    inside = (row >= 0) & (row < segment.image.shape[0])
    held = np.zeros(len(z), bool)
    held[inside] = segment.provenance.frame[row[inside], column[inside]] >= 0
    return float((held & visible).sum() / max(visible.sum(), 1))
