"""Trains the small LoFTR on rendered tubes and synthetic homographies, on one GPU.

    python benchmarks/stitch_train_loftr.py --device cuda --seconds 1200 --output outputs/loftr_small

Every fourth step sees textures through random homographies, the others strips of rendered tubes. Writes
half-precision weights (about 2 MB), and precision and recall of the coarse matches on tubes and textures of
other seeds, beside the shipped student's.
"""
# bench: gpu, 20 min: --device cuda --output outputs/loftr_small

import argparse
import json
from pathlib import Path

import torch

from fewer.core.device import seeded
from fewer.core.progress import make_progress
from fewer.core.tensors import write_tensors
from fewer.core.train import FitPlan, fit
from fewer.stitch.match.loftr import SMALL, CoarseLoFTR, load_tiny_loftr
from fewer.stitch.match.train_loftr import make_pairs, matching_loss, precision, true_cells
from fewer.stitch.match.tube_pairs import TubePairPlan, make_tube_pairs, paint_walls

Questions = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=16, help="pairs of strips")
    parser.add_argument("--texture-batch", type=int, default=48, help="pairs of textures")
    parser.add_argument("--walls", type=int, default=48)
    parser.add_argument("--test-pairs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CoarseLoFTR(SMALL).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.1)
    walls = paint_walls(options.walls, 0, options.device)

    def batch_at(number: int, generator: torch.Generator) -> Questions:
        if number % 4 == 3:
            return textures(options.texture_batch, generator, options.device, SMALL.stride)
        return tubes(walls, options.batch, generator, SMALL.stride)

    def step(batch: Questions, generator: torch.Generator) -> torch.Tensor:
        first, second, index, inside = batch
        with torch.autocast(options.device, torch.bfloat16):
            similarity = model.similarity(first, second)
        return matching_loss(similarity, index, inside)

    plan = FitPlan(
        steps=options.steps, seconds=options.seconds, warmup=options.warmup, clip_norm=0.5, final_rate=0.01,
        look_every=20,
    )  # fmt: skip
    result = fit(plan, {"model": model}, optimizer, step, batch_at, make_progress("auto"))
    tensors = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    options.output.mkdir(parents=True, exist_ok=True)
    write_tensors(options.output / "loftr_small.safetensors", tensors, {"licence": "Apache-2.0"})
    losses = result.losses
    every = max(1, len(losses) // 200)
    figures = {"seconds": result.seconds, "steps": result.step, "losses": losses[::every]}
    others = paint_walls(min(4, options.walls), 1, options.device)
    for name, net in (("small", model.eval()), ("student", load_tiny_loftr().to(options.device))):
        stride = net.shape.stride
        for kind, made in (
            ("tube", tubes(others, options.test_pairs, seeded(1, 99), stride)),
            ("texture", textures(options.test_pairs, seeded(1, 99), options.device, stride)),
        ):
            first, second, index, inside = made
            with torch.no_grad():
                found = precision(net(first, second), index, inside, first.shape[-1] // stride)
            figures[f"{name}_{kind}_precision"], figures[f"{name}_{kind}_recall"] = found
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps({key: value for key, value in figures.items() if key != "losses"}))


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
