"""Bar D5: does random subsets' accuracy foretell that of distilled sets? Ten images per class, ten tasks.

runs on: cpu (8 x 8 pixels, ConvNet-3 of width 16, one thread, a minute or two). Peer: the constant forecast
(mean of the other tasks) under the same leave-one-out. Writes results/distill_indicator.json and, with
--ship, the points that `fewer learn indicator` uses by default.

    python benchmarks/distill_indicator.py
"""
# bench: cpu, 2 min:

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from fewer.learn.data import ImageSplits, LabelledImages, load_images, make_labelled_images, resized
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.indicator import fit_indicator, set_aside
from fewer.learn.distillation.study import study_indicator
from fewer.learn.distillation.training import Recipe
from fewer.learn.distillation.variation import mix

ROOT = Path(__file__).parents[1]
SIDE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points, seconds = [], {}
    for one in tasks():
        began = time.process_time()
        points += study_indicator(
            [one],
            "dm",
            10,
            network=NetworkPlan(width=16),
            recipe=Recipe(epochs=options.epochs),
            iterations=options.iterations,
            draws=options.draws,
            seeds=(0,),
        )
        seconds[one.name] = time.process_time() - began
        print(
            f"{one.name:16} random {points[-1].random:.3f} distilled {points[-1].distilled:.3f}", flush=True
        )
    fit = fit_indicator(points)
    distilled = np.array([point.distilled for point in points])
    others = (distilled.sum() - distilled) / (len(distilled) - 1)
    listed = [{"name": p.name, "random": p.random, "distilled": p.distilled} for p in points]
    record = {
        "images_per_class": 10,
        "points": listed,
        "fit": fit.as_dict(),
        "constant_forecast_error": float(np.abs(others - distilled).mean()),
        "cpu_seconds": seconds,
        "options": vars(options),
        "recipe": asdict(Recipe(epochs=options.epochs)),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps({"fit": record["fit"], "constant": record["constant_forecast_error"]}))
    (ROOT / "benchmarks/results/distill_indicator.json").write_text(json.dumps(record, indent=1) + "\n")
    if options.ship:
        shipped = {"images_per_class": 10, "points": listed}
        path = ROOT / "src/fewer/learn/distillation/indicator_points.json"
        path.write_text(json.dumps(shipped, indent=1) + "\n")


def tasks() -> list[ImageSplits]:
    """Easy and hard, clean and spoilt, single and mixed."""
    digits = load_digits()
    whole = make_labelled_images((digits.images / 16).astype(np.float32), digits.target)
    sets = {"digits": ImageSplits(*_halves(whole))}
    for name in ("mnist10k", "pneumoniamnist"):
        found = load_images(ROOT / "data" / name / f"{name}.npz")
        test = found.evaluation()
        train = found.train.select(torch.arange(min(3000, len(found.train))))
        sets[name] = ImageSplits(resized(train, (SIDE, SIDE)), test=resized(test, (SIDE, SIDE)))
    clean = dict(sets)
    sets["digits 0-4"] = _both(clean["digits"], lambda one: _classes(one, range(5)))
    sets["mnist 3 5 8 9"] = _both(clean["mnist10k"], lambda one: _classes(one, (3, 5, 8, 9)))
    sets["mnist blurred"] = _both(clean["mnist10k"], _blurred)
    sets["mnist 4 pixels"] = _both(clean["mnist10k"], lambda one: resized(resized(one, (4, 4)), (SIDE, SIDE)))
    for name, share in (("digits", 0.3), ("mnist10k", 0.4)):
        sets[f"{name} noisy"] = ImageSplits(_noisy(clean[name].train, share), test=clean[name].test)
    both = ("digits", "pneumoniamnist")
    mixed = [mix([getattr(clean[name], part) for name in both], "great", both) for part in ("train", "test")]
    sets["mixed"] = ImageSplits(mixed[0], test=mixed[1])
    return [ImageSplits(one.train, test=one.test, name=name) for name, one in sets.items()]


def _halves(data: LabelledImages) -> tuple[LabelledImages, None, LabelledImages]:
    train, test = set_aside(data, 0.4)
    return train, None, test


def _both(splits: ImageSplits, change) -> ImageSplits:
    assert splits.test is not None
    return ImageSplits(change(splits.train), test=change(splits.test))


def _classes(data: LabelledImages, kept) -> LabelledImages:
    rows = torch.nonzero(torch.isin(data.labels, torch.tensor(list(kept)))).flatten()
    places = torch.full((data.classes,), -1)
    places[list(kept)] = torch.arange(len(kept))
    names = tuple(data.class_names[k] for k in kept)
    return LabelledImages(data.images[rows], places[data.labels[rows]], names)


def _blurred(data: LabelledImages) -> LabelledImages:
    pixels = torch.nn.functional.avg_pool2d(data.as_float(), 5, 1, 2) * 255
    return LabelledImages(pixels.round().to(torch.uint8).permute(0, 2, 3, 1), data.labels, data.class_names)


def _noisy(data: LabelledImages, share: float) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(data), generator=generator) < share
    other = torch.randint(data.classes, (len(data),), generator=generator)
    return LabelledImages(data.images, torch.where(wrong, other, data.labels), data.class_names)


if __name__ == "__main__":
    main()
