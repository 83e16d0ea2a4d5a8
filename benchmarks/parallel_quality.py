"""Displaced bands on the built-in model, before its judges: what does a picture lose? runs on: cpu

Every prompt is drawn from the same noise on one device and on 2 and 4 simulated ones, with 4 warm-up steps;
then the judges of builtin_model.py score all of them, and the PSNR to one device is taken. Run:
python benchmarks/parallel_quality.py --sprites sprites.safetensors --judge judge.safetensors
(both files are kept by a training run and by builtin_model.py --judge; --packages NODE_MODULES makes them)
"""
# bench: cpu, 30 min:

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from builtin_model import trained_judge
from record import record
from torch import Tensor

from fewer.generate.model_folder import Parts, open_parts
from fewer.generate.sampling import sample
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.judges import judge_pictures
from fewer.generate.scenes.pool import Vocabulary, draw_scenes
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.sprites import load_sprites, render_sprites
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import Group, ParallelPlan, parallelize, run_simulated


@torch.no_grad()
def latents_of(parts: Parts, transformer: SanaTransformer, prompts: list[str], steps: int) -> Tensor:
    """One picture's latents for each prompt, in batches of 16, from one stream of noise."""
    side, channels = transformer.params.sample_size, transformer.params.in_channels
    generator, drawn = torch.Generator().manual_seed(0), []
    guidance, shift = parts.settings.guidance, parts.settings.shift
    for start in range(0, len(prompts), 16):
        batch = prompts[start : start + 16]
        count = len(batch)
        text = parts.encoder.encode([*[""] * count, *batch])
        prepared = transformer.prepare(text.tokens.float(), text.mask)

        def velocity(latents: Tensor, timestep: float, count: int = count, prepared=prepared) -> Tensor:
            times = torch.full((2 * count,), float(timestep))
            both = transformer.denoise(latents.repeat(2, 1, 1, 1), times, prepared)
            without, conditioned = both.chunk(2)
            return without + guidance * (conditioned - without)

        latents = noise = torch.randn(count, channels, side, side, generator=generator)
        for step in sample(velocity, noise, steps=steps, shift=shift):
            latents = step.latents
        drawn.append(latents)
    return torch.cat(drawn)


def plans() -> dict[str, ParallelPlan]:
    found = {}
    for devices in (2, 4):
        displaced = {"devices": devices, "mode": "displaced", "warmup_steps": 4}
        found[f"{devices} bands, displaced, corrected"] = ParallelPlan(**displaced)
        found[f"{devices} bands, displaced, replace"] = ParallelPlan(**displaced, state_rule="replace")
        found[f"{devices} bands, naive"] = ParallelPlan(devices=devices, mode="naive")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--preset", default="emoji")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--sprites", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--judge-steps", type=int, default=250)
    parser.add_argument("--pictures", type=int, default=96, help="of combinations seen and held out, each")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="plans whose name contains this")
    parser.add_argument("--name", default="parallel_quality")
    options = parser.parse_args()

    chosen = preset(options.preset)
    sprites = load_sprites(options.sprites) if options.sprites else render_sprites(
        options.packages, chosen.concepts or {}, chosen.styles, chosen.sprite_side
    )  # fmt: skip
    vocabulary = Vocabulary(sprites.words(), sprites.styles)
    judge = trained_judge(options.judge, SceneRenderer(sprites, chosen.side), vocabulary, options.judge_steps)
    parts = open_parts(options.model, dtype=torch.float32, device=torch.device("cpu"))
    transformer = parts.transformer
    scenes = [
        scene
        for split in ("train", "held-out")
        for scene in draw_scenes(vocabulary, options.pictures, split, seed=900)
    ]
    prompts = [full_caption(scene) for scene in scenes]
    first: Tensor | None = None
    rows: list[dict[str, object]] = []

    def add(name: str, latents: Tensor, seconds: float) -> Tensor:
        with torch.no_grad():
            pictures = torch.cat(
                [parts.autoencoder.decode(part, tile=None).clamp(-1, 1) for part in latents.split(16)]
            )
        row: dict[str, object] = {"what": name, **asdict(judge_pictures(judge, pictures, scenes))}
        if first is not None:
            errors = (pictures - first).square().mean((1, 2, 3)).clamp(min=1e-10)
            psnr = 10 * torch.log10(4 / errors)
            row |= {"psnr_median": float(psnr.median()), "psnr_worst": float(psnr.min())}
        rows.append(row | {"seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
        figures = {
            "model": options.model,
            "side": chosen.side,
            "steps": options.steps,
            "pictures": len(scenes),
        }
        print(record(options.name, {**figures, "rows": rows}))
        return pictures

    began = time.monotonic()
    first = add(
        "one device", latents_of(parts, transformer, prompts, options.steps), time.monotonic() - began
    )
    for name, plan in plans().items():
        if options.only not in name:
            continue

        def rank_main(group: Group, plan: ParallelPlan = plan) -> Tensor:
            return latents_of(parts, parallelize(transformer, plan, group), prompts, options.steps)

        began = time.monotonic()
        add(name, run_simulated(plan.devices, rank_main, timeout=600.0)[0], time.monotonic() - began)


if __name__ == "__main__":
    main()
