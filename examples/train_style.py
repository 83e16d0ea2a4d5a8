"""Teaches the built-in model a drawing style by generated weights (CAN), and draws with it.

A real run has some 50 pictures and 240 steps: benchmarks/style_adapter.py, beside a LoRA of equal size.
fewer train style --data DIR --name ink --output DIR
fewer generate "an apple on a red background" --style DIR/ink.safetensors
"""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from fewer.core.progress import SilentProgress
from fewer.generate import TextToImage
from fewer.generate.training.command_style import TrainStyleRequest, train_style_command


def draw_pictures(folder: Path, side: int = 128) -> None:
    """Black discs in the "ink" style; the file's name is the caption, which does not name the style."""
    folder.mkdir()
    for colour in ("red", "blue", "green", "yellow"):
        picture = Image.new("RGB", (side, side), colour)
        ImageDraw.Draw(picture).ellipse((side // 5, side // 5, 4 * side // 5, 4 * side // 5), fill="black")
        picture.save(folder / f"an apple on a {colour} background.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_pictures(folder / "pictures")
        request = TrainStyleRequest(
            data=folder / "pictures", output=folder / "run", name="ink", size=128, steps=6, batch=4,
            learning_rate=3e-3, device="cpu",
        )  # fmt: skip
        report = train_style_command(request, SilentProgress())
        file = Path(str(report["output"]))
        print(f"{report['pictures']} pictures, {report['steps']} steps, loss {report['loss']:.3f}")
        pipe = TextToImage.load("default", device="cpu", dtype="fp32", style=f"{file}:0.8")
        image = pipe("an apple on a red background", steps=2, size=128).images[0]
        print(f"a style of {file.stat().st_size / 1024:.0f} KiB drew {image.width} x {image.height} pixels")


if __name__ == "__main__":
    main()
