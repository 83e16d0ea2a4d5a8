"""The report: what was used, how well it fits, how far it may be trusted, in numbers and in plain words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from fewer.stitch.mosaic.survey import FrameRecord
from fewer.stitch.options import StitchOptions

if TYPE_CHECKING:
    from fewer.stitch.panorama import SegmentMap

NOTICE = "Not a medical device. For research; no diagnosis may rest on this map."


def make_report(
    maps: "Sequence[SegmentMap]",
    records: Sequence[FrameRecord],
    options: StitchOptions,
    warnings: Sequence[str],
) -> dict[str, object]:
    """JSON-able. Names of files and patients do not occur in it."""
    used = sum(record.used for record in records)
    rejected = Counter(record.reason for record in records if record.reason)
    pieces = [segment_report(piece) for piece in maps]
    words = list(warnings)
    if len(maps) > 1:
        words.append(f"tracking was lost: the map has {len(maps)} segments whose distance is not known")
    for number, piece in enumerate(maps):
        around = float((piece.provenance.frame >= 0).any(axis=0).mean())
        if around < 0.6:
            words.append(
                f"segment {number} shows only {around:.0%} of the way round: "
                "is this a tube, and is the lens right?"
            )
    if used < 0.6 * len(records):
        words.append(f"only {used} of {len(records)} frames could be used")
    return {
        "notice": NOTICE,
        "frames": len(records),
        "frames_used": used,
        "frames_rejected": dict(rejected),
        "segments": pieces,
        "warnings": words,
        "density_modes": {
            "sampling": _mode(options.homography.sample_gamma),
            "fit": _mode(options.homography.fit_gamma),
        },
        "options": _plain(asdict(options)),
        "records": [
            {
                "frame": record.index,
                "seconds": round(record.seconds, 4),
                "status": "used" if record.used else "rejected",
                "reason": record.reason,
                "sharpness": _number(record.quality.sharpness),
                "highlight": _number(record.quality.highlight),
            }
            for record in records
        ],
    }


def segment_report(piece: "SegmentMap") -> dict[str, object]:
    """Figures of one segment; RMSE in strip pixels, lengths in tube circumferences."""
    fits = [pair.fit for pair in piece.pairs]
    good = [fit for fit in fits if fit.ok]
    matchers: Counter[str] = Counter()
    for pair in piece.pairs:
        matchers.update(pair.counts)
    seen = piece.provenance.frame >= 0
    circumference = piece.image.shape[1]
    return {
        "first_frame": piece.frames[0],
        "last_frame": piece.frames[-1],
        "first_seconds": round(piece.seconds[0], 4),
        "last_seconds": round(piece.seconds[-1], 4),
        "frames": len(piece.frames),
        "width": circumference,
        "height": piece.image.shape[0],
        "length_in_circumferences": _number(piece.image.shape[0] / circumference),
        "pairs": len(fits),
        "pairs_failed": len(fits) - len(good),
        "loops": sum(pair.loop for pair in piece.pairs),
        "rmse": _statistics([fit.rmse for fit in good]),
        "held_out_rmse": _statistics([fit.held_out_rmse for fit in good]),
        "corner_sigma": _statistics([fit.sigma for fit in good]),
        "models": dict(Counter(fit.model for fit in fits)),
        "matches": dict(matchers),
        "coverage": _number(float(seen.mean())),
        "pose_rms": _number(piece.rms),
        "focal": _number(piece.geometry.lens.focal),
        "unwrap": piece.geometry.mode,
        "strip": {
            "width": piece.shape.width,
            "height": piece.shape.height,
            "first_depth": piece.shape.first_depth,
        },
        "poses": [[_number(value) for value in row] for row in piece.poses.tolist()],
    }


def _statistics(values: list[float]) -> dict[str, float | None]:
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return {"mean": None, "median": None, "p95": None}
    return {
        "mean": _number(float(finite.mean())),
        "median": _number(float(np.median(finite))),
        "p95": _number(float(np.quantile(finite, 0.95))),
    }


def _mode(gamma: float) -> str:
    name = "consensus" if gamma > 0 else "balanced" if gamma < 0 else "none"
    return f"{name} (gamma {gamma:g})"


def _number(value: float) -> float:
    return float(f"{value:.6g}") if np.isfinite(value) else 0.0


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: _plain(item)
            for key, item in value.items()
            if key not in ("mask", "weights", "student_weights", "tube_weights")
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
