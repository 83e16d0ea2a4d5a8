"""Endoscopy video -> one map of the tube's wall, with the frame and place every map pixel came from."""

from importlib import import_module

_PUBLIC = {
    "stitch": "fewer.stitch.panorama",
    "Panorama": "fewer.stitch.panorama",
    "SegmentMap": "fewer.stitch.panorama",
    "StitchOptions": "fewer.stitch.options",
    "SelectOptions": "fewer.stitch.options",
    "UnfoldOptions": "fewer.stitch.options",
    "MatchOptions": "fewer.stitch.options",
    "HomographyOptions": "fewer.stitch.options",
    "TrackOptions": "fewer.stitch.options",
    "BlendOptions": "fewer.stitch.options",
    "Frame": "fewer.stitch.frames.source",
    "Tube": "fewer.stitch.tube.render",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
