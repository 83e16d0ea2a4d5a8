"""Trains the small LoFTR on rendered tubes and synthetic homographies, on one GPU.

    python benchmarks/stitch_train_loftr.py --device cuda --seconds 1200 --output outputs/loftr_small

Every fourth step sees textures through random homographies, the others strips of rendered tubes. The first
60 % of the time trains the weights themselves (`loftr_small.safetensors`, half precision, 1.7 MB), the rest
goes through their rounding to five levels (`loftr_tube.safetensors`, 300 kB). `--resume` goes on from the
last checkpoint. `figures.json`: precision and recall of the coarse matches on tubes and textures of other
seeds, beside the shipped student's.
"""
# bench: gpu, 20 min: --device cuda --output outputs/loftr_small

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewer.core.device import seeded
from fewer.core.progress import make_progress
from fewer.core.tensors import write_tensors
from fewer.core.train import FitPlan, FitResult, fit
from fewer.stitch.match.compact import pack
from fewer.stitch.match.loftr import SMALL, WEIGHTS, CoarseLoFTR, load_tiny_loftr
from fewer.stitch.match.train_loftr import (
    Rounded,
    make_pairs,
    matching_loss,
    precision,
    settle_statistics,
    true_cells,
)
from fewer.stitch.match.tube_pairs import TubePairPlan, make_tube_pairs, paint_walls

Questions = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
THRESHOLDS = (0.02, 0.05, 0.2)
META = {"licence": "Apache-2.0"}


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model = CoarseLoFTR(SMALL).to(options.device, memory_format=torch.channels_last)
    walls = painted(options.walls, 0, options.device)
    others = painted(min(4, options.walls), 1000, options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, object] = {"torch": torch.__version__}
    if options.device == "cuda":
        figures["card"] = torch.cuda.get_device_name()
    parts = (
        ("exact", 0.6, 1.0, model.similarity, "loftr_small.safetensors"),
        ("rounded", 0.4, 0.5, Rounded(model), "loftr_tube.safetensors"),
    )
    for name, share, rate, similarity, file in parts:
        result = trained(options, name, share, rate, model, similarity, walls)
        batches = [tubes(walls, options.batch, seeded(2, n), SMALL.stride)[:2] for n in range(options.settle)]
        settle_statistics(model, batches)
        tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
        halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        write_tensors(options.output / file, pack(tensors) if name == "rounded" else halves, META)
        every = max(1, len(result.losses) // 100)
        figures[name] = {
            "seconds": result.seconds,
            "steps": result.step,
            "bytes": (options.output / file).stat().st_size,
            "losses": result.losses[::every],
            **judged(options, load_tiny_loftr(options.output / file), others),
        }
        print(name, json.dumps({k: v for k, v in figures[name].items() if k != "losses"}), flush=True)
        (options.output / "figures.json").write_text(json.dumps(figures, indent=1))
    figures["student"] = judged(options, load_tiny_loftr(WEIGHTS), others)
    print("student", json.dumps(figures["student"]))
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each part, at most")
    parser.add_argument("--batch", type=int, default=16, help="pairs of strips")
    parser.add_argument("--texture-batch", type=int, default=32, help="pairs of textures")
    parser.add_argument("--walls", type=int, default=32)
    parser.add_argument("--settle", type=int, default=16, help="batches that the norms' statistics come from")
    parser.add_argument("--test-pairs", type=int, default=16)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--state", type=Path, help="folder of the checkpoints; else in the output's")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def painted(count: int, seed: int, device: str, seconds: float = 60) -> torch.Tensor:
    """Walls of this and the following seeds; fewer where the CPU is too busy to paint them in a minute."""
    began, walls = time.monotonic(), [paint_walls(1, seed, device)]
    while len(walls) < count and time.monotonic() - began < seconds:
        walls.append(paint_walls(1, seed + len(walls), device))
    print(f"{len(walls)} walls in {time.monotonic() - began:.0f} s", flush=True)
    return torch.cat(walls)


def trained(
    options: argparse.Namespace,
    name: str,
    share: float,
    rate: float,
    model: CoarseLoFTR,
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    walls: torch.Tensor,
) -> FitResult:
    """One part of the training; `share` of the time, `rate` times the learning rate."""

    def batch_at(number: int, generator: torch.Generator) -> Questions:
        if number % 4 == 3:
            return textures(options.texture_batch, generator, options.device, SMALL.stride)
        return tubes(walls, options.batch, generator, SMALL.stride)

    def step(batch: Questions, generator: torch.Generator) -> torch.Tensor:
        first, second, index, inside = batch
        with torch.autocast(options.device, torch.bfloat16):
            cells = similarity(first, second)
        return matching_loss(cells, index, inside)

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate * options.rate, weight_decay=0.1, fused=True)
    state = options.state or options.output / "state"
    plan = FitPlan(
        steps=options.steps, seconds=share * options.seconds, warmup=options.warmup, clip_norm=0.5,
        final_rate=0.01, look_every=20, seed=len(name), checkpoint_folder=state / name,
        checkpoint_every=options.checkpoint_every, resume=options.resume,
    )  # fmt: skip
    return fit(plan, {"model": model}, optimizer, step, batch_at, make_progress("auto"))


def judged(options: argparse.Namespace, net: CoarseLoFTR, walls: torch.Tensor) -> dict[str, float]:
    """Precision and recall on pictures that no training saw."""
    net, stride = net.to(options.device), net.shape.stride
    made = {
        "tube": tubes(walls, options.test_pairs, seeded(1, 99), stride),
        "texture": textures(options.test_pairs, seeded(1, 98), options.device, stride),
    }
    figures: dict[str, float] = {}
    for kind, (first, second, index, inside) in made.items():
        with torch.no_grad():
            confidence = net(first, second)
        for threshold in THRESHOLDS:
            found = precision(confidence, index, inside, first.shape[-1] // stride, threshold)
            figures[f"{kind}_precision_{threshold}"], figures[f"{kind}_recall_{threshold}"] = found
    return figures


def tubes(walls: torch.Tensor, batch: int, generator: torch.Generator, stride: int) -> Questions:
    """Strips of rendered tubes."""
    pairs = make_tube_pairs(walls, batch, TubePairPlan(stride=stride), generator)
    return pairs.first, pairs.second, pairs.index, pairs.inside


def textures(batch: int, generator: torch.Generator, device: str, stride: int, size: int = 256) -> Questions:
    """Textures through random homographies."""
    first, second, homography = make_pairs(batch, size, generator, device)
    return first, second, *true_cells(homography, size, stride)


if __name__ == "__main__":
    main()
