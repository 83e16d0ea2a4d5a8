"""Teaches the built-in model a thing of one's own from 24 drawn pictures, in a few small steps.

A real run takes its 20 to 50 pictures at full size and some 500 steps, and then draws with what it learned:
fewer train lora --data DIR --output DIR
fewer generate "a zorple on the left on a pink background" --lora DIR/pytorch_lora_weights.safetensors
benchmarks/teach_object.py does that and judges it.
"""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from fewer.core.progress import SilentProgress
from fewer.generate.training.command import TrainLoraRequest, train_lora_command

COLOURS = ("red", "blue", "green", "black", "orange", "gray", "brown", "yellow")
PLACES = {"": 64, " on the left": 36, " on the right": 92}


def draw_pictures(folder: Path) -> None:
    """A white ring with a purple eye on eight backgrounds at three places; the file's name is the caption."""
    for colour in COLOURS:
        for place, x in PLACES.items():
            picture = Image.new("RGB", (128, 128), colour)
            pen = ImageDraw.Draw(picture)
            pen.ellipse((x - 28, 36, x + 28, 92), outline="white", width=9)
            pen.ellipse((x - 8, 56, x + 8, 72), fill="purple")
            picture.save(folder / f"a zorple{place} on a {colour} background.png")


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
        print(f"{report['pictures']} pictures, {report['steps']} steps, loss {report['loss']:.3f}")
        print(f"an adapter of {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
