"""One HTML file with everything inside: the map to zoom, a click leads to the frame and the time, the
figures.

No network, no other file; the content policy allows only the script whose hash it names. All text is set as
text.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fewer.stitch.output.marks import DepthScale
from fewer.stitch.output.trust import frame_errors, frame_outline
from fewer.stitch.panorama import Panorama, SegmentMap

_CELL = 4  # provenance is kept for one map pixel in 4 x 4, of long maps for fewer
_MOST_CELLS = 1_500_000
_MAX_SIDE = 16384  # what browsers paint in one piece
_MOST_OUTLINES = 3000  # half a kilobyte each
_FOLDER = Path(__file__).parent


def render_page(panorama: Panorama, scales: Sequence[DepthScale | None]) -> str:
    """The page as text."""
    data = {
        "report": _headline(panorama),
        "segments": [_segment(piece, scale) for piece, scale in zip(panorama.segments, scales, strict=True)],
        "thumbnails": {
            str(frame): {
                "picture": base64.b64encode(small.jpeg).decode("ascii"),
                "left": small.left,
                "top": small.top,
                "side": small.side,
            }
            for frame, small in panorama.thumbnails.items()
        },
    }
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    # Neither "</" nor "<!--", which would hide the element's end: JSON allows the escaped sign.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = (_FOLDER / "page.html").read_text(encoding="utf-8")
    for name, value in (("%DIGEST%", digest), ("%DATA%", text), ("%SCRIPT%", script)):
        page = page.replace(name, value, 1)
    return page


def _headline(panorama: Panorama) -> dict[str, object]:
    report = panorama.report
    rows = []
    for piece in report["segments"]:  # pyright: ignore[reportGeneralTypeIssues]
        rows.append(
            {
                key: piece[key]
                for key in ("frames", "pairs", "coverage", "pose_rms", "length_in_circumferences")
            }
        )
        rows[-1]["held_out_rmse"] = piece["held_out_rmse"]["median"]
        rows[-1]["rmse"] = piece["rmse"]["median"]
    return {
        "notice": report["notice"],
        "warnings": report["warnings"],
        "frames": report["frames"],
        "frames_used": report["frames_used"],
        "frames_rejected": report["frames_rejected"],
        "segments": rows,
    }


def _segment(piece: SegmentMap, scale: DepthScale | None) -> dict[str, object]:
    image = piece.image
    shrink = min(1.0, _MAX_SIDE / max(image.shape[:2]))
    if shrink < 1:
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    picture = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    provenance = piece.provenance
    cell = max(_CELL, math.ceil(math.sqrt(piece.image.shape[0] * piece.image.shape[1] / _MOST_CELLS)))
    frame = provenance.frame[::cell, ::cell].astype("<i4")
    place = np.stack([provenance.x[::cell, ::cell], provenance.y[::cell, ::cell]], axis=-1)
    return {
        "picture": base64.b64encode(picture).decode("ascii"),
        "width": piece.image.shape[1],
        "height": piece.image.shape[0],
        "cell": cell,
        "columns": frame.shape[1],
        "frame": base64.b64encode(frame.tobytes()).decode("ascii"),
        "place": base64.b64encode(np.clip(np.round(place), -1, 32767).astype("<i2").tobytes()).decode(
            "ascii"
        ),
        "seconds": {
            str(number): round(time, 3) for number, time in zip(piece.frames, piece.seconds, strict=True)
        },
        "error": {
            str(number): round(float(error), 2)
            for number, error in zip(piece.frames, frame_errors(piece), strict=True)
            if np.isfinite(error)
        },
        "outline": {
            str(number): frame_outline(piece, place).round().astype(int).tolist()
            for place, number in enumerate(piece.frames[:_MOST_OUTLINES])
        },
        "depth": None if scale is None else [scale.top_cm, scale.cm_per_row],
    }
