"""Starts a new, tiny transformer on four drawn pictures, with the built-in autoencoder and text encoder.

A real run has thousands of pictures and steps: fewer train sana --data DIR --output DIR.
"""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from fewer.core.progress import SilentProgress
from fewer.generate.training.command import TrainSanaRequest, train_sana_command


def draw_pictures(folder: Path) -> None:
    """Two shapes in two sizes of paper: square and wide. Captions stand in text files, one a line."""
    for shape in ("square", "disk"):
        for width in (128, 192):
            picture = Image.new("RGB", (width, 128), "yellow")
            pen = ImageDraw.Draw(picture)
            draw = pen.rectangle if shape == "square" else pen.ellipse
            draw((32, 32, 96, 96), fill="purple")
            path = folder / f"{shape}-{width}.png"
            picture.save(path)
            path.with_suffix(".txt").write_text(f"31\ta purple {shape} on yellow\n26\ta {shape}\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pictures").mkdir()
        draw_pictures(folder / "pictures")
        request = TrainSanaRequest(
            data=folder / "pictures",
            output=folder / "run",
            fresh=2,
            width=64,
            size=64,
            steps=8,
            batch=2,
            device="cpu",
        )
        report = train_sana_command(request, SilentProgress())
        print(f"{report['steps']} steps, loss {report['loss']:.3f}, buckets {report['buckets']}")


if __name__ == "__main__":
    main()
