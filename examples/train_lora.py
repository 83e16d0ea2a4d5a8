"""Teaches the built-in model a thing of one's own from four drawn pictures, in a few steps.

A real run has 20 to 50 pictures and some 500 steps: fewer train lora --data DIR --output DIR.
"""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from fewer.core.progress import SilentProgress
from fewer.generate.training.command import TrainLoraRequest, train_lora_command


def draw_pictures(folder: Path) -> None:
    """A white ring on four backgrounds; the file's name is the caption."""
    for colour in ("red", "blue", "green", "black"):
        picture = Image.new("RGB", (128, 128), colour)
        ImageDraw.Draw(picture).ellipse((24, 24, 104, 104), outline="white", width=14)
        picture.save(folder / f"a zorple on a {colour} background.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pictures").mkdir()
        draw_pictures(folder / "pictures")
        request = TrainLoraRequest(
            data=folder / "pictures", output=folder / "run", size=64, steps=6, batch=4, rank=4, device="cpu"
        )
        report = train_lora_command(request, SilentProgress())
        size = Path(str(report["output"])).stat().st_size
        print(f"{report['steps']} steps, loss {report['loss']:.3f}, an adapter of {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
