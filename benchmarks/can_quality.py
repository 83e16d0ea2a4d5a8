"""Ways to tell a small diffusion transformer its class and time, at equal MACs a token: tokens, kernel
selection (AKS), adaLN-zero, generated weights (CAN) on some kinds of layers, and adaLN with CAN.

python benchmarks/can_quality.py [--device cuda] [--data mnist emoji] [--steps 1200] [--seconds 150]
writes benchmarks/results/can_quality.json after every wave; runs that are in the file already are kept.

Two data sets: 10,000 digits (28 px, 10 classes, 49 tokens) and emoji in five drawing styles (32 px, 40
classes: group and style, 64 tokens; test objects are seen in no style). Each method's learning rate is
the best of three on validation pictures (seed 100, which counts no further; the ablation's rows take
CAN's); then three seeds are trained at it and judged on the test pictures: flow error at fixed noise,
and for drawn pictures the accuracy of, and the Fréchet distance in the features of, one classifier
trained on real pictures. "tokens, wide" has CAN's parameters, so more MACs. Width 64, 4 blocks, feed-
forward ratio 2 with a depthwise convolution in every row, rank 32.
"""
# bench: gpu, 5 min: --device cuda

import argparse
import csv
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from can_judge import judge_trainee, judged
from graphed import Trainee, train_side_by_side
from PIL import Image
from record import RESULTS, record
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.core.tensors import write_tensors
from fewer.generate.autoencoder.report import frechet_distance
from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
from fewer.generate.conditional.accounting import profile
from fewer.generate.conditional.build import CLASS_SPREAD, build
from fewer.generate.conditional.params import with_conditioning
from fewer.generate.conditional.pictures import LabelledPictures, read_labelled
from fewer.generate.conditional.training import flow_error, parameter_groups, validation_error

DATA = Path(__file__).parents[1] / "data"
TUNING_SEED, SEEDS = 100, (0, 1, 2)
KEYS = ("data", "method", "rate", "seed", "steps")
PAPER = ("patch_embed", "dwconv", "attn_out")
MAIN = ("tokens", "aks", "adaln", "can", "adaln+can")
METHODS: dict[str, tuple[str, ConditionPlan | None, int]] = {
    "tokens": ("tokens", None, 64),
    "tokens, wide": ("tokens", None, 112),
    "aks": ("tokens", ConditionPlan(kind="aks", targets=PAPER, zero_init=False), 64),
    "aks, depthwise": ("tokens", ConditionPlan(kind="aks", targets=("dwconv",), zero_init=False), 64),
    "adaln": ("adaln", None, 64),
    "can, depthwise": ("tokens", ConditionPlan(targets=("dwconv",), rank=32), 64),
    "can, depthwise + patch": ("tokens", ConditionPlan(targets=("dwconv", "patch_embed"), rank=32), 64),
    "can": ("tokens", ConditionPlan(targets=PAPER, rank=32), 64),
    "can + head": ("tokens", ConditionPlan(targets=(*PAPER, "head"), rank=32), 64),
    "can + qkv": ("tokens", ConditionPlan(targets=(*PAPER, "qkv"), rank=32), 64),
    "adaln+can": ("adaln", ConditionPlan(targets=PAPER, rank=32), 64),
}
Split = tuple[LabelledPictures, LabelledPictures, LabelledPictures]


def mnist() -> Split:
    train, test = read_labelled(DATA / "mnist10k" / "mnist10k.npz", 28, grey=True)
    return (*_parted(train, torch.arange(len(train.labels)) % 8 == 7), test)


def emoji() -> Split:
    """Group and style are the class; a fifth of the objects are for testing, an eighth of the rest tunes."""
    rows = list(csv.DictReader((DATA / "emoji-styles" / "labels.csv").open()))
    styles = ("contrast", "flat", "noto", "openmoji", "twemoji")
    groups = sorted({row["group"] for row in rows} - {"flags"})
    images, labels, tests, numbers = [], [], [], []
    for style_number, style in enumerate(styles):
        sheet = np.asarray(Image.open(DATA / "emoji-styles" / f"{style}.webp").convert("RGB"))
        side = sheet.shape[1] // 40
        for row in rows:
            if row["group"] == "flags":
                continue
            number = int(row["index"])
            top, left = number // 40 * side, number % 40 * side
            images.append(torch.from_numpy(sheet[top : top + side, left : left + side].copy()))
            labels.append(groups.index(row["group"]) * len(styles) + style_number)
            tests.append(row["object_split"] == "test")
            numbers.append(number)
    pixels = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = tuple(f"{group}, {style}" for group in groups for style in styles)
    whole = LabelledPictures(pixels, torch.tensor(labels), names)
    rest, test = _parted(whole, torch.tensor(tests))
    kept = torch.tensor(numbers)[~torch.tensor(tests)]
    return (*_parted(rest, kept % 8 == 7), test)


def _parted(pictures: LabelledPictures, second: Tensor) -> tuple[LabelledPictures, LabelledPictures]:
    return tuple(  # pyright: ignore
        replace(pictures, images=pictures.images[rows], labels=pictures.labels[rows])
        for rows in (~second, second)
    )


SETS = {"mnist": mnist, "emoji": emoji}


def network(
    method: str, pictures: LabelledPictures, seed: int, fused: bool, class_spread: float = CLASS_SPREAD
) -> nn.Module:
    kind, plan, width = METHODS[method]
    channels, side = pictures.images.shape[1], pictures.images.shape[-1]
    params = ClassConditionalParams(
        architecture="dit", channels=channels, out_channels=channels, size=side, patch=4, width=width,
        depth=4, heads=4, ffn_ratio=2.0, classes=len(pictures.class_names),
    )  # fmt: skip
    plan = replace(plan, form="fused") if plan is not None and fused else plan
    model = build(with_conditioning(params, kind), plan, seed)
    if class_spread != CLASS_SPREAD:
        with isolated_randomness(seed):
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=class_spread)
    return model


def trainee(
    data: str,
    method: str,
    rate: float,
    seed: int,
    steps: int,
    train: LabelledPictures,
    options: argparse.Namespace,
) -> Trainee:
    model = network(method, train, seed, options.device == "cuda", options.class_spread).to(options.device)
    classes = len(train.class_names)

    def loss(generator: torch.Generator) -> Tensor:
        device, batch = train.images.device, options.batch
        rows = torch.randint(len(train.labels), (batch,), generator=generator, device=device)
        level = torch.sigmoid(torch.randn(batch, generator=generator, device=device))
        noise = torch.randn(batch, *train.images.shape[1:], generator=generator, device=device)
        dropped = torch.rand(batch, generator=generator, device=device) < 0.1
        labels = train.labels[rows].masked_fill(dropped, classes)
        return flow_error(model, train.images[rows], labels, level, noise).mean()

    return Trainee(
        name=f"{data}/{method}/{rate}/{seed}", model=model, loss=loss, groups=parameter_groups(model, 0.01),
        rate=rate, steps=steps, warmup=min(100, steps // 2), final_rate=0.05, seed=1000 + seed,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--long-steps", type=int, default=0, help="then the five main methods for this long")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument(
        "--class-spread",
        type=float,
        default=CLASS_SPREAD,
        help="standard deviation of class vectors at the start",
    )
    parser.add_argument("--judge-steps", type=int, default=800)
    parser.add_argument("--drawn", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--wave", type=int, default=36, help="networks trained side by side")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new wave after this long")
    parser.add_argument(
        "--limit", type=int, default=10**9, help="use so many pictures of each part (dry run)"
    )
    parser.add_argument("--name", default="can_quality", help="of the result's file")
    parser.add_argument("--merge", nargs="+", default=[], help="only put the results of these names together")
    parser.add_argument("--keep", type=Path, help="folder for the weights of adaln+can, seed 0")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if options.device == "cpu":
        torch.set_num_threads(1)
    protocol = Protocol(options)
    if options.merge:
        record(options.name, {"runs": protocol.runs, "judges": protocol.judges, "batch": options.batch})
        protocol.table()
    else:
        protocol.run()


class Protocol:
    """The waves of one call, and the file they are written to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + options.seconds
        self.runs: list[dict] = []
        self.judges: dict[str, dict] = {}
        for name in (options.name, *options.merge):
            path = RESULTS / f"{name}.json"
            found = json.loads(path.read_text()) if path.exists() else {}
            self.runs += [run for run in found.get("runs", []) if run not in self.runs]
            self.judges |= found.get("judges", {})
        if options.merge:
            return
        self.sets = {name: self._on_device(SETS[name]()) for name in options.data}
        self.judge_nets: dict[str, nn.Module] = {}

    def _on_device(self, parts: Split) -> Split:
        limit, device = self.options.limit, self.options.device
        return tuple(  # pyright: ignore
            replace(p, images=p.images[:limit].to(device), labels=p.labels[:limit].to(device)) for p in parts
        )

    def run(self) -> None:
        options = self.options
        judges = {name: judge_trainee(parts[0], options.judge_steps) for name, parts in self.sets.items()}
        train_side_by_side(list(judges.values()))
        for name, made in judges.items():
            self.judge_nets[name], test = made.model, self.sets[name][2]
            with torch.no_grad():
                right = (made.model(test.images).argmax(1) == test.labels).float().mean()
                fake, real = (made.model.features(self.sets[name][i].images).cpu() for i in (2, 0))  # pyright: ignore
            self.judges[name] = {
                "accuracy_on_test_pictures": round(float(right), 4),
                "frechet_of_test_pictures": round(frechet_distance(fake, real), 4),
            }
        wanted = [
            (data, method, rate, TUNING_SEED, options.steps)
            for data in options.data for method in MAIN if method in options.methods for rate in options.rates
        ]  # fmt: skip
        whole = self._waves(wanted)
        main = [method for method in options.methods if method in MAIN]
        rest = [method for method in options.methods if method not in MAIN]
        for methods, steps in ((main, options.steps), (rest, options.steps), (main, options.long_steps)):
            if whole and steps:
                whole = self._waves(
                    [
                        (data, method, self._best_rate(data, method), seed, steps)
                        for seed in SEEDS for data in options.data for method in methods
                    ]
                )  # fmt: skip
                if whole and methods is main and steps == options.steps:
                    self._alone()
        self.table()

    def _alone(self) -> None:
        """One run of every main method again, with nothing beside it: the error must be the wave's."""
        data, steps = self.options.data[0], self.options.steps
        for method in MAIN:
            row = (data, method, self._best_rate(data, method), SEEDS[0], steps)
            beside = next(
                (r for r in self.runs if tuple(r[k] for k in KEYS) == row and "test_error" in r), None
            )
            if beside is None or "test_error_alone" in beside or time.monotonic() > self.deadline:
                continue
            one = trainee(*row, self.sets[data][0], self.options)
            train_side_by_side([one])
            beside["test_error_alone"] = validation_error(one.model, self.sets[data][2])
            print(f"{method}: {beside['test_error_alone']:.5f} alone, {beside['test_error']:.5f} in a wave")
        record(self.options.name, {"runs": self.runs, "judges": self.judges, "batch": self.options.batch})

    def _waves(self, wanted: list[tuple[str, str, float, int, int]]) -> bool:
        missing = [row for row in wanted if not any(tuple(r[k] for k in KEYS) == row for r in self.runs)]
        for start in range(0, len(missing), self.options.wave):
            part = missing[start : start + self.options.wave]
            began = time.monotonic()
            trainees = [trainee(*row, self.sets[row[0]][0], self.options) for row in part]
            if began > self.deadline or not train_side_by_side(trainees, self.deadline):
                print("out of time: a wave was left out", flush=True)
                return False
            trained = time.monotonic()
            for row, done in zip(part, trainees, strict=True):
                self.runs.append(self._figures(dict(zip(KEYS, row, strict=True)), done))
            record(self.options.name, {"runs": self.runs, "judges": self.judges, "batch": self.options.batch})
            print(
                f"{len(part)} networks in {trained - began:.1f} s, "
                f"judged in {time.monotonic() - trained:.1f} s",
                flush=True,
            )
        return True

    def _figures(self, facts: dict, done: Trainee) -> dict:
        train, validation, test = self.sets[facts["data"]]
        tuning = facts["seed"] == TUNING_SEED
        figures = {
            **facts,
            "validation_error": validation_error(done.model, validation),
            "last_losses": float(done.history[-50:].mean()),
            "wave_seconds": round(done.seconds, 1),
        }
        if tuning:
            return figures
        figures["test_error"] = validation_error(done.model, test)
        figures |= judged(done.model, self.judge_nets[facts["data"]], train, self.options.drawn)
        figures |= asdict(profile(done.model, *_one(train)))
        if self.options.keep and facts["method"] == "adaln+can" and facts["seed"] == 0:
            name = f"{facts['data']}-{facts['steps']}.safetensors"
            write_tensors(self.options.keep / name, {k: v.half() for k, v in done.model.state_dict().items()})
        return figures

    def _best_rate(self, data: str, method: str) -> float:
        if method not in MAIN:
            method = next(name for name in MAIN if method.startswith(name))
        found = {
            r["rate"]: r["validation_error"]
            for r in self.runs
            if (r["data"], r["method"], r["seed"]) == (data, method, TUNING_SEED)
        }
        return min(found, key=found.__getitem__) if found else 2e-3

    def table(self) -> None:
        """Prints what has been found."""
        for data in self.options.data:
            print(data, self.judges[data])
            for steps in sorted({r["steps"] for r in self.runs}):
                for method in METHODS:
                    rows = [
                        r for r in self.runs
                        if (r["data"], r["method"], r["steps"]) == (data, method, steps) and "test_error" in r
                    ]  # fmt: skip
                    if not rows:
                        continue
                    errors = [r["test_error"] for r in rows]
                    spread = (
                        statistics.stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
                    )
                    means = {k: statistics.mean(r[k] for r in rows) for k in ("class_accuracy", "frechet")}
                    print(
                        f"{data} {steps} {method:<23} {rows[0]['parameters']:>7} rate {rows[0]['rate']:.0e}  "
                        f"{statistics.mean(errors):.4f} ± {spread:.4f} ({len(errors)})  "
                        f"accuracy {means['class_accuracy']:.3f}  frechet {means['frechet']:.3f}"
                    )


def _one(pictures: LabelledPictures) -> tuple[Tensor, Tensor, Tensor]:
    device = pictures.images.device
    return pictures.images[:1], torch.tensor([500.0], device=device), pictures.labels[:1]


if __name__ == "__main__":
    main()
