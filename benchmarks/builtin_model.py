"""The built-in model before its judges: colour, count, place, style, identity, shuffled captions, PSNR.

Judges see rendered truth alone while they train; their scores on truth and on reconstructions are the
ceiling. Seen and held-out combinations are reported apart. Run:
python benchmarks/builtin_model.py --packages NODE_MODULES --output benchmarks/results/builtin_model.json
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fewer.core.files import write_json
from fewer.core.progress import make_progress, track
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.model_folder import Parts, open_parts
from fewer.generate.sampling import sample
from fewer.generate.scenes.autoencode import reconstruction_psnr
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import Scene, SceneRenderer
from fewer.generate.scenes.judges import SpriteJudge, judge_loss, judge_pictures
from fewer.generate.scenes.pool import Vocabulary, draw_scenes, to_tensor
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.sprites import load_sprites, render_sprites


@torch.no_grad()
def pictures_of(
    parts: Parts, prompts: list[str], steps: int, guidance: float, shift: float, method: str, seed: int
) -> torch.Tensor:
    """One picture for each prompt, in batches of 16, from one stream of noise."""
    side = parts.transformer.params.sample_size
    channels = parts.transformer.params.in_channels
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for start in range(0, len(prompts), 16):
        batch = prompts[start : start + 16]
        count = len(batch)
        text = parts.encoder.encode([*[""] * count, *batch])
        prepared = parts.transformer.prepare(text.tokens.float(), text.mask)

        def velocity(latents: torch.Tensor, timestep: float, count=count, prepared=prepared) -> torch.Tensor:
            times = torch.full((2 * count,), float(timestep))
            without, conditioned = parts.transformer.denoise(
                latents.repeat(2, 1, 1, 1), times, prepared
            ).chunk(2)
            return without + guidance * (conditioned - without)

        noise = torch.randn(count, channels, side, side, generator=generator)
        latents = noise
        for step in sample(velocity, noise, steps=steps, shift=shift, method=method):  # type: ignore[arg-type]
            latents = step.latents
        drawn.append(parts.autoencoder.decode(latents, tile=None).clamp(-1, 1))
    return torch.cat(drawn)


def trained_judge(
    path: Path | None, renderer: SceneRenderer, vocabulary: Vocabulary, steps: int
) -> SpriteJudge:
    """A judge from its file, or trained on truth (and kept there)."""
    torch.manual_seed(0)
    judge = SpriteJudge(vocabulary.words, vocabulary.styles)
    if path is not None and path.is_file():
        judge.load_state_dict(read_tensors(path))
        return judge.eval()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for step in track(range(steps), make_progress("auto"), "judge", steps):
        scenes = draw_scenes(vocabulary, 32, "train" if step % 4 else "held-out", seed=1000 + step)
        loss = judge_loss(judge, to_tensor([renderer(scene) for scene in scenes]), scenes, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if path is not None:
        write_tensors(path, judge.state_dict())
    return judge.eval()


def contact_sheet(pictures: torch.Tensor, scenes: list[Scene], columns: int = 6) -> Image.Image:
    """Pictures with their prompts below, small ones enlarged without smoothing."""
    pictures = torch.nn.functional.interpolate(pictures, scale_factor=max(1, 128 // pictures.shape[-1]))
    side, margin = pictures.shape[-1], 40
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    pixels = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, scene in enumerate(scenes):
        left, top = number % columns * side, number // columns * (side + margin)
        sheet.paste(Image.fromarray(pixels[number]), (left, top))
        words, line, lines = full_caption(scene).split(), "", []
        for word in words:
            if len(line) + len(word) > 21:
                lines.append(line)
                line = ""
            line += word + " "
        pen.multiline_text(
            (left + 2, top + side), "\n".join([*lines, line]), fill="black", spacing=0, font_size=10
        )
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--preset", default="emoji-cpu")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--sprites", type=Path, help="sprites.safetensors of the run, instead of --packages")
    parser.add_argument("--judge", type=Path, help="where the judge is kept")
    parser.add_argument("--judge-steps", type=int, default=250)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--method", default="flow-dpm")
    parser.add_argument("--splits", default="train,held-out", help="validation is for choosing the guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began = time.monotonic()

    chosen = preset(options.preset)
    if options.sprites:
        sprites = load_sprites(options.sprites)
    else:
        sprites = render_sprites(options.packages, chosen.concepts or {}, chosen.styles, chosen.sprite_side)
    vocabulary = Vocabulary(sprites.words(), sprites.styles)
    renderer = SceneRenderer(sprites, chosen.side)
    judge = trained_judge(options.judge, renderer, vocabulary, options.judge_steps)
    parts = open_parts(options.model, dtype=torch.float32, device=torch.device("cpu"))
    guidance = parts.settings.guidance if options.guidance is None else options.guidance
    shift = parts.settings.shift if options.shift is None else options.shift

    report: dict[str, object] = {
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "torch": torch.__version__,
        "settings": {"steps": options.steps, "guidance": guidance, "shift": shift, "method": options.method},
        "vocabulary": {"concepts": len(vocabulary.words), "styles": len(vocabulary.styles)},
    }
    truth = draw_scenes(vocabulary, 2 * options.pictures, "held-out", seed=77)
    shown = to_tensor([renderer(scene) for scene in truth])
    with torch.no_grad():
        again = torch.cat(
            [parts.autoencoder.decode(parts.autoencoder.encode(part)) for part in shown.split(16)]
        )
    report["truth"] = asdict(judge_pictures(judge, shown, truth))
    report["reconstructions"] = asdict(judge_pictures(judge, again, truth))
    report["autoencoder_psnr_held_out"] = reconstruction_psnr(parts.autoencoder, shown)
    sheets: list[tuple[torch.Tensor, list[Scene]]] = []
    for split in options.splits.split(","):
        scenes = draw_scenes(vocabulary, options.pictures, split, seed=500 + options.seed)
        start = time.monotonic()
        prompts = [full_caption(scene) for scene in scenes]
        pictures = pictures_of(parts, prompts, options.steps, guidance, shift, options.method, options.seed)
        report[split] = asdict(judge_pictures(judge, pictures, scenes)) | {
            "seconds_a_picture": (time.monotonic() - start) / len(scenes)
        }
        sheets.append((pictures[:18], scenes[:18]))
    report["seconds"] = time.monotonic() - began
    if options.sheet:
        sheet = contact_sheet(torch.cat([p for p, _ in sheets]), [s for _, own in sheets for s in own])
        sheet.save(options.sheet, quality=88)
    cleaned = json.loads(json.dumps(report), parse_constant=lambda _: None)
    if options.output:
        write_json(options.output, cleaned)
    print(json.dumps(cleaned, indent=1))
    assert np.isfinite(report["autoencoder_psnr_held_out"])


if __name__ == "__main__":
    main()
