"""Renders ten frames of a tube, stitches them, and compares the map with the truth."""

from pathlib import Path

import numpy as np

from fewer.stitch import StitchOptions, Tube, UnfoldOptions, stitch
from fewer.stitch.output.write import write_panorama
from fewer.stitch.tube.metrics import map_error, source_truth


def main() -> None:
    tube = Tube("B", seed=1, frames=10, size=240)
    frames = [tube.frame(index) for index in range(tube.frames)]
    panorama = stitch(frames, StitchOptions(unfold=UnfoldOptions(width=400, strip_width=400)))
    result = write_panorama(panorama, Path("tube-map"))
    segment = panorama.segments[0]
    pixels, truth, _ = source_truth(tube, segment)
    error = map_error(pixels, truth, segment.image.shape[1])
    row, column = np.argwhere(panorama.provenance.frame >= 0)[1000]
    frame, x, y = panorama.provenance.locate(int(column), int(row))
    print(f"{result['frames_used']} of {result['frames']} frames used; open {result['page']}")
    print(f"map pixel ({column}, {row}) shows frame {frame} at x {x:.1f}, y {y:.1f}")
    print(f"error of the map against the truth: {error.rmse:.2f} mm")


if __name__ == "__main__":
    main()
