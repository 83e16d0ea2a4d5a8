"""A small transformer over-fits sixteen captioned pictures: the loss falls, each prompt finds its picture.

Run: python benchmarks/overfit_sixteen.py --sprites run/sprites.safetensors \\
         --output benchmarks/results/overfit_sixteen.json
"""
# bench: by hand: needs --sprites, which a training run of the built-in model leaves

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
from builtin_model import pictures_of

from fewer.core.files import write_json
from fewer.core.progress import make_progress
from fewer.generate.model_folder import Parts, open_parts
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.pool import Vocabulary, draw_scenes, encode_scenes, to_tensor
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.recipe import fresh_transformer
from fewer.generate.scenes.sprites import load_sprites
from fewer.generate.training.encoded import assemble
from fewer.generate.training.transformer import TransformerTraining, train_transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began, spent = time.monotonic(), time.process_time()
    chosen = preset("emoji-cpu")
    sheet = load_sprites(options.sprites)
    renderer = SceneRenderer(sheet, chosen.side)
    scenes = draw_scenes(Vocabulary(sheet.words(), sheet.styles), 16, "train", seed=3)
    captions = [full_caption(scene) for scene in scenes]
    parts = open_parts("default", dtype=torch.float32, device=torch.device("cpu"))
    latents = list(encode_scenes(renderer.place(scenes), renderer, parts.autoencoder))
    data = assemble(latents, [[(caption, 30.0)] for caption in captions], parts.encoder)
    plan = TransformerTraining(
        steps=options.steps, batch=16, learning_rate=2e-3, warmup=20, dtype="fp32", ema_decay=0.98
    )
    transformer = fresh_transformer(chosen, seed=0)
    losses = train_transformer(transformer, data, plan, progress=make_progress("auto")).losses

    own = Parts(transformer, parts.autoencoder, parts.encoder, replace(parts.settings, guidance=1.0))
    drawn = pictures_of(own, captions, 20, 1.0, 1.0, "flow-dpm", seed=0)
    truth = to_tensor([renderer(scene) for scene in scenes])
    distance = (drawn[:, None] - truth[None]).square().mean(dim=(2, 3, 4))
    right = int((distance.argmin(dim=1) == torch.arange(16)).sum())
    report = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in transformer.parameters()),
        "steps": options.steps,
        "first_loss": sum(losses[:10]) / 10,
        "last_loss": sum(losses[-20:]) / 20,
        "nearest_is_right_of_16": right,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - spent,
    }
    if options.output:
        write_json(options.output, report)
    print(report)


if __name__ == "__main__":
    main()
