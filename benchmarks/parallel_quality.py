"""Displaced bands on the built-in model, before its judges: what does a picture lose? runs on: cpu

Every prompt is drawn from the same noises on one device and on 2 and 4 simulated ones, with 4 warm-up steps;
then the judges of builtin_model.py score all of them, and the PSNR to one device is taken. Run:
python benchmarks/parallel_quality.py --sprites sprites.safetensors --judge judge.safetensors
(both files are kept by a training run and by builtin_model.py --judge; --packages NODE_MODULES makes them)
Hundreds of pictures want GPUs, where the language model need not be: with --texts FILE only the prompts are
encoded, and `scaling.py --items quality --texts FILE --judge judge.safetensors` does the rest.
"""
# bench: cpu, 30 min:

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from builtin_model import trained_judge
from parallel_pictures import Texts, decoded, drawn_latents, psnr, scenes_of, write_texts
from record import record
from torch import Tensor, nn

from fewer.generate.model_folder import open_parts
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.judges import judge_pictures
from fewer.generate.scenes.pool import Vocabulary
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.sprites import load_sprites, render_sprites
from fewer.parallel import Group, ParallelPlan, parallelize, run_simulated


def plans() -> dict[str, ParallelPlan]:
    found = {}
    for devices in (2, 4):
        displaced = {"devices": devices, "mode": "displaced", "warmup_steps": 4}
        found[f"{devices} bands, displaced, corrected"] = ParallelPlan(**displaced)
        found[f"{devices} bands, displaced, replace"] = ParallelPlan(**displaced, state_rule="replace")
        found[f"{devices} bands, naive"] = ParallelPlan(devices=devices, mode="naive")
    return found


def main() -> None:
    options = arguments()
    chosen = preset(options.preset)
    sprites = load_sprites(options.sprites) if options.sprites else render_sprites(
        options.packages, chosen.concepts or {}, chosen.styles, chosen.sprite_side
    )  # fmt: skip
    vocabulary = Vocabulary(sprites.words(), sprites.styles)
    parts = open_parts(options.model, dtype=torch.float32, device=torch.device("cpu"))
    scenes = scenes_of(vocabulary, options.prompts)
    file = options.texts or Path("parallel_texts.safetensors")
    write_texts(file, parts, scenes)
    if options.texts:
        return
    judge = trained_judge(options.judge, SceneRenderer(sprites, chosen.side), vocabulary, options.judge_steps)
    texts = Texts(file, torch.device("cpu"))
    owners = [scene for scene in scenes for _ in range(options.noises)]
    first: Tensor | None = None
    rows: list[dict[str, object]] = []

    def draw(transformer: nn.Module) -> Tensor:
        return drawn_latents(transformer, texts, options.noises, options.steps, 16)

    def add(name: str, latents: Tensor, seconds: float) -> Tensor:
        pictures = decoded(parts.autoencoder, latents, 16)
        row: dict[str, object] = {"what": name, **asdict(judge_pictures(judge, pictures, owners))}
        if first is not None:
            found = psnr(pictures, first)
            row |= {"psnr_median": float(found.median()), "psnr_worst": float(found.min())}
        rows.append(row | {"seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
        figures = {"model": options.model, "side": chosen.side, "steps": options.steps,
                   "prompts": options.prompts, "pictures": len(owners)}  # fmt: skip
        print(record(options.name, {**figures, "rows": rows}))
        return pictures

    began = time.monotonic()
    first = add("one device", draw(parts.transformer), time.monotonic() - began)
    for name, plan in plans().items():
        if options.only not in name:
            continue

        def rank_main(group: Group, plan: ParallelPlan = plan) -> Tensor:
            return draw(parallelize(parts.transformer, plan, group))

        began = time.monotonic()
        add(name, run_simulated(plan.devices, rank_main, timeout=600.0)[0], time.monotonic() - began)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--preset", default="emoji")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--sprites", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--judge-steps", type=int, default=250)
    parser.add_argument("--prompts", type=int, default=140, help="half seen, half held-out combinations")
    parser.add_argument("--noises", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="plans whose name contains this")
    parser.add_argument("--texts", type=Path, help="encode the prompts into this file and stop")
    parser.add_argument("--name", default="parallel_quality")
    return parser.parse_args()


if __name__ == "__main__":
    main()
