"""Sheets of what the built-in model draws: a hundred prompts of its templates, twenty free ones, unpicked.

Run:
python benchmarks/builtin_gallery.py --output docs
"""
# bench: by hand: two hundred pictures are half an hour on two cores

import argparse
import textwrap
from pathlib import Path

import torch
from builtin_model import pictures_of
from PIL import Image, ImageDraw

from fewer.core.device import pick_device
from fewer.generate.model_folder import open_parts
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.measures import as_bytes
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.table import draw_table
from fewer.generate.scenes.vocabulary import Vocabulary

FREE = (
    "a hungry frog next to its dinner", "a cat and a dog who are best friends", "a rainy day",
    "breakfast on a yellow table", "my favourite fruit", "a scary night with a ghost and a bat",
    "the king's crown", "a robot that loves pizza", "an underwater party with an octopus",
    "space travel", "a birthday party", "the smallest mouse in the world", "winter is coming",
    "a very angry tiger", "two lovebirds", "a picnic with watermelon and lemons", "a wizard's hat and wand",
    "fast food", "a dragon guarding a diamond", "good morning, sunshine",
)  # fmt: skip


def sheet(pictures: torch.Tensor, prompts: list[str], columns: int, side: int) -> Image.Image:
    """Pictures in rows, each with its number and prompt below."""
    below = 44
    rows = -(-len(prompts) // columns)
    found = Image.new("RGB", (columns * side, rows * (side + below)), "white")
    pen = ImageDraw.Draw(found)
    for number, (pixels, prompt) in enumerate(zip(as_bytes(pictures).cpu().numpy(), prompts, strict=True)):
        left, top = number % columns * side, number // columns * (side + below)
        found.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        lines = "\n".join(textwrap.wrap(f"{number + 1}. {prompt}", width=side // 6)[:3])
        pen.multiline_text((left + 3, top + side + 1), lines, fill="black", spacing=0, font_size=11)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--preset", default="emoji")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--count", type=int, default=100, help="half seen, half held-out combinations")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    options = parser.parse_args()
    device = pick_device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    parts = open_parts(options.model, dtype=dtype, device=device)
    guidance = parts.settings.guidance if options.guidance is None else options.guidance
    chosen = preset(options.preset)
    vocabulary = Vocabulary(tuple((chosen.concepts or {}).values()), chosen.styles)
    halves = (("train", options.count - options.count // 2), ("held-out", options.count // 2))
    scenes = [s for split, n in halves for s in draw_table(vocabulary, n, split, options.seed).scenes()]  # type: ignore[arg-type]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, prompts, columns in (
        ("built-in-hundred", [full_caption(scene) for scene in scenes], 10),
        ("built-in-free", list(FREE), 5),
    ):
        drawn = pictures_of(
            parts, prompts, options.steps, guidance, parts.settings.shift, "flow-dpm", options.seed
        )
        sheet(drawn, prompts, columns, options.side).save(options.output / f"{name}.webp", quality=88)
        (options.output / f"{name}.txt").write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
