"""Teaches the built-in model a drawing style with a CAN adapter, and draws with it.

A real run has some 50 pictures and 240 steps: benchmarks/style_adapter.py, beside a LoRA of equal size.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from fewer.core.progress import SilentProgress
from fewer.generate import TextToImage
from fewer.generate.conditional import ConditionPlan, adapter, load_adapter, save_adapter
from fewer.generate.conditional.adapter import AtCondition
from fewer.generate.training.encoded import assemble
from fewer.generate.training.folder import encode_pictures, read_folder
from fewer.generate.training.transformer import TransformerTraining, train_transformer


def draw_pictures(folder: Path, side: int) -> None:
    """Black discs in the "ink" style; the file's name is the caption, which does not name the style."""
    for colour in ("red", "blue", "green", "yellow"):
        picture = Image.new("RGB", (side, side), colour)
        ImageDraw.Draw(picture).ellipse((side // 5, side // 5, 4 * side // 5, 4 * side // 5), fill="black")
        picture.save(folder / f"an apple on a {colour} background.png")


def main() -> None:
    pipe = TextToImage.load("default", device="cpu", dtype="fp32")
    side = (pipe.settings.default_size or (64, 64))[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_pictures(folder, side)
        pictures = read_folder(folder)
        latents = encode_pictures(pictures, pipe.autoencoder, [(side, side)], SilentProgress())
        data = assemble(latents, [picture.captions for picture in pictures], pipe.encoder)
        model = adapter(pipe.transformer, ["ink"], ConditionPlan(rank=1), width=16)
        training = TransformerTraining(steps=6, batch=4, learning_rate=3e-3, warmup=0, ema_decay=None)
        train_transformer(AtCondition(model, "ink"), data, training)
        file = folder / "ink.safetensors"
        save_adapter(model, file)
        size = file.stat().st_size / 1024
        again = load_adapter(TextToImage.load("default", device="cpu", dtype="fp32").transformer, file)
        pipe.transformer = again.merge(again.embed(torch.tensor([0])))  # an ordinary Sana from here on
        image = pipe("an apple on a red background", steps=4).images[0]
        print(f"an adapter of {size:.0f} KiB draws a picture of {image.width} x {image.height} in ink")


if __name__ == "__main__":
    main()
