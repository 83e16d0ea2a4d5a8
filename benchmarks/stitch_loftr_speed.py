"""Frames a second of the small LoFTRs on strips as the tube benchmark has them (padded: 960 x 256 pixels).

    python benchmarks/stitch_loftr_speed.py --device cuda

A frame: its grey strip goes to the device, is described, compared with the frame before, and the mutual
matches come back. Unrolling and refinement (OpenCV, on the CPU) are not part of it.
"""
# bench: gpu, 1 min: --device cuda

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fewer.stitch.match.coarse import MULTIPLE, as_input, coarse_matches
from fewer.stitch.match.loftr import TUBE_WEIGHTS, WEIGHTS, CoarseLoFTR, load_tiny_loftr
from fewer.stitch.match.windows import windows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    strips = np.random.default_rng(0).integers(0, 256, (8, 256, 960), dtype=np.uint8)
    figures: dict[str, object] = {"torch": torch.__version__, "strip": [960, 256]}
    if options.device == "cuda":
        figures["card"] = torch.cuda.get_device_name()
    for name, model in (("student", load_tiny_loftr(WEIGHTS)), ("tube", load_tiny_loftr(TUBE_WEIGHTS))):
        model = model.to(options.device)
        rounds = [
            frames_per_second(model, strips, options.frames, options.device) for _ in range(options.rounds)
        ]
        figures[name] = {"frames_per_second": statistics.median(rounds[1:]), "rounds": rounds}
    print(json.dumps(figures))
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


def frames_per_second(model: CoarseLoFTR, strips: np.ndarray, frames: int, device: str) -> float:
    held: list = []
    ranges = list(windows(strips.shape[2], strips.shape[1], always=model.shape.stride < MULTIPLE))
    began = time.perf_counter()
    for number in range(frames):
        strip, described = strips[number % len(strips)], []
        with torch.inference_mode():
            for start, stop in ranges:
                described.append(model.describe(as_input(strip[:, start:stop]).to(device)))
        for (start, stop), old, new in zip(ranges, held, described, strict=False):
            part = strip[:, start:stop]
            coarse_matches(model, part, part, 0.2, (old, new))
        held = described
    return frames / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
