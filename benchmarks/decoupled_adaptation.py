"""Decoupled high-resolution adaptation: what phases 2 and 3 buy, and what they cost.

A small f32 net learns on 32-px crops (latents of 1 x 1) and is then asked for 128 px (4 x 4). Compared
there: that net as it is; after phase 2 with 0, 1 and 2 trained stages a side; after the same steps with
everything trained; a net trained on 128-px crops from the start ("high"); and the small-crop net trained on
there, all of it, for as long as it was trained before ("long"). The better of the last two is what full
training on large crops reaches. Then phase 3 against a critic.

python benchmarks/decoupled_adaptation.py [--steps 400] [--adapt-steps 100] [--refine-steps 100]
writes benchmarks/results/decoupled_adaptation.json after every part; parts found there are not run again,
and the long ones go on from their checkpoints in --work. `--parts high --name NAME` and `--merge NAME`
spread it over two processes. With --gpu the crops are drawn beforehand (`crop_pool.py`), widths are 32 to
256, large crops come in batches of 16 as small ones do, and phase 2 takes the better of its --adapt-rates on
crops of the photographs that are trained on. `--gpu --parts times`, alone on the GPU, times a step of each as
a CUDA graph: shares of time are then steps x milliseconds, else measured seconds.
"""
# bench: cpu, 30 min:

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from crop_pool import crop_pool
from record import RESULTS, record
from residual_autoencoding import WIDTHS, build, small_config
from stopwatch import captured, measure

from fewer.generate.autoencoder import DCAutoencoder, ReconstructionWeights
from fewer.generate.autoencoder.crops import PictureFolder
from fewer.generate.autoencoder.phases import PhasePlan, prepare
from fewer.generate.autoencoder.training import TrainingOptions, train_autoencoder, training_losses
from fewer.generate.image_metrics import psnr, sharpness

ROOT = Path(__file__).parents[1]
FACTS = ("when", "command", "python", "versions", "machine")
SMALL, LARGE = 32, 128
WIDE = (32, 64, 128, 256, 256, 256)


class Crops:
    """Crops of the photographs: cut when asked for, or drawn from pools made beforehand."""

    def __init__(self, pooled: bool, folder: Path | None) -> None:
        self.pictures = PictureFolder(ROOT / "data" / "photos")
        self.pools = {
            (side, held_out): crop_pool(side, each, 99 if held_out else 0, held_out, folder=folder)[0]
            for side, held_out, each in (
                (SMALL, False, 600), (LARGE, False, 200), (SMALL, True, 80), (LARGE, True, 20),
            )
        } if pooled else {}  # fmt: skip

    def crops(
        self, count: int, side: int, generator: torch.Generator, held_out: bool = False
    ) -> torch.Tensor:
        if not self.pools:
            return self.pictures.crops(count, side, generator, held_out)
        pool = self.pools[side, held_out]
        return pool[torch.randint(len(pool), (count,), generator=generator)].float() / 127.5 - 1


def quality(
    model: DCAutoencoder, pictures: Crops, side: int, count: int, held_out: bool = True
) -> tuple[float, float]:
    """(PSNR in dB, sharpness) on held-out crops, or on others of the pictures to train on."""
    device = next(model.parameters()).device
    test = pictures.crops(count, side, torch.Generator().manual_seed(99), held_out=held_out)
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
    parser.add_argument("--adapt-steps", type=int, default=100)
    parser.add_argument("--refine-steps", type=int, default=100)
    parser.add_argument("--adapt-rates", type=float, nargs="+", default=[5e-4])
    parser.add_argument("--parts", nargs="+", default=["low", "adapt", "refine", "high", "long"])
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "decoupled_adaptation")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--pool", type=Path, help="folder with crops drawn beforehand")
    parser.add_argument("--name", default="decoupled_adaptation", help="of the result's file")
    parser.add_argument("--merge", help="take the parts of this result in, and only say what they show")
    options = parser.parse_args()
    found = {}
    for name in (options.merge, options.name):
        path = RESULTS / f"{name}.json"
        found |= json.loads(path.read_text()) if name and path.exists() else {}
    if options.merge:
        keep(found, options)
        return
    found |= {
        "steps": options.steps, "adapt_steps": options.adapt_steps, "refine_steps": options.refine_steps,
        "large_batch": large_batch(options),
    }  # fmt: skip
    pictures = Crops(options.gpu and options.parts != ["times"], options.pool)
    training = TrainingOptions(
        device="cuda" if options.gpu else "cpu", ema_decay=None, schedule="cosine", warmup=20,
        weights=ReconstructionWeights(gradients=0.5, pyramid=0.0), critic_width=32, checkpoint_every=50,
        resume=True,
    )  # fmt: skip
    for part in options.parts:
        if part not in found or part == "adapt":
            PARTS[part](found, pictures, training, options)
            keep(found, options)
            print(part, json.dumps(found[part]), flush=True)


def large_batch(options: argparse.Namespace) -> int:
    """Large crops a step: on a CPU so many that a step has the pixels of one on small crops."""
    return 16 if options.gpu else 4


def keep(found: dict, options: argparse.Namespace) -> None:
    """Writes what there is, and what it shows once the nets to compare with are there."""
    full = max(
        (name for name in ("high", "long") if name in found),
        key=lambda name: found[name]["psnr_large"],
        default=None,
    )
    if full and {"low", "adapt"} <= set(found) and "everything" in found["adapt"]:
        before, after = found["low"]["psnr_large"], found[full]["psnr_large"]
        found["full_training"] = full
        found["shown"] = {
            name: {
                "gap_closed": (row["psnr_large"] - before) / (after - before),
                "share_of_time": share_of_time(found, name, full),
                "share_of_bytes_kept": row["bytes_kept_for_backward"]
                / found["adapt"]["everything"]["bytes_kept_for_backward"],
            }
            for name, row in found["adapt"].items()
        }
    record(options.name, {key: value for key, value in found.items() if key not in FACTS})


def share_of_time(found: dict, name: str, full: str) -> float:
    """Of full training on large crops; `full` "long" took phase 1's time before."""
    if "times" in found:
        times, steps = found["times"], found["steps"]
        before = steps * times["everything, small crops"] if full == "long" else 0.0
        return found["adapt_steps"] * times[name] / (steps * times["everything"] + before)
    before = found["low"]["seconds"] if full == "long" else 0.0
    return found["adapt"][name]["seconds"] / (found[full]["seconds"] + before)


def train(
    model: DCAutoencoder,
    pictures: Crops,
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
    widths = WIDE if options.gpu else WIDTHS
    return build(small_config(32, widths, True), True, False, 0).to("cuda" if options.gpu else "cpu")


def low(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
    model = fresh(options)
    plan = PhasePlan(phase=1, steps=options.steps, crop=SMALL, batch=16, rate=1e-3, weight_decay=0.01)
    seconds = train(model, pictures, training, plan, options.work / "low")
    model.save(options.work / "low-model")
    found["low"] = {
        "psnr_small": quality(model, pictures, SMALL, 256)[0],
        "psnr_large": quality(model, pictures, LARGE, 64)[0],
        "seconds": round(seconds, 1),
    }


def high(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
    model = fresh(options)
    plan = PhasePlan(
        phase=1, steps=options.steps, crop=LARGE, batch=large_batch(options), rate=1e-3, weight_decay=0.01
    )
    seconds = train(model, pictures, training, plan, options.work / "high")
    found["high"] = {"psnr_large": quality(model, pictures, LARGE, 64)[0], "seconds": round(seconds, 1)}


def long(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
    model = DCAutoencoder.load(options.work / "low-model").to(training.device)
    plan = PhasePlan(
        phase=1, steps=options.steps, crop=LARGE, batch=large_batch(options), rate=5e-4, weight_decay=0.001
    )
    seconds = train(model, pictures, training, plan, options.work / "long")
    found["long"] = {"psnr_large": quality(model, pictures, LARGE, 64)[0], "seconds": round(seconds, 1)}


WAYS = {"0 stages": (2, 0), "1 stage": (2, 1), "2 stages": (2, 2), "everything": (1, 0)}
"""Phase and depth."""


def adapt(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
    low_model = DCAutoencoder.load(options.work / "low-model").to(training.device)
    rows = found.setdefault("adapt", {})
    for name, (phase, depth) in WAYS.items():
        if name in rows:
            continue
        tried = []
        for rate in options.adapt_rates:
            model = copy.deepcopy(low_model)
            plan = PhasePlan(
                phase=phase, steps=options.adapt_steps, crop=LARGE, batch=large_batch(options), rate=rate,
                weight_decay=0.001, depth=depth,
            )  # fmt: skip
            seconds = train(model, pictures, training, plan, None)
            chosen_by = quality(model, pictures, LARGE, 64, held_out=False)[0]
            tried.append((chosen_by, rate, seconds, model))
        _, rate, seconds, model = max(tried, key=lambda row: row[0])
        prepare(model, phase, depth)
        batch = pictures.crops(4, LARGE, torch.Generator().manual_seed(0)).to(training.device)
        with SavedTensors() as saved:
            training_losses(model, None, batch, training, torch.Generator())
        rows[name] = {
            "psnr_large": quality(model, pictures, LARGE, 64)[0],
            "rate": rate,
            "seconds": round(seconds, 1),
            "bytes_kept_for_backward": sum(saved.storages.values()),
        }
        if name == "1 stage":
            model.save(options.work / "adapted-model")
        keep(found, options)


def times(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
    """Median milliseconds of a step (forward, backward, AdamW) as a CUDA graph."""
    found["times"] = {}
    for name, (phase, depth) in {**WAYS, "everything, small crops": (1, 0)}.items():
        model, side = fresh(options), SMALL if "small" in name else LARGE
        parameters = prepare(model, phase, depth)
        batch = pictures.crops(16, side, torch.Generator().manual_seed(0)).to(training.device)
        optimizer = torch.optim.AdamW(parameters, capturable=options.gpu)

        def step(model=model, batch=batch, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = training_losses(model, None, batch, training, torch.Generator())["loss"]
            loss.backward()
            optimizer.step()
            return loss.detach()

        found["times"][name] = measure(captured(step, training.device), training.device, 20)["median_ms"]


def refine(found: dict, pictures: Crops, training: TrainingOptions, options: argparse.Namespace) -> None:
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


PARTS = {"low": low, "adapt": adapt, "refine": refine, "high": high, "long": long, "times": times}


if __name__ == "__main__":
    main()
