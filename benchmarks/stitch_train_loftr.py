"""Trains the small LoFTR on one GPU (about 20 minutes on an H100 by estimate; not measured yet).

    python benchmarks/stitch_train_loftr.py --device cuda --output loftr_small

Writes checkpoints, half-precision weights (about 2 MB) and precision/recall against the shipped student.
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CoarseLoFTR(SMALL).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), 8e-4, weight_decay=0.1)

    def step(batch: tuple, generator: torch.Generator) -> torch.Tensor:
        first, second, homography = batch
        index, inside = true_cells(homography, options.size, SMALL.stride)
        with torch.autocast(options.device, torch.bfloat16):
            confidence = model(first, second)
        return matching_loss(confidence, index, inside)

    plan = FitPlan(
        steps=options.steps,
        warmup=500,
        clip_norm=0.5,
        checkpoint_folder=options.output,
        resume=options.resume,
    )
    result = fit(
        plan,
        {"model": model},
        optimizer,
        step,
        lambda number, generator: make_pairs(options.batch, options.size, generator, options.device),
        make_progress("auto"),
    )
    tensors = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    write_tensors(options.output / "loftr_small.safetensors", tensors, {"licence": "Apache-2.0"})
    test = make_pairs(16, options.size, seeded(1, 99), options.device)
    figures = {"seconds": result.seconds, "loss": result.losses[-1]}
    for name, net in (("small", model.eval()), ("student", load_tiny_loftr().to(options.device))):
        figures[f"{name}_precision"], figures[f"{name}_recall"] = precision(net, test)
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
