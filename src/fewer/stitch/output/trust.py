"""Of each frame on the map: how far its place may be trusted, and which stretch of the wall it shows."""

import numpy as np
from jaxtyping import Float

from fewer.stitch.panorama import SegmentMap

_POINTS = 36


def frame_errors(segment: SegmentMap) -> Float[np.ndarray, "frames"]:
    """Map pixels by which a frame and its neighbours disagree, on matches that no fit saw; the worse of the
    two neighbours counts. NaN where neither pair was fitted.
    """
    places = {frame: place for place, frame in enumerate(segment.frames)}
    worst = np.full(len(places), np.nan)
    for pair in segment.pairs:
        error = pair.fit.held_out_rmse if np.isfinite(pair.fit.held_out_rmse) else pair.fit.rmse
        if not pair.fit.ok or pair.loop or places[pair.new] - places[pair.old] != 1:
            continue
        for frame in (pair.new, pair.old):
            worst[places[frame]] = np.fmax(worst[places[frame]], error)
    return worst * segment.image.shape[1] / segment.shape.width


def frame_outline(segment: SegmentMap, place: int) -> Float[np.ndarray, "points 2"]:
    """What frame number `place` of the segment shows, on the map (x, y): the edge of its field, then back
    along the far end of its strip. x may leave the map on either side: columns go round.
    """
    geometry, pose = segment.geometry, segment.poses[place]
    scale = segment.image.shape[1] / (2 * np.pi)
    around = np.linspace(0, 2 * np.pi, _POINTS + 1)
    rim = np.stack([np.cos(around), np.sin(around)], axis=1) * geometry.field_radius
    near = geometry.to_wall(np.array(geometry.centre) + rim, pose[:4])
    near[:, 0] = np.unwrap(near[:, 0])
    far = np.column_stack([near[::-1, 0], np.full(len(near), geometry.far_depth())])
    wall = np.concatenate([near, far]) + pose[4:]
    return (wall - [0, segment.top]) * scale


def by_frame(segment: SegmentMap, values: np.ndarray) -> Float[np.ndarray, "frames"]:
    """A table that a frame's number in the video leads into; NaN for frames that are not on the map."""
    table = np.full(max(segment.frames) + 1, np.nan)
    table[segment.frames] = values
    return table
