"""The built-in model before its judges: colour, count, place, style, identity, shuffled captions, PSNR.

Judges see rendered truth alone while they train; their scores on truth and on reconstructions are the
ceiling. Seen and held-out combinations are reported apart; the guidance is chosen on the validation split.
Run:
python benchmarks/builtin_model.py --packages NODE_MODULES --output benchmarks/results/builtin_model.json
"""
# bench: by hand: needs --packages NODE_MODULES, the emoji packages of its docstring

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fewer.core.device import pick_device
from fewer.core.files import write_json
from fewer.core.progress import make_progress
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.lora import attach, detach, read_lora
from fewer.generate.model_folder import Parts, open_parts
from fewer.generate.sampling import sample
from fewer.generate.scenes.autoencode import reconstruction_psnr
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.compose import Scene, SceneRenderer
from fewer.generate.scenes.concepts import FIRST_CONCEPTS
from fewer.generate.scenes.judge_training import train_judge
from fewer.generate.scenes.judges import SpriteJudge, cut_objects, judge_pictures
from fewer.generate.scenes.measures import as_bytes
from fewer.generate.scenes.more_concepts import MORE_CONCEPTS
from fewer.generate.scenes.pool import signed
from fewer.generate.scenes.presets import EmojiPreset, preset
from fewer.generate.scenes.split import held_out_reasons
from fewer.generate.scenes.sprites import SpriteSheet, load_sprites, render_sprites
from fewer.generate.scenes.table import draw_any, draw_table
from fewer.generate.scenes.vocabulary import Vocabulary

JUDGE = Path(__file__).with_name("builtin_judge.safetensors")
"""Trained on rendered truth alone, see docs/built-in-model.md."""


@torch.inference_mode()
def pictures_of(
    parts: Parts,
    prompts: list[str],
    steps: int,
    guidance: float,
    shift: float,
    method: str,
    seed: int,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """One picture for each prompt, in batches, from one stream of noise; `grid` are the latents' sides.

    `method` "few-steps" is the model's few-step edition, which has its guidance built in.
    """
    side, channels = parts.transformer.params.sample_size, parts.transformer.params.in_channels
    shape = (channels, *(grid or (side, side)))
    if method == "few-steps":
        return _few_step_pictures(parts, prompts, steps, seed, shape)
    weight = parts.transformer.proj_out.weight
    size = 128 if weight.is_cuda else 16
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        count = len(batch)
        text = parts.encoder.encode([*[""] * count, *batch])
        prepared = parts.transformer.prepare(text.tokens.to(weight.dtype), text.mask)

        def velocity(latents: torch.Tensor, timestep: float, count=count, prepared=prepared) -> torch.Tensor:
            times = torch.full((2 * count,), float(timestep), device=weight.device)
            doubled = latents.repeat(2, 1, 1, 1).to(weight.dtype)
            without, conditioned = parts.transformer.denoise(doubled, times, prepared).float().chunk(2)
            return without + guidance * (conditioned - without)

        noise = torch.randn(count, *shape, generator=generator).to(weight.device)
        latents = noise
        for step in sample(velocity, noise, steps=steps, shift=shift, method=method):  # type: ignore[arg-type]
            latents = step.latents
        decoder = next(parts.autoencoder.parameters())
        parts_of = latents.to(decoder.dtype).split(64)
        drawn += [parts.autoencoder.decode(part, tile=None).float().clamp(-1, 1) for part in parts_of]
    return torch.cat(drawn)


def _few_step_pictures(
    parts: Parts, prompts: list[str], steps: int, seed: int, shape: tuple[int, ...]
) -> torch.Tensor:
    if parts.few_steps is None or parts.few_steps.weights is None:
        raise SystemExit("this model has no few-step edition: fewer train few-steps")
    attach(parts.transformer, read_lora(parts.few_steps.weights), name="few_steps")
    weight = parts.transformer.proj_out.weight
    generator = torch.Generator().manual_seed(seed)
    size, drawn = 128 if weight.is_cuda else 16, []
    for start in range(0, len(prompts), size):
        text = parts.encoder.encode(prompts[start : start + size])
        prepared = parts.transformer.prepare(text.tokens.to(weight.dtype), text.mask)

        def velocity(latents: torch.Tensor, timestep: float, prepared=prepared) -> torch.Tensor:
            times = torch.full((len(latents),), float(timestep), device=weight.device)
            return parts.transformer.denoise(latents.to(weight.dtype), times, prepared)

        count = len(text.tokens)
        latents = torch.randn(count, *shape, generator=generator).to(weight.device)
        for step in sample(velocity, latents, levels=parts.few_steps.levels[steps - 1], order=1):
            latents = step.latents
        decoder = next(parts.autoencoder.parameters())
        parts_of = latents.to(decoder.dtype).split(64)
        drawn += [parts.autoencoder.decode(part, tile=None).float().clamp(-1, 1) for part in parts_of]
    detach(parts.transformer)
    return torch.cat(drawn)


def frechet(judge: SpriteJudge, drawn: torch.Tensor, truth: torch.Tensor, scenes: list[Scene]) -> float:
    """Fréchet distance of the judge's features of all objects, drawn against rendered for the same scenes."""
    with torch.no_grad():
        one, other = (judge.pooled(cut_objects(p, scenes)[0]).double().cpu() for p in (drawn, truth))
    mean = (one.mean(0) - other.mean(0)).square().sum()
    covariances = [torch.cov(features.T) for features in (one, other)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    return float(mean + torch.trace(covariances[0]) + torch.trace(covariances[1]) - 2 * roots)


def contact_sheet(
    pictures: torch.Tensor, scenes: list[Scene], columns: int = 6, side: int = 160
) -> Image.Image:
    """Pictures with their prompts below."""
    margin = 40
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    pixels = as_bytes(pictures).cpu().numpy()
    how = Image.Resampling.LANCZOS if pixels.shape[1] > side else Image.Resampling.NEAREST
    for number, scene in enumerate(scenes):
        left, top = number % columns * side, number // columns * (side + margin)
        picture = Image.fromarray(pixels[number])
        share = side / max(picture.size)
        shown = (round(share * picture.width), round(share * picture.height))
        sheet.paste(picture.resize(shown, how), (left, top))
        words, line, lines = full_caption(scene).split(), "", []
        for word in words:
            if len(line) + len(word) > 26:
                lines.append(line)
                line = ""
            line += word + " "
        pen.multiline_text(
            (left + 2, top + side), "\n".join([*lines, line]), fill="black", spacing=0, font_size=10
        )
    return sheet


@dataclass(frozen=True)
class Exam:
    """A model before its judge."""

    options: argparse.Namespace
    vocabulary: Vocabulary
    renderer: SceneRenderer
    judge: SpriteJudge
    parts: Parts
    sheets: list[tuple[torch.Tensor, list[Scene]]] = field(default_factory=list)

    @property
    def shift(self) -> float:
        return self.parts.settings.shift if self.options.shift is None else self.options.shift

    def scenes(self, split: str, count: int, seed: int) -> tuple[list[Scene], torch.Tensor]:
        """Scenes of the split, and their true pictures."""
        table = draw_table(self.vocabulary, count, split, seed)  # type: ignore[arg-type]
        return table.scenes(), signed(self.renderer.render(table.placed(self.renderer)))

    def judged(self, split: str, count: int, seed: int, guidance: float, method: str, steps: int) -> dict:
        """What the judge says of the scenes' captions as the model draws them."""
        options, judge = self.options, self.judge
        scenes, shown = self.scenes(split, count, seed)
        start = time.monotonic()
        prompts = [full_caption(scene) for scene in scenes]
        drawn = pictures_of(self.parts, prompts, steps, guidance, self.shift, method, options.seed)
        seconds = (time.monotonic() - start) / len(scenes)
        if method == "flow-dpm" and steps == options.steps and split != "validation":
            self.sheets.append((drawn[:18].cpu(), scenes[:18]))
        parts_of_it = {}
        for reason in ("style", "pair", "colour") if split == "held-out" else ():
            rows = [row for row, scene in enumerate(scenes) if reason in held_out_reasons(scene)]
            if len(rows) > 1:
                own = judge_pictures(judge, drawn[rows], [scenes[row] for row in rows])
                parts_of_it[f"held-out {reason}"] = asdict(own)
        distance = {"frechet": frechet(judge, drawn, shown, scenes), "seconds_a_picture": seconds}
        return asdict(judge_pictures(judge, drawn, scenes)) | parts_of_it | distance

    def best_guidance(self, report: dict[str, object]) -> float:
        """The only one, or the best on the validation split."""
        options = self.options
        guidances = options.guidance or [self.parts.settings.guidance]
        if len(guidances) == 1:
            return guidances[0]
        tried = {
            one: self.judged("validation", options.pictures // 2, 300, one, "flow-dpm", options.steps)
            for one in guidances
        }
        report["validation"] = {str(one): verdict for one, verdict in tried.items()}
        return max(tried, key=lambda one: sum(tried[one][name] for name in ("identity", "style", "count")))


def main() -> None:
    options = arguments()
    began = time.monotonic()
    exam, report = prepared(options)
    whole = not (options.only_validation or options.only_methods)
    if whole:
        scenes, shown = exam.scenes("held-out", options.pictures, 77)
        report |= without_drawing(exam.judge, exam.parts.autoencoder, shown, scenes)
    guidance = exam.best_guidance(report)
    report["settings"] = {
        "steps": options.steps, "guidance": guidance, "shift": exam.shift, "method": "flow-dpm"
    }  # fmt: skip
    count, seed = options.pictures, 500 + options.seed
    for split in ("train", "held-out") if whole else ():
        report[split] = exam.judged(split, count, seed, guidance, "flow-dpm", options.steps)
    for name in () if options.only_validation else options.methods:
        method, _, steps = name.partition(":")
        report[name] = exam.judged("train", count, seed, guidance, method, int(steps))
    for steps, split in product(options.few_steps, ("train", "held-out")) if whole else ():
        few = exam.judged(split, count, seed, guidance, "few-steps", steps)
        report[f"few-steps:{steps} {split}"] = few | {"behind": _behind(few, report[split])}
    report["seconds"] = time.monotonic() - began
    if options.sheet and exam.sheets:
        drawn = torch.cat([pictures for pictures, _ in exam.sheets])
        contact_sheet(drawn, [scene for _, own in exam.sheets for scene in own]).save(options.sheet)
    tell(report, options.output)


def prepared(options: argparse.Namespace) -> tuple[Exam, dict[str, object]]:
    """The model, its judge and the scenes to draw; and what the report says of them."""
    chosen = preset(options.preset)
    sprites = sprites_for(options, chosen)
    device = pick_device(options.device)
    vocabulary = Vocabulary(sprites.words(), sprites.styles)
    renderer = SceneRenderer(sprites, chosen.side, device).prepare()
    stored = options.judge or (JUDGE if options.preset == "emoji" else None)
    judge = trained_judge(stored, renderer, vocabulary, options.judge_steps)
    if options.names != "all":  # prompts of some names; the judge chooses among all
        group = set((FIRST_CONCEPTS if options.names == "first" else MORE_CONCEPTS).values())
        vocabulary = Vocabulary(tuple(word for word in sprites.words() if word in group), sprites.styles)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    parts = open_parts(options.model, dtype=dtype, device=device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return Exam(options, vocabulary, renderer, judge, parts), {
        "machine": f"{machine}, {platform.python_implementation()} {platform.python_version()}",
        "torch": torch.__version__,
        "vocabulary": {"concepts": len(vocabulary.words), "styles": len(vocabulary.styles)},
        "judge": {"concepts": len(judge.words)},
    }


def sprites_for(options: argparse.Namespace, chosen: EmojiPreset) -> SpriteSheet:
    """The rendered things: from a file, or from the packages."""
    if options.sprites:
        return load_sprites(options.sprites)
    return render_sprites(options.packages, chosen.concepts or {}, chosen.styles, chosen.sprite_side)


def tell(report: dict[str, object], output: Path | None) -> None:
    """Prints the report and keeps it; figures that are no numbers become null."""
    cleaned = json.loads(json.dumps(report), parse_constant=lambda _: None)
    if output:
        write_json(output, cleaned)
    print(json.dumps(cleaned, indent=1))
    assert np.isfinite(report.get("autoencoder_psnr_held_out", 0.0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--preset", default="emoji")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--sprites", type=Path, help="sprites.safetensors of the run, instead of --packages")
    parser.add_argument("--judge", type=Path, help="where the judge is kept; the stored one for emoji")
    parser.add_argument("--judge-steps", type=int, default=4000)
    parser.add_argument(
        "--names", choices=["all", "first", "more"], default="all", help="first: those of the third edition"
    )
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", help="several: the best on the validation split")
    parser.add_argument("--shift", type=float)
    parser.add_argument("--methods", nargs="*", default=[], help="flow-dpm:14 flow-euler:28 ...")
    parser.add_argument("--only-validation", action="store_true", help="choose the guidance and stop")
    parser.add_argument("--only-methods", action="store_true", help="compare --methods and stop")
    parser.add_argument(
        "--few-steps", type=int, nargs="*", default=[], help="steps of the few-step edition: 1 2 4"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


@torch.no_grad()
def without_drawing(
    judge: SpriteJudge, autoencoder: DCAutoencoder, shown: torch.Tensor, scenes: list[Scene]
) -> dict[str, object]:
    """What the judge says of true pictures, and of those that went through the autoencoder."""
    kind = next(autoencoder.parameters()).dtype
    again = torch.cat([autoencoder.decode(autoencoder.encode(p.to(kind))).float() for p in shown.split(16)])
    psnr = reconstruction_psnr(autoencoder.float(), shown)
    autoencoder.to(kind)
    return {
        "truth": asdict(judge_pictures(judge, shown, scenes)),
        "reconstructions": asdict(judge_pictures(judge, again, scenes)),
        "autoencoder_psnr_held_out": psnr,
    }


def _behind(few: dict, many: object) -> dict[str, float]:
    """Points by which each judge's share is lower than with all steps (bar: 3)."""
    assert isinstance(many, dict)
    shares = ("colour", "count", "left_right", "above_below", "order", "style", "identity", "identity_top5")
    return {
        name: round(100 * (many[name] - few[name]), 1)
        for name in shares
        if isinstance(many.get(name), float) and isinstance(few.get(name), float)
    }


def trained_judge(
    path: Path | None, renderer: SceneRenderer, vocabulary: Vocabulary, steps: int
) -> SpriteJudge:
    """A judge from its file, or trained on truth (and kept there)."""
    if path is not None and path.is_file():
        return SpriteJudge.load(path, vocabulary.words, vocabulary.styles).to(renderer.device)
    table = draw_any(vocabulary, 40_000, np.random.default_rng(9))
    batch = 256 if renderer.device.type == "cuda" else 64
    judge = train_judge(
        renderer,
        table,
        steps=steps,
        batch=batch,
        width=48 if renderer.device.type == "cuda" else 32,
        progress=make_progress("auto"),
    )
    if path is not None:
        judge.save(path)
    return judge


if __name__ == "__main__":
    main()
