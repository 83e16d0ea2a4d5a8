"""Displaced bands on the built-in model, before its judges: what does a picture lose? runs on: cpu and gpu

Every prompt is drawn from the same noises on one device and on 2 and 4 simulated ones, with 4 warm-up steps;
then the judges of builtin_model.py (the stored file) score all of them, and the PSNR to one device is taken.
Simulated bands give the pictures of real ones, one process is enough. In fp32, so that nothing but the
staleness differs. The language model need not be where the pictures are drawn: a first call with --texts FILE
encodes the prompts into it and stops, later ones read it. The same pictures are judged twice, so the
difference of a judge's shares has the standard error of paired samples, which is given beside it.
"""
# bench: gpu, 3 min: --texts parallel_texts.safetensors --noises 5 --prompts 140 --batch 175

import argparse
import math
import time
from dataclasses import asdict
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

JUDGES = ("colour", "count", "left_right", "order", "style", "identity")


def plans() -> dict[str, ParallelPlan]:
    """The default first, then what else there is."""
    found = {}
    for rule in ("corrected", "replace"):
        for devices in (2, 4):
            found[f"{devices} bands, displaced, {rule}"] = ParallelPlan(
                devices=devices, mode="displaced", warmup_steps=4, state_rule=rule
            )
    for devices in (2, 4):
        found[f"{devices} bands, naive"] = ParallelPlan(devices=devices, mode="naive")
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
    texts = Texts(options.texts, device)
    transformer = SanaTransformer.load(folder, torch.float32, device).eval()
    autoencoder = DCAutoencoder.load(folder / "vae", torch.float32, device).eval()
    judge = SpriteJudge.load(JUDGE, vocabulary.words, vocabulary.styles).to(device)
    chosen_plans = {name: plan for name, plan in plans().items() if options.only in name}
    drawn, seconds = drawn_rows(transformer, texts, chosen_plans, options)
    count = len(drawn["one device"])
    owners = [scene for scene in scenes for _ in range(options.noises)][:count]
    table = Table(options, judge, owners, device)
    for name, latents in drawn.items():
        table.add(name, decoded(autoencoder, latents.to(device), min(options.batch, 50)), seconds[name])


def drawn_rows(
    transformer: nn.Module, texts: Texts, chosen: dict[str, ParallelPlan], options: argparse.Namespace
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Latents of one device and of every plan, batch by batch, and the seconds that each took.

    With --keep what was drawn by an earlier call is read, so that an hour can be spent in pieces.
    """
    rows = [row for row in range(len(texts)) for _ in range(options.noises)]
    drawn: dict[str, list[Tensor]] = {}
    seconds: dict[str, float] = {}
    began = time.monotonic()
    for at in range(0, len(rows), options.batch):
        if at and time.monotonic() - began > options.seconds:
            break
        file = (
            None
            if options.keep is None
            else options.keep / f"{options.steps}-{options.batch}-{at}.safetensors"
        )
        kept = read_tensors(file) if file is not None and file.exists() else {}
        for name, plan in {"one device": None, **chosen}.items():
            if name not in kept:
                started = time.monotonic()
                kept[name] = of_plan(
                    transformer, texts, rows[at : at + options.batch], options.steps, at, plan
                )
                kept[f"seconds: {name}"] = torch.tensor(time.monotonic() - started)
                if file is not None:
                    write_tensors(file, kept)
            drawn.setdefault(name, []).append(kept[name])
            seconds[name] = seconds.get(name, 0.0) + float(kept[f"seconds: {name}"])
        print(f"{at + len(rows[at : at + options.batch])} of {len(rows)}", flush=True)
    return {name: torch.cat(parts) for name, parts in drawn.items()}, seconds


def of_plan(
    transformer: nn.Module, texts: Texts, rows: list[int], steps: int, seed: int, plan: ParallelPlan | None
) -> Tensor:
    """One batch on one device, or on simulated ones."""
    if plan is None:
        return drawn_batch(transformer, texts, rows, steps, seed).cpu()

    def rank_main(group: Group) -> Tensor:
        return drawn_batch(parallelize(transformer, plan, group), texts, rows, steps, seed)

    return run_simulated(plan.devices, rank_main, timeout=600.0)[0].cpu()


class Table:
    """Rows as they come, each written at once; the first is one device."""

    def __init__(
        self, options: argparse.Namespace, judge: SpriteJudge, owners: list[Scene], device: torch.device
    ) -> None:
        self.options, self.judge, self.owners, self.device = options, judge, owners, device
        self.rows: list[dict[str, object]] = []
        self.first: tuple[Tensor, dict[str, list[float]]] | None = None

    def add(self, name: str, pictures: Tensor, seconds: float) -> None:
        shown, each = pictures.to(self.device), self._groups(pictures)
        row: dict[str, object] = {"what": name, **asdict(judge_pictures(self.judge, shown, self.owners))}
        if self.first is None:
            self.first = (pictures, each)
        else:
            found = psnr(pictures, self.first[0])
            row |= {"psnr_median": float(found.median()), "psnr_worst": float(found.min())}
            row["points_from_one_device"] = {
                judge: _difference(each[judge], self.first[1][judge]) for judge in JUDGES
            }
        self.rows.append(row | {"seconds": round(seconds, 1)})
        print(self.rows[-1], flush=True)
        options = self.options
        figures = {"model": str(options.model or "default"), "steps": options.steps,
                   "prompts": len(self.owners) // options.noises, "pictures": len(self.owners)}  # fmt: skip
        print(record(options.name, {**figures, "rows": self.rows}))

    def _groups(self, pictures: Tensor) -> dict[str, list[float]]:
        """Each judge's share of every prompt's pictures, in points."""
        noises, shares = self.options.noises, {judge: [] for judge in JUDGES}
        for start in range(0, len(self.owners), noises):
            own = slice(start, start + noises)
            score = asdict(judge_pictures(self.judge, pictures[own].to(self.device), self.owners[own]))
            for judge in JUDGES:
                shares[judge].append(float("nan") if score[judge] is None else 100 * score[judge])
        return shares


def _difference(found: list[float], expected: list[float]) -> list[float]:
    """Mean over prompts and its standard error, in points, where the judge was asked something."""
    pairs = [one - other for one, other in zip(found, expected, strict=True) if not math.isnan(one - other)]
    if len(pairs) < 2:
        return [float("nan"), float("nan")]
    values = torch.tensor(pairs, dtype=torch.float64)
    return [float(values.mean()), float(values.std() / len(pairs) ** 0.5)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a folder; the built-in model if absent")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--prompts", type=int, default=100, help="half seen, half held-out combinations")
    parser.add_argument("--noises", type=int, default=7, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50, help="pictures at once")
    parser.add_argument(
        "--keep", type=Path, help="a folder: drawn latents stay there and are not drawn again"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no batch is begun after this")
    parser.add_argument("--only", default="", help="plans whose name contains this")
    parser.add_argument("--texts", type=Path, default=Path("parallel_texts.safetensors"))
    parser.add_argument("--name", default="parallel_quality")
    return parser.parse_args()


if __name__ == "__main__":
    main()
