"""Residual autoencoding over the compression: f8, f16, f32 and f64 with latents of one size in all, with and
without shortcuts, on one GPU (specified as "residual stays within 1 dB of its own f8 while plain falls").

python benchmarks/residual_curve.py [--steps 1500] [--seeds 0 1] [--seconds 150]
writes benchmarks/results/residual_curve.json after every wave. Widths 32 to 256, or a quarter of the
published ones (then f64 has 512 in its deepest stage), one block a stage, 64-px crops of data/photos, batch
64, AdamW, cosine. Every compression, with and without shortcuts, takes the best of its learning rates on
crops of three photographs that are not trained on; PSNR is that on crops of the held-out photographs. The
plain net may also start with its variance kept. `--fresh --leaves 0.25 --squared --final-rate 0.02` trains on
crops cut anew at every step, a quarter of them dead leaves, for what PSNR counts; `--quiet` starts every net
linear, and `--linear` says what the best linear projection of as many numbers would keep.
"""
# bench: gpu, 5 min:

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from crop_pool import PHOTOS, crop_pool
from fresh_crops import FreshCrops, dead_leaves
from graphed import Trainee, train_side_by_side
from record import RESULTS, record
from residual_autoencoding import LATENTS, build, small_config, start_quietly

from fewer.generate.autoencoder import ReconstructionWeights
from fewer.generate.autoencoder.losses import reconstruction_loss
from fewer.generate.image_metrics import psnr

WIDTHS = (32, 64, 128, 256, 256, 256, 256)
QUARTER = (32, 64, 128, 128, 256, 256, 512)
"""A quarter of the authors' widths: their f64 doubles once more, ours does not."""
RUNS = {
    "residual, published widths, lr 1e-3": (True, False, 1e-3),
    "plain, published widths, variance kept, lr 1e-3": (False, True, 1e-3),
    "residual, lr 1e-3": (True, False, 1e-3),
    "plain, variance kept, lr 1e-3": (False, True, 1e-3),
    "residual, published widths, lr 5e-4": (True, False, 5e-4),
    "residual, lr 5e-4": (True, False, 5e-4),
    "residual, published widths, lr 2e-3": (True, False, 2e-3),
    "plain, published widths, variance kept, lr 3e-4": (False, True, 3e-4),
    "residual, lr 2e-3": (True, False, 2e-3),
    "plain, variance kept, lr 3e-4": (False, True, 3e-4),
    "plain, lr 1e-3": (False, False, 1e-3),
}
VALIDATION = 3
"""So many of the photographs to train on choose the learning rate instead."""
LOSS = ReconstructionWeights(gradients=0.5, pyramid=0.0)


Draw = Callable[[torch.Generator], torch.Tensor]
"""A batch of crops in [-1, 1]."""


def from_pool(pool: torch.Tensor, batch: int, turned: bool = False) -> Draw:
    """Crops drawn from the pool; `turned`: also on their sides, with colours exchanged."""
    device = pool.device

    def draw(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pool), (batch,), generator=generator, device=device)
        images = pool[rows].float() / 127.5 - 1
        if turned:
            coins = torch.rand(2, batch, 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(coins[0], images.transpose(2, 3), images)
            colours = torch.rand(3, generator=generator, device=device).argsort()
            images = torch.where(coins[1], images[:, colours], images)
        return images

    return draw


def cut_fresh(crops: FreshCrops, batch: int, side: int, leaves: float = 0.0) -> Draw:
    """Crops that nobody has seen before; the share `leaves` of them shows dead leaves."""
    painted = round(leaves * batch)

    def draw(generator: torch.Generator) -> torch.Tensor:
        images = crops.draw(batch - painted, side, generator)
        if painted:
            device = str(images.device)
            images = torch.cat([images, dead_leaves(painted, side, generator, device)])
        return images

    return draw


def autoencoder_trainee(
    name: str,
    model: torch.nn.Module,
    draw: Draw,
    rate: float,
    steps: int,
    seed: int,
    squared: bool = False,
    final_rate: float = 0.1,
) -> Trainee:
    """Trains on what `draw` gives, for L1 and gradients or the squared error; bf16 products on a GPU."""
    device = next(model.parameters()).device.type

    def loss(generator: torch.Generator) -> torch.Tensor:
        images = draw(generator)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False, enabled=device == "cuda"):
            back = model(images)
        if squared:
            return (back.float() - images).square().mean()
        return reconstruction_loss(back, images, LOSS)

    groups = [{"params": list(model.parameters()), "weight_decay": 0.01}]
    return Trainee(
        name=name, model=model, loss=loss, groups=groups, rate=rate, steps=steps, warmup=50,
        final_rate=final_rate, seed=seed, betas=(0.9, 0.999),
    )  # fmt: skip


@torch.no_grad()
def quality(model: torch.nn.Module, test: torch.Tensor) -> float:
    """Mean PSNR in dB."""
    found = []
    for part in test.split(64):
        images = part.float() / 127.5 - 1
        found.append(psnr(model(images).float().clamp(-1, 1).cpu(), images.cpu()))
    return float(torch.cat(found).mean())


def main() -> None:
    options = arguments()
    deadline = time.monotonic() + options.seconds
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.enabled = not options.without_cudnn
    found = []
    for name in (options.name, *options.merge):
        path = RESULTS / f"{name}.json"
        found += json.loads(path.read_text())["runs"] if path.exists() else []
    facts = facts_of(options)
    if options.merge:
        record(options.name, {"runs": found, **facts})
        return table(found)
    pool, validation, test = pools(options)
    if options.linear:
        linear(options, pool, validation, test)
    draw = from_pool(pool, options.batch, options.turned)
    if options.fresh:
        whole = FreshCrops(PHOTOS, options.device, VALIDATION, options.largest)
        draw = cut_fresh(whole, options.batch, options.crop, options.leaves)
    keys = ("run", "ratio", "seed", "steps")
    beside = options.beside or len(options.ratios)
    groups = [options.ratios[first : first + beside] for first in range(0, len(options.ratios), beside)]
    for seed, group in product(options.seeds, groups):
        for run in options.runs:
            wave = [(run, ratio, seed, options.steps) for ratio in group]
            wave = [row for row in wave if not any(tuple(r[k] for k in keys) == row for r in found)]
            residual, kept, rate = RUNS[run]
            widths = QUARTER if "published" in run else WIDTHS
            started = start_quietly if options.quiet else lambda model: model
            trainees = [
                autoencoder_trainee(
                    f"{run} f{ratio}",
                    started(build(small_config(ratio, widths, residual), residual, kept, seed)).to(
                        options.device
                    ),
                    draw, rate, options.steps, seed, options.squared, options.final_rate,
                )
                for _, ratio, _, _ in wave
            ]  # fmt: skip
            if time.monotonic() > deadline or not train_side_by_side(trainees, deadline):
                print("out of time", flush=True)
                return table(found)
            for row, trainee in zip(wave, trainees, strict=True):
                figures = dict(zip(keys, row, strict=True)) | figures_of(options, trainee, test, validation)
                found.append(figures | {"latent_channels": LATENTS[row[1]], "rate": rate})
                print(json.dumps(found[-1]), flush=True)
            record(options.name, {"runs": found, **facts})
    return table(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ratios", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--each", type=int, default=800, help="crops of each photograph")
    parser.add_argument("--beside", type=int, default=0, help="train so many at once; 0: all ratios")
    parser.add_argument("--halvings", type=int, default=1, help="scales of the crops to train on")
    parser.add_argument("--turned", action="store_true", help="also on their sides, with colours exchanged")
    parser.add_argument("--fresh", action="store_true", help="cut crops anew at every step (fresh_crops.py)")
    parser.add_argument("--leaves", type=float, default=0.0, help="with --fresh: this share is dead leaves")
    parser.add_argument("--squared", action="store_true", help="train for the squared error, as PSNR counts")
    parser.add_argument("--quiet", action="store_true", help="blocks start silent, so every net linear")
    parser.add_argument("--crop", type=int, default=64, help="side of all crops")
    parser.add_argument("--final-rate", type=float, default=0.1, help="share of the rate left at the end")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--largest", type=int, default=2048, help="with --fresh: shrink photographs to this")
    parser.add_argument("--name", default="residual_curve", help="of the result's file")
    parser.add_argument("--linear", action="store_true", help="first say what principal components keep")
    parser.add_argument("--merge", nargs="+", default=[], help="only put the results of these names together")
    parser.add_argument("--without-cudnn", action="store_true")
    parser.add_argument("--pool", type=Path, help="folder with crops drawn beforehand")
    return parser.parse_args()


def facts_of(options: argparse.Namespace) -> dict[str, object]:
    """What stands beside the runs: how the crops were made and what was trained for."""
    keys = ("batch", "halvings", "turned", "crop", "fresh", "leaves", "squared", "quiet", "final_rate")
    return {key: getattr(options, key) for key in keys} | {"widths": WIDTHS, "published_widths": QUARTER}


def figures_of(
    options: argparse.Namespace, trainee: Trainee, test: torch.Tensor, validation: torch.Tensor
) -> dict[str, object]:
    """What one trained net reaches, and how it was trained."""
    keys = ("halvings", "turned", "fresh", "leaves", "squared", "quiet", "crop")
    return {
        "psnr": quality(trainee.model, test),
        "validation_psnr": quality(trainee.model, validation),
        "parameters": sum(p.numel() for p in trainee.model.parameters()),
        **{key: getattr(options, key) for key in keys},
        "wave_seconds": round(trainee.seconds, 1),
    }


def pools(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crops to train on, to choose with, and of held-out photographs."""
    side = options.crop
    crops, numbers = crop_pool(side, options.each, 0, folder=options.pool, halvings=options.halvings)
    chosen = numbers > int(numbers.max()) - VALIDATION
    test = crop_pool(side, min(options.each, 80), 99, held_out=True, folder=options.pool)[0]
    others, of = crop_pool(side, min(options.each, 160), 7, folder=options.pool)
    parts = (crops[~chosen], others[of > int(of.max()) - VALIDATION], test)
    return tuple(part.to(options.device) for part in parts)  # type: ignore[return-value]


def linear(options: argparse.Namespace, pool: torch.Tensor, *others: torch.Tensor) -> None:
    """What the best linear projection of as many numbers keeps (principal components of blocks of ratio x
    ratio pixels of crops to train on): PSNR on the others. A net that keeps less has not learned yet."""
    for ratio in options.ratios:
        vectors = blocks(pool, ratio)
        vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:4000]]
        mean = vectors.mean(0)
        count = LATENTS[ratio]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, basis = torch.svd_lowrank(vectors - mean, q=count + 20, niter=3)
        basis = basis[:, :count]
        found = []
        for crops in others:
            rest = blocks(crops, ratio) - mean
            error = (rest - rest @ basis @ basis.T).square().mean(1).view(len(crops), -1).mean(1)
            found.append(round(float((10 * torch.log10(4 / error)).mean()), 2))
        print(f"f{ratio}, linear: {found[0]} dB on validation crops, {found[1]} on test crops", flush=True)


def blocks(crops: torch.Tensor, ratio: int) -> torch.Tensor:
    """Every block of ratio x ratio pixels as a vector in [-1, 1], crop by crop."""
    columns = torch.nn.functional.unfold(crops.float() / 127.5 - 1, ratio, stride=ratio)
    return columns.transpose(1, 2).flatten(0, 1)


def table(found: list[dict]) -> None:
    """Every run, then the best rate of each compression and seed by the validation crops."""
    for run in RUNS:
        rows = [r for r in found if r["run"] == run]
        print(run, {f"f{r['ratio']} seed {r['seed']}": round(r["psnr"], 2) for r in rows}, flush=True)
    for kind, published in product(("residual", "plain"), (True, False)):
        for seed in sorted({r["seed"] for r in found}):
            best = {}
            for ratio in sorted({r["ratio"] for r in found}):
                rows = [
                    r for r in found
                    if r["run"].startswith(kind) and ("published" in r["run"]) == published
                    and (r["ratio"], r["seed"]) == (ratio, seed)
                ]  # fmt: skip
                if rows:
                    row = max(rows, key=lambda r: r["validation_psnr"])
                    best[f"f{ratio}"] = f"{row['psnr']:.2f} ({row['rate']:g})"
            widths = "published widths" if published else "widths to 256"
            print(f"{kind}, {widths}, seed {seed}, best rate: {best}", flush=True)


if __name__ == "__main__":
    main()
