"""Residual autoencoding over the compression: f8, f16, f32 and f64 with latents of one size in all, with and
without shortcuts, on one GPU (specified as "residual stays within 1 dB of its own f8 while plain falls").

python benchmarks/residual_curve.py [--steps 1500] [--seeds 0 1] [--seconds 150]
writes benchmarks/results/residual_curve.json after every wave. Widths 32 to 256, or a quarter of the
published ones (then f64 has 512 in its deepest stage), one block a stage, 64-px crops of data/photos, batch
64, AdamW, cosine. Every compression, with and without shortcuts, takes the best of its learning rates on
crops of three photographs that are not trained on; PSNR is that on crops of the held-out photographs. The
plain net may also start with its variance kept. `--fresh --leaves 0.25 --error decibel --final-rate 0.02`
trains on crops that are cut anew, a quarter of them dead leaves, for what PSNR counts; `--quiet` starts every
net linear, and `--linear` says what the best linear projection of as many numbers would keep. `--together
--fit 300` trains all nets side by side for as many steps as fit 300 seconds. `--trial 400 --usual` lets each
kind choose its rate and its error, and nothing else: optimizer and start are the paper's.
"""
# bench: gpu, 5 min:

import argparse
import json
import time
from itertools import product
from pathlib import Path

import torch
from crop_pool import PHOTOS, crop_pool
from fresh_crops import FreshCrops
from graphed import Trainee, keep_within, steps_within, train_side_by_side
from linear_projection import linear
from record import RESULTS, record
from residual_autoencoding import LATENTS, build, small_config
from small_autoencoders import Draw, autoencoder_trainee, beforehand, cut_fresh, from_pool, quality
from step_forms import FORMS, Form, fastest, put_in_form

from fewer.generate.autoencoder.quiet_start import start_quietly

WIDTHS = (32, 64, 128, 256, 256, 256, 256)
QUARTER = (32, 64, 128, 128, 256, 256, 512)
"""A quarter of the authors' widths: their f64 doubles once more, ours does not."""
RUNS = {
    "residual, published widths, lr 1e-3": (True, False, 1e-3),
    "plain, published widths, variance kept, lr 1e-3": (False, True, 1e-3),
    "plain, published widths, lr 1e-3": (False, False, 1e-3),
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
Recipe = tuple[bool, float, str, bool]
"""Orthogonal steps (or AdamW's), rate, error, quiet start."""
RECIPES: tuple[Recipe, ...] = (
    (False, 1e-3, "decibel", True),
    (False, 1e-3, "decibel", False),
    (True, 1e-3, "decibel", True),
    (True, 3e-3, "decibel", True),
    (True, 1e-3, "squared", True),
    (False, 3e-4, "decibel", True),
    (False, 1e-3, "squared", True),
    (False, 3e-4, "squared", True),
)
USUAL: tuple[Recipe, ...] = tuple(
    (False, rate, error, False) for rate, error in product((1e-3, 3e-4), ("squared", "decibel", "l1"))
)
"""What remains when optimizer and start are the paper's: AdamW from torch's start, rate and error free."""
VALIDATION = 3
"""So many of the photographs to train on choose the learning rate instead."""


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
        linear(options.ratios, pool, validation, test)
    draw = drawn(options, pool)
    form = next((form for form in FORMS if form.name == options.form), FORMS[0])
    if options.form == "fastest":
        largest = options.runs[0], max(options.ratios), 0
        form = fastest(lambda form: trainee_of(*largest, draw, form, options))
    recipes = {}
    if options.trial:
        recipes = best_recipes(draw, form, options, validation)
        facts["trial"] = recipes["trial"]
    for wave in waves(options):
        wave = [row for row in wave if not any(same(r, row, options) for r in found)]
        if not wave:
            continue
        if time.monotonic() > deadline - 15:
            print("out of time", flush=True)
            break
        nets = [trainee_of(*row, draw, form, options, recipes.get(row[0])) for row in wave]
        rows, finished = train_wave(wave, nets, form, options, deadline, (validation, test))
        for row in rows:
            if row["run"] in recipes:
                keys = ("orthogonal", "rate", "error", "quiet")
                row |= dict(zip(keys, recipes[row["run"]], strict=True))
        if finished or options.together:
            found += rows
            record(options.name, {"runs": found, **facts})
    return table(found)


def waves(options: argparse.Namespace) -> list[list[tuple[str, int, int]]]:
    """(run, ratio, seed) of the nets that are trained side by side, wave by wave."""
    beside = options.beside or len(options.ratios)
    groups = [options.ratios[first : first + beside] for first in range(0, len(options.ratios), beside)]
    runs = [options.runs] if options.together else [[run] for run in options.runs]
    return [
        [(run, ratio, seed) for ratio in group for run in some]
        for seed, group, some in product(options.seeds, groups, runs)
    ]  # fmt: skip


def same(found: dict, row: tuple[str, int, int], options: argparse.Namespace) -> bool:
    """Whether a run that was found is this one."""
    alike = tuple(found[key] for key in ("run", "ratio", "seed")) == row
    return alike and (bool(options.fit) or found["steps"] == options.steps)


def drawn(options: argparse.Namespace, pool: torch.Tensor) -> Draw:
    """Where batches come from."""
    if not options.fresh:
        return from_pool(pool, options.batch, options.turned)
    whole = FreshCrops(PHOTOS, options.device, VALIDATION, options.largest)
    if not options.beforehand:
        return cut_fresh(whole, options.batch, options.crop, options.leaves)
    generator = torch.Generator(options.device).manual_seed(0)
    many = cut_fresh(whole, min(512, options.beforehand), options.crop, options.leaves)
    return from_pool(beforehand(many, options.beforehand, generator), options.batch)


def best_recipes(draw: Draw, form: Form, options: argparse.Namespace, validation: torch.Tensor) -> dict:
    """For every run the recipe that is best for its own net of most compression after `--trial` steps, by the
    validation crops; and the figures of all under "trial"."""
    recipes = USUAL if options.usual else [r for r in RECIPES if not (options.adamw and r[0])]
    tried = list(product(options.runs, recipes))
    trainees = [trainee_of(run, max(options.ratios), 1, draw, form, options, r) for run, r in tried]
    for trainee in trainees:
        trainee.steps = options.trial
    train_side_by_side(trainees)
    found = [round(quality(trainee.model, validation), 2) for trainee in trainees]
    trainees.clear()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    figures = [(*pair, decibels) for pair, decibels in zip(tried, found, strict=True)]
    best: dict = {"trial": figures}
    for run in options.runs:
        best[run] = max((row for row in figures if row[0] == run), key=lambda row: row[2])[1]
    for row in figures:
        print("trial:", *row, "<- taken" if best[row[0]] == row[1] else "", flush=True)
    return best


def trainee_of(
    run: str,
    ratio: int,
    seed: int,
    draw: Draw,
    form: Form,
    options: argparse.Namespace,
    recipe: Recipe | None = None,
) -> Trainee:
    """A net that has learned nothing yet."""
    residual, kept, rate = RUNS[run]
    orthogonal, rate, error, quiet = recipe or (options.orthogonal, rate, options.error, options.quiet)
    widths = QUARTER if "published" in run else WIDTHS
    if options.tiny:
        widths = (8, 16, 32, 32, 32, 32, 128)
    model = build(small_config(ratio, widths, residual), residual, kept, seed)
    if quiet:
        start_quietly(model)
    model = put_in_form(model.to(options.device), form)
    shaped = draw
    if form.channels_last:
        shaped = lambda generator: draw(generator).to(memory_format=torch.channels_last)  # noqa: E731
    return autoencoder_trainee(
        f"{run} f{ratio}", model, shaped, rate, options.steps, seed, error, options.final_rate, orthogonal
    )  # fmt: skip


def train_wave(
    wave: list[tuple[str, int, int]],
    trainees: list[Trainee],
    form: Form,
    options: argparse.Namespace,
    deadline: float,
    crops: tuple[torch.Tensor, torch.Tensor],
) -> tuple[list[dict], bool]:
    """What each net of the wave reaches after equal steps, and whether all steps were made in time."""
    for trainee in trainees:
        trainee.prepare()
    left = 0.0
    if options.fit:
        left = min(options.fit, deadline - time.monotonic() - 5)
        print(f"{steps_within(trainees, 0.95 * left, options.steps)} steps in {left:.0f} s", flush=True)
    courses: list[list[float]] = [[] for _ in trainees]
    began = time.monotonic()

    def look() -> None:
        if options.fit:
            keep_within(trainees, began, 0.97 * left)
        done, steps = trainees[0].done, trainees[0].steps
        if options.look and done * options.look // steps > len(courses[0]) and done < steps:
            for trainee, course in zip(trainees, courses, strict=True):
                course.append(round(quality(trainee.model, crops[0]), 2))
            print(done, {t.name: course[-1] for t, course in zip(trainees, courses, strict=True)}, flush=True)

    finished = train_side_by_side(trainees, deadline, prepared=True, look=look)
    rows = []
    for (run, ratio, seed), trainee, course in zip(wave, trainees, courses, strict=True):
        row = {"run": run, "ratio": ratio, "seed": seed, "steps": trainee.steps, "done": trainee.done}
        row |= figures_of(options, trainee, crops[1], crops[0]) | {"form": form.name, "course": course}
        row |= {"latent_channels": LATENTS[ratio], "rate": trainee.rate, "orthogonal": trainee.orthogonal}
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
    return rows, finished


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
    parser.add_argument("--error", default="l1", choices=["l1", "squared", "decibel"], help="trained for")
    parser.add_argument("--orthogonal", action="store_true", help="matrices take orthogonal steps (Muon)")
    parser.add_argument("--beforehand", type=int, default=0, help="with --fresh: draw so many crops once")
    parser.add_argument("--adamw", action="store_true", help="with --trial: only recipes with AdamW")
    parser.add_argument("--usual", action="store_true", help="with --trial: AdamW from torch's start only")
    parser.add_argument("--form", default="as written", choices=["fastest", *(f.name for f in FORMS)])
    parser.add_argument(
        "--together", action="store_true", help="all runs side by side: equal steps in any case"
    )
    parser.add_argument(
        "--fit", type=float, default=0, help="as many steps as fit these seconds, --steps at most"
    )
    parser.add_argument(
        "--look", type=int, default=0, help="so many looks at the validation crops on the way"
    )
    parser.add_argument(
        "--trial", type=int, default=0, help="so many steps with every recipe; the best is taken"
    )
    parser.add_argument("--tiny", action="store_true", help="narrow nets, to see that it runs")
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
    keys = (
        "batch",
        "halvings",
        "turned",
        "crop",
        "fresh",
        "leaves",
        "error",
        "orthogonal",
        "quiet",
        "final_rate",
    )
    return {key: getattr(options, key) for key in keys} | {"widths": WIDTHS, "published_widths": QUARTER}


def figures_of(
    options: argparse.Namespace, trainee: Trainee, test: torch.Tensor, validation: torch.Tensor
) -> dict[str, object]:
    """What one trained net reaches, and how it was trained."""
    keys = ("halvings", "turned", "fresh", "leaves", "error", "orthogonal", "quiet", "crop")
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
