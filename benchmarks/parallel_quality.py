"""Displaced bands on the built-in model, before its judges: what does a picture lose? runs on: cpu and gpu

Every prompt is drawn from the same noises on one device and on 2 and 4 simulated ones, with 4 warm-up steps;
then the judges of builtin_model.py (the stored file) score all of them, and the PSNR to one device is taken.
Simulated bands give the pictures of real ones, one process is enough. In fp32, so that nothing but the
staleness differs. The language model need not be where the pictures are drawn: a first call with --texts FILE
encodes the prompts into it and stops, later ones read it. The same pictures are judged twice, so the
difference of a judge's shares has the standard error of paired samples (means of prompts), which is given
beside it. All prompts are drawn from one noise, judged and written down before the next noise is begun.
"""
# bench: gpu, 4 min: --texts parallel_texts.safetensors --noises 5 --prompts 140 --batch 140

import argparse
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from builtin_model import JUDGE
from parallel_pictures import Texts, decoded, drawn_batch, psnr, scenes_of, write_texts
from record import record
from torch import Tensor, nn

from fewer.core.device import pick_device
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.model_folder import DEFAULT_MODEL, open_parts
from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.judges import SpriteJudge, judge_pictures
from fewer.generate.scenes.pool import Vocabulary
from fewer.generate.scenes.presets import preset
from fewer.generate.transformer import SanaTransformer
from fewer.parallel import Group, ParallelPlan, parallelize, run_simulated

JUDGES = ("colour", "count", "left_right", "above_below", "order", "style", "identity")


def plans(warm_up: int) -> dict[str, ParallelPlan | None]:
    """One device, the defaults, then what else there is."""
    found: dict[str, ParallelPlan | None] = {"one device": None}
    kinds: dict[str, dict] = {
        "displaced": {},
        "displaced, fresh border rows": {"halo": "sync"},
        "displaced, corrected": {"state_rule": "corrected"},
        "displaced, replace": {"state_rule": "replace"},
        "naive": {"mode": "naive"},
    }
    for name, fields in kinds.items():
        for devices in (2, 4):
            chosen = {"devices": devices, "mode": "displaced", "warmup_steps": warm_up} | fields
            found[f"{devices} bands, {name}"] = ParallelPlan(**chosen)
    return found


def main() -> None:
    options = arguments()
    chosen, folder = preset("emoji"), DEFAULT_MODEL if options.model is None else options.model
    vocabulary = Vocabulary(tuple((chosen.concepts or {}).values()), tuple(chosen.styles))
    scenes = scenes_of(vocabulary, options.prompts)
    if not options.texts.exists():
        parts = open_parts(folder, dtype=torch.float32, device=torch.device("cpu"))
        write_texts(options.texts, parts, scenes)
        print(f"{options.texts}: {options.texts.stat().st_size} bytes; call again to draw")
        return
    device = pick_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # or convolutions on a GPU would round to ten bits
    texts = Texts(options.texts, device)
    if len(texts) != len(scenes):
        raise SystemExit(f"{options.texts} holds {len(texts)} prompts: ask for as many, or name another file")
    transformer = SanaTransformer.load(folder, torch.float32, device).eval()
    autoencoder = DCAutoencoder.load(folder / "vae", torch.float32, device).eval()
    judge = SpriteJudge.load(JUDGE, vocabulary.words, vocabulary.styles).to(device)
    wanted = {name: plan for name, plan in plans(options.warm_up).items()
              if plan is None or re.search(options.only, name)}  # fmt: skip
    if len(wanted) == 1:  # one device alone, which all are compared with
        raise SystemExit(f"no plan is called so: --only {options.only!r}; there are {', '.join(plans(1))}")
    rows = {name: Row(name, judge) for name in wanted}
    began = time.monotonic()
    for noise in range(options.noises):
        for at in range(0, len(scenes), options.batch):
            some = list(range(at, min(at + options.batch, len(scenes))))
            seed, first = noise * len(scenes) + at, None
            for name, plan in wanted.items():
                latents, seconds = kept_or_drawn(transformer, texts, some, seed, name, plan, options)
                drawn = (latents, decoded(autoencoder, latents.to(device), min(options.batch, 50)))
                first = drawn if first is None else first
                rows[name].add(drawn, first, some, [scenes[row] for row in some], seconds)
        write(rows, options)
        if time.monotonic() - began > options.seconds * (noise + 1) / (noise + 2):
            break  # another noise would take as long again as each before it


def kept_or_drawn(
    transformer: nn.Module, texts: Texts, some: list[int], seed: int, name: str, plan: ParallelPlan | None,
    options: argparse.Namespace,
) -> tuple[Tensor, float]:  # fmt: skip
    """Latents of these prompts, and the seconds that they took.

    With --keep what was drawn by an earlier call is read, so that an hour can be spent in pieces.
    """
    place = f"{options.steps}-{len(some)}-{seed}-{re.sub('[^a-z0-9]+', '-', name)}"
    file = None if options.keep is None else options.keep / f"{place}.safetensors"
    if file is not None and file.exists():
        held = read_tensors(file)
        return held["latents"], float(held["seconds"])
    began = time.monotonic()
    latents = of_plan(transformer, texts, some, options.steps, seed, plan)
    seconds = time.monotonic() - began
    if file is not None:
        write_tensors(file, {"latents": latents, "seconds": torch.tensor(seconds)})
    return latents, seconds


def of_plan(
    transformer: nn.Module, texts: Texts, some: list[int], steps: int, seed: int, plan: ParallelPlan | None
) -> Tensor:
    """One batch on one device, or on simulated ones."""
    if plan is None:
        return drawn_batch(transformer, texts, some, steps, seed).cpu()

    def rank_main(group: Group) -> Tensor:
        return drawn_batch(parallelize(transformer, plan, group), texts, some, steps, seed)

    return run_simulated(plan.devices, rank_main, timeout=600.0)[0].cpu()


@dataclass
class Row:
    """What the judges said of every picture of one plan."""

    name: str
    judge: SpriteJudge
    prompts: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    """A picture's answers, one a judge: 0 or 1, shares for `identity`, NaN where nothing was asked."""
    decibels: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    """Relative L2 of each picture's latents to those of one device."""
    seconds: float = 0.0

    def add(
        self, drawn: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor], some: list[int],
        scenes: list[Scene], seconds: float,
    ) -> None:  # fmt: skip
        """Latents and pictures of these prompts, and those of the first row."""
        (latents, pictures), (exact, expected) = drawn, first
        shown = pictures.to(next(self.judge.parameters()).device)
        for number, scene in enumerate(scenes):
            verdict = asdict(judge_pictures(self.judge, shown[number : number + 1], [scene]))
            self.scores.append([verdict[judge] for judge in JUDGES])
            self.objects.append(len(scene.objects))
        self.prompts += some
        self.decibels += psnr(pictures, expected).tolist()
        difference = (latents - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        self.apart += difference.tolist()
        self.seconds += seconds

    def figures(self, first: "Row") -> dict[str, object]:
        """Shares, and what they lost against the first row's, in points, with its standard error."""
        scores, objects = torch.tensor(self.scores).double(), torch.tensor(self.objects)
        shares = {
            judge: _mean(scores[:, place], objects if judge == "identity" else torch.ones_like(objects))
            for place, judge in enumerate(JUDGES)
        }
        row: dict[str, object] = {"what": self.name, "pictures": len(scores), **shares}
        if first is not self:
            decibels, apart = torch.tensor(self.decibels), torch.tensor(self.apart)
            row |= {"latents_error": float(apart.mean()), "latents_error_worst": float(apart.max())}
            row |= {"psnr_median": float(decibels.median()), "psnr_worst": float(decibels.min())}
            lost = 100 * (scores - torch.tensor(first.scores).double())
            row["points_from_one_device"] = {
                judge: _difference(lost[:, place], torch.tensor(self.prompts))
                for place, judge in enumerate(JUDGES)
            }
        return row | {"seconds": round(self.seconds, 1)}


def _mean(values: Tensor, weights: Tensor) -> float | None:
    asked = ~values.isnan()
    return float((values * weights)[asked].sum() / weights[asked].sum()) if asked.any() else None


def _difference(apart: Tensor, prompts: Tensor) -> list[float] | None:
    """Mean over prompts and its standard error, where the judge was asked something."""
    asked = ~apart.isnan()
    if len(prompts[asked].unique()) < 2:
        return None
    means = [apart[asked & (prompts == prompt)].mean() for prompt in prompts[asked].unique()]
    values = torch.stack(means)
    return [float(values.mean()), float(values.std() / len(values) ** 0.5)]


def write(rows: dict[str, Row], options: argparse.Namespace) -> None:
    """All rows as far as they are, each time."""
    first = next(iter(rows.values()))
    found = [row.figures(first) for row in rows.values()]
    for row in found:
        print(row, flush=True)
    figures = {"model": str(options.model or "default"), "steps": options.steps, "warm_up": options.warm_up,
               "prompts": options.prompts, "pictures": len(first.scores)}  # fmt: skip
    print(record(options.name, {**figures, "rows": found}), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a folder; the built-in model if absent")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--prompts", type=int, default=140, help="half seen, half held-out combinations")
    parser.add_argument("--noises", type=int, default=5, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50, help="pictures at once")
    parser.add_argument(
        "--keep", type=Path, help="a folder: drawn latents stay there and are not drawn again"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no noise is begun that ends later"
    )
    parser.add_argument("--only", default="", help="plans whose name this regular expression finds")
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--texts", type=Path, default=Path("parallel_texts.safetensors"))
    parser.add_argument("--name", default="parallel_quality")
    return parser.parse_args()


if __name__ == "__main__":
    main()
