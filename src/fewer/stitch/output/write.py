"""Files of a finished map. Names are ours alone: nothing of the video's name or of a patient's enters
them.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from fewer.core.errors import FileError
from fewer.core.files import write_bytes, write_json
from fewer.stitch.output.marks import DepthScale, depth_scale
from fewer.stitch.output.page import render_page
from fewer.stitch.output.pyramid import write_deep_zoom
from fewer.stitch.output.trust import by_frame, frame_errors, frame_outline
from fewer.stitch.panorama import Panorama, SegmentMap

PictureFormat = Literal["png", "tiff"]


def write_panorama(
    panorama: Panorama,
    folder: Path,
    picture_format: PictureFormat = "png",
    marks: tuple[str, ...] = (),
    deep_zoom: bool = False,
) -> dict[str, object]:
    """Writes everything into `folder` (made if needed); returns the paths and the headline figures.

    pano_K.png|tiff, prov_K.npz (frame int32, x, y float32, seconds, error), segments.json, frames.json,
    report.json, report.html; with `deep_zoom` also pano_K.dzi and its tiles.
    """
    scales = [depth_scale(marks, segment) for segment in panorama.segments]
    panorama = _told(panorama, marks, scales)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder.name}: cannot be made as a folder ({error.strerror}); give another --output"
        ) from error
    pictures, entries = [], []
    for number, segment in enumerate(panorama.segments):
        name = f"pano_{number}.{'png' if picture_format == 'png' else 'tiff'}"
        write_bytes(folder / name, encode_picture(segment.image, picture_format))
        write_provenance(folder / f"prov_{number}.npz", segment)
        pictures.append(str(folder / name))
        if deep_zoom:
            write_deep_zoom(segment.image, folder, f"pano_{number}")
        entries.append(_entry(number, name, segment, scales[number]))
    _remove_older(folder, {path.name for path in map(Path, pictures)}, len(entries), deep_zoom)
    write_json(folder / "segments.json", {"segments": entries})
    write_json(folder / "frames.json", {"frames": panorama.report["records"], "placed": _placed(panorama)})
    report = {**panorama.report, "depth": [entry["depth"] for entry in entries]}
    write_json(folder / "report.json", report)
    write_bytes(folder / "report.html", render_page(panorama, scales).encode("utf-8"))
    return {
        "output": str(folder),
        "pictures": pictures,
        "page": str(folder / "report.html"),
        "frames": panorama.report["frames"],
        "frames_used": panorama.report["frames_used"],
        "segments": len(panorama.segments),
        "warnings": panorama.report["warnings"],
    }


def _told(panorama: Panorama, marks: tuple[str, ...], scales: list[DepthScale | None]) -> Panorama:
    """With a warning for each segment that marks were given for in vain."""
    if not marks:
        return panorama
    words = [
        f"segment {number} has no depth in centimetres: fewer than two marks fall into its "
        f"{segment.seconds[0]:.1f} to {segment.seconds[-1]:.1f} s, or the camera stood still between them"
        for number, (segment, scale) in enumerate(zip(panorama.segments, scales, strict=True))
        if scale is None
    ]
    known = panorama.report["warnings"]
    return replace(panorama, report={**panorama.report, "warnings": [*known, *words]})  # pyright: ignore


def _remove_older(folder: Path, pictures: set[str], count: int, deep_zoom: bool) -> None:
    """Maps that an earlier run left here and this one did not write again: they are of another video."""
    for path in folder.iterdir():
        match = re.fullmatch(r"(pano|prov)_(\d+)(\.png|\.tiff|\.npz|\.dzi|_files)", path.name)
        if match is None:
            continue
        kind, ending = match[1], match[3]
        if kind == "pano" and ending in (".png", ".tiff"):
            stays = path.name in pictures
        else:
            stays = int(match[2]) < count and (ending == ".npz" or deep_zoom)
        if stays:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def encode_picture(image: np.ndarray, picture_format: PictureFormat) -> bytes:
    """PNG or deflated TIFF without any metadata. The picture is not copied: a long map is large."""
    settings = (
        [cv2.IMWRITE_PNG_COMPRESSION, 4]
        if picture_format == "png"
        else [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE]
    )
    return cv2.imencode(f".{picture_format}", image, settings)[1].tobytes()


def write_provenance(path: Path, segment: SegmentMap) -> None:
    """For each map pixel `frame`, `x`, `y`; for each frame its time `seconds` and its `error`, so that
    `seconds[frame]` and `error[frame]` are the time and the certainty (map pixels) of every map pixel.

    Compressed piece by piece into a file beside it, which then takes its name.
    """
    unfinished = path.with_name(path.name + ".part")
    provenance = segment.provenance
    seconds = by_frame(segment, np.array(segment.seconds))
    error = by_frame(segment, frame_errors(segment))
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file, frame=provenance.frame, x=provenance.x, y=provenance.y, seconds=seconds, error=error
        )
    unfinished.replace(path)


def _entry(number: int, name: str, segment: SegmentMap, scale: DepthScale | None) -> dict[str, object]:
    lens = segment.geometry.lens
    return {
        "id": number,
        "first_frame": segment.frames[0],
        "last_frame": segment.frames[-1],
        "first_seconds": segment.seconds[0],
        "last_seconds": segment.seconds[-1],
        "width": segment.image.shape[1],
        "height": segment.image.shape[0],
        "picture": name,
        "provenance": f"prov_{number}.npz",
        "unwrap": segment.geometry.mode,
        "lens": {"model": lens.model, "focal": lens.focal, "coefficients": list(lens.coefficients)},
        "field": {"centre": list(segment.geometry.centre), "radius": segment.geometry.field_radius},
        "strip": {
            "width": segment.shape.width,
            "height": segment.shape.height,
            "first_depth": segment.shape.first_depth,
        },
        "depth": None if scale is None else {"top_cm": scale.top_cm, "cm_per_row": scale.cm_per_row},
    }


def _placed(panorama: Panorama) -> list[dict[str, object]]:
    """Pose of every used frame, the RMSE of the pair that placed it, how far that may be trusted (map
    pixels), and the outline on the map of what the frame shows.
    """
    out = []
    for number, segment in enumerate(panorama.segments):
        rmse = {pair.new: pair.fit.rmse for pair in reversed(segment.pairs) if pair.fit.ok}
        errors = frame_errors(segment)
        for place, frame in enumerate(segment.frames):
            out.append(
                {
                    "frame": frame,
                    "seconds": segment.seconds[place],
                    "segment": number,
                    "pose": [float(value) for value in segment.poses[place]],
                    "rmse": float(rmse[frame]) if frame in rmse else None,
                    "error": float(errors[place]) if np.isfinite(errors[place]) else None,
                    "outline": frame_outline(segment, place).round(1).tolist(),
                }
            )
    return out
