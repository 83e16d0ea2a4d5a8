"""Decoupled high-resolution adaptation: what phases 2 and 3 buy, and what they cost.

A small f32 net learns on 32-px crops (latents of 1 x 1) and is then asked for 128 px (4 x 4). Compared
there: that net as it is; after phase 2 with 0, 1 and 2 trained stages a side; after the same steps with
everything trained; and a net trained on 128-px crops from the start. Then phase 3 against a critic.

python benchmarks/decoupled_adaptation.py [--steps 400] [--adapt-steps 50] [--refine-steps 100] [--gpu]
writes benchmarks/results/decoupled_adaptation.json after every part; parts found there are not run again,
and the long ones go on from their checkpoints in --work.
"""
# bench: cpu, 30 min:

import argparse
import copy
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
from residual_autoencoding import WIDTHS, build, small_config

from fewer.generate.autoencoder import DCAutoencoder, ReconstructionWeights
from fewer.generate.autoencoder.crops import PictureFolder
from fewer.generate.autoencoder.phases import PhasePlan
from fewer.generate.autoencoder.training import TrainingOptions, train_autoencoder, training_losses
from fewer.generate.image_metrics import psnr, sharpness

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "decoupled_adaptation.json"
SMALL, LARGE = 32, 128


def quality(model: DCAutoencoder, pictures: PictureFolder, side: int, count: int) -> tuple[float, float]:
    """(PSNR in dB, sharpness) on held-out crops."""
    device = next(model.parameters()).device
    test = pictures.crops(count, side, torch.Generator().manual_seed(99), held_out=True)
    with torch.no_grad():
        back = torch.cat([model(part.to(device)).float().cpu() for part in test.split(16)]).clamp(-1, 1)
    return float(psnr(back, test).mean()), sharpness(back, test)


class SavedTensors:
    """Counts the bytes that the forward pass keeps for the backward pass: what phase 2 saves."""

    def __enter__(self) -> "SavedTensors":
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--adapt-steps", type=int, default=50)
    parser.add_argument("--refine-steps", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["low", "adapt", "refine", "high"])
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "decoupled_adaptation")
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    found |= {
        "steps": options.steps,
        "adapt_steps": options.adapt_steps,
        "refine_steps": options.refine_steps,
    }
    pictures = PictureFolder(ROOT / "data" / "photos")
    training = TrainingOptions(
        device="cuda" if options.gpu else "cpu", ema_decay=None, schedule="cosine", warmup=10,
        weights=ReconstructionWeights(gradients=0.5, pyramid=0.0), critic_width=32, checkpoint_every=50,
        resume=True,
    )  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    for part in options.parts:
        if part not in found or part == "adapt":
            PARTS[part](found, pictures, training, options)
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
            print(part, json.dumps(found[part]))


def train(
    model: DCAutoencoder,
    pictures: PictureFolder,
    training: TrainingOptions,
    plan: PhasePlan,
    folder: Path | None,
) -> float:
    """Processor seconds (a GPU: wall) of all steps, from the mean of those made now."""
    clock = time.monotonic if training.device == "cuda" else time.process_time
    began = clock()
    result = train_autoencoder(model, pictures.crops, [plan], replace(training, checkpoint_folder=folder))[
        plan.phase
    ]
    return (clock() - began) / max(len(result.losses), 1) * plan.steps


def fresh(options: argparse.Namespace) -> DCAutoencoder:
    return build(small_config(32, WIDTHS, True), True, False, 0).to("cuda" if options.gpu else "cpu")


def low(found: dict, pictures: PictureFolder, training: TrainingOptions, options: argparse.Namespace) -> None:
    model = fresh(options)
    plan = PhasePlan(phase=1, steps=options.steps, crop=SMALL, batch=16, rate=1e-3, weight_decay=0.01)
    seconds = train(model, pictures, training, plan, options.work / "low")
    model.save(options.work / "low-model")
    found["low"] = {
        "psnr_small": quality(model, pictures, SMALL, 256)[0],
        "psnr_large": quality(model, pictures, LARGE, 64)[0],
        "seconds": round(seconds, 1),
    }


def high(
    found: dict, pictures: PictureFolder, training: TrainingOptions, options: argparse.Namespace
) -> None:
    model = fresh(options)
    plan = PhasePlan(phase=1, steps=options.steps, crop=LARGE, batch=4, rate=1e-3, weight_decay=0.01)
    seconds = train(model, pictures, training, plan, options.work / "high")
    found["high"] = {"psnr_large": quality(model, pictures, LARGE, 64)[0], "seconds": round(seconds, 1)}


def adapt(
    found: dict, pictures: PictureFolder, training: TrainingOptions, options: argparse.Namespace
) -> None:
    low_model = DCAutoencoder.load(options.work / "low-model").to(training.device)
    rows = found.setdefault("adapt", {})
    for name, phase, depth in (
        ("0 stages", 2, 0),
        ("1 stage", 2, 1),
        ("2 stages", 2, 2),
        ("everything", 1, 0),
    ):
        if name in rows:
            continue
        model = copy.deepcopy(low_model)
        plan = PhasePlan(
            phase=phase,
            steps=options.adapt_steps,
            crop=LARGE,
            batch=4,
            rate=5e-4,
            weight_decay=0.001,
            depth=depth,
        )
        seconds = train(model, pictures, training, plan, None)
        from fewer.generate.autoencoder.phases import prepare

        prepare(model, phase, depth)
        batch = pictures.crops(4, LARGE, torch.Generator().manual_seed(0)).to(training.device)
        with SavedTensors() as saved:
            training_losses(model, None, batch, training, torch.Generator())
        rows[name] = {
            "psnr_large": quality(model, pictures, LARGE, 64)[0],
            "seconds": round(seconds, 1),
            "bytes_kept_for_backward": sum(saved.storages.values()),
        }
        if name == "1 stage":
            model.save(options.work / "adapted-model")
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def refine(
    found: dict, pictures: PictureFolder, training: TrainingOptions, options: argparse.Namespace
) -> None:
    model = DCAutoencoder.load(options.work / "adapted-model").to(training.device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    psnr_before, sharpness_before = quality(model, pictures, SMALL, 256)
    plan = PhasePlan(
        phase=3,
        steps=options.refine_steps,
        crop=SMALL,
        batch=16,
        rate=4e-4,
        betas=(0.5, 0.9),
        weight_decay=0.01,
    )
    seconds = train(model, pictures, training, plan, None)
    psnr_after, sharpness_after = quality(model, pictures, SMALL, 256)
    head = ("decoder.norm_out", "decoder.conv_out", "decoder.up_blocks.0.")
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    found["refine"] = {
        "psnr_before": psnr_before, "psnr_after": psnr_after,
        "sharpness_before": sharpness_before, "sharpness_after": sharpness_after,
        "tensors_moved_outside_the_head": [name for name in moved if not name.startswith(head)],
        "tensors_moved_in_the_head": len(moved), "seconds": round(seconds, 1),
    }  # fmt: skip


PARTS = {"low": low, "adapt": adapt, "refine": refine, "high": high}


if __name__ == "__main__":
    main()
