"""Teaching the built-in model a new object from 30 pictures with `fewer train lora`, judged on unseen ones.

python benchmarks/teach_object.py [--device cuda] [--steps 500] [--adapter FILE]
writes benchmarks/results/teach_object.json and a contact sheet, outputs/teach_object.png. With --adapter the
training is left out: it was done elsewhere on what --write-pictures DIR writes. On a CPU teach the small
model that `fewer train sana --preset emoji-cpu` makes: --model DIR.

The object: a "zorple", which exists nowhere (drawn here: purple hexagon, yellow ring, three teal feet).
30 pictures on coloured backgrounds at five places to learn from; 20 others, whose background and place never
came together, to judge: the drawing's object against the true one (correlation of their pixels, cut out and
brought to one size; 1 is equal), the share above 0.8, and where it stands. The model without the adapter and
another thing ("a cat on ...") with it come beside: what it knew must stay. Nothing was chosen on the 20.
"""
# bench: gpu, 3 min: --device cuda

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from record import record
from torch import Tensor
from torch.nn import functional

from fewer.core.progress import make_progress
from fewer.generate import TextToImage
from fewer.generate.scenes.measures import foreground
from fewer.generate.scenes.vocabulary import COLOURS
from fewer.generate.training.command import TrainLoraRequest, train_lora_command

SIDE, FINE = 256, 4
PLACES = {
    "": (0.5, 0.5),
    " on the left": (0.25, 0.5),
    " on the right": (0.75, 0.5),
    " at the top": (0.5, 0.25),
    " at the bottom": (0.5, 0.75),
}
BACKGROUNDS = tuple(colour for colour in COLOURS if colour not in ("purple", "teal"))


def zorple(colour: str, place: str) -> Image.Image:
    """The true picture of a combination."""
    side = SIDE * FINE
    picture = Image.new("RGB", (side, side), COLOURS[colour])
    pen = ImageDraw.Draw(picture)
    x, y = (share * side for share in PLACES[place])
    radius = 0.2 * side if place else 0.3 * side

    def around(share: float, corners: int, turn: float = 0.0) -> list[tuple[float, float]]:
        angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
        return [(x + share * radius * math.cos(a), y + share * radius * math.sin(a)) for a in angles]

    for foot in around(0.95, 3, math.pi / 2):
        pen.circle(foot, 0.22 * radius, fill=COLOURS["teal"])
    pen.polygon(around(0.9, 6), fill=COLOURS["purple"])
    pen.circle((x, y), 0.5 * radius, outline=COLOURS["yellow"], width=round(0.16 * radius))
    pen.circle((x, y), 0.14 * radius, fill=COLOURS["white"])
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def caption(thing: str, colour: str, place: str) -> str:
    article = "an" if colour[0] in "aeio" else "a"
    return f"a {thing}{place} on {article} {colour} background"


def combinations(seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """30 combinations of background and place to learn from, the other 20 to judge."""
    every = [(colour, place) for colour in BACKGROUNDS for place in PLACES]
    order = np.random.default_rng(seed).permutation(len(every)).tolist()
    return [every[number] for number in order[:30]], [every[number] for number in order[30:]]


def cut_out(picture: Image.Image) -> tuple[Tensor, tuple[float, float]]:
    """The object brought to 32x32 pixels and to mean 0 and length 1, and its middle in shares of the side."""
    if picture.width != SIDE:  # a model of smaller pictures
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture).copy())
    mask = foreground(pixels[None])[0]
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(3 * 32 * 32), (-1.0, -1.0)
    box = pixels[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    small = functional.interpolate(box.permute(2, 0, 1)[None].float(), (32, 32), mode="area")[0]
    small = small - small.mean((1, 2), keepdim=True)
    middle = (float(columns[0] + columns[-1]) / 2 / SIDE, float(rows[0] + rows[-1]) / 2 / SIDE)
    return functional.normalize(small.flatten(), dim=0), middle


def judge(drawn: list[Image.Image], asked: list[tuple[str, str]]) -> dict[str, float]:
    alike, placed = [], []
    for picture, (colour, place) in zip(drawn, asked, strict=True):
        (found, middle), (true, wanted) = cut_out(picture), cut_out(zorple(colour, place))
        alike.append(float(found @ true))
        placed.append(math.dist(middle, wanted) < 0.1)
    return {
        "correlation": round(float(np.mean(alike)), 4),
        "share_above_0.8": round(float(np.mean([one > 0.8 for one in alike])), 4),
        "in_place": round(float(np.mean(placed)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--judge", type=int, default=20, help="judge on so many (dry run)")
    parser.add_argument("--adapter", type=Path, help="judge this one")
    parser.add_argument("--write-pictures", type=Path, help="write the 30 pictures there, and stop")
    options = parser.parse_args()
    learned, asked = combinations()
    asked = asked[: options.judge]
    if options.write_pictures:
        write_pictures(options.write_pictures, learned)
        return
    with tempfile.TemporaryDirectory() as temporary:
        trained = {} if options.adapter else train(options, Path(temporary), learned)
        pipe = TextToImage.load(options.model, device=options.device)
        prompts = [caption("zorple", colour, place) for colour, place in asked]
        cats = [caption("cat", colour, place) for colour, place in asked[:6]]
        how = {"steps": options.sampling_steps, "seed": 3}
        worn = {"lora": (str(options.adapter or trained["output"]),), **how}
        with_adapter, without = pipe(prompts, **worn).images, pipe(prompts, **how).images
        cats_with, cats_without = pipe(cats, **worn).images, pipe(cats, **how).images
    side = with_adapter[0].width
    truth = [zorple(*one).resize((side, side), Image.Resampling.LANCZOS) for one in asked]
    kept = [
        float(cut_out(one)[0] @ cut_out(other)[0]) for one, other in zip(cats_with, cats_without, strict=True)
    ]
    rows = {
        "true pictures": judge(truth, asked),
        "without the adapter": judge(without, asked),
        "with the adapter": judge(with_adapter, asked),
        "cats, with against without (correlation)": round(float(np.mean(kept)), 4),
    }
    for name, row in rows.items():
        print(name, row)
    settings = {name: getattr(options, name) for name in ("steps", "batch", "rank", "sampling_steps")}
    settings["side"] = side
    trained.pop("output", None)
    record(
        "teach_object", {"pictures": len(learned), "judged": len(asked), **settings, **trained, "rows": rows}
    )
    save_sheet([truth[:10], without[:10], with_adapter[:10], cats_without, cats_with])


def write_pictures(folder: Path, learned: list[tuple[str, str]]) -> None:
    """The pictures to learn from; their names are their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour, place in learned:
        zorple(colour, place).save(folder / f"{caption('zorple', colour, place)}.png")


def train(options: argparse.Namespace, folder: Path, learned: list[tuple[str, str]]) -> dict[str, object]:
    """What `fewer train lora` reports."""
    write_pictures(folder / "pictures", learned)
    request = TrainLoraRequest(
        data=folder / "pictures", output=folder / "run", model=options.model, steps=options.steps,
        batch=options.batch, rank=options.rank, device=options.device,
    )  # fmt: skip
    report = train_lora_command(request, make_progress("auto"))
    return {name: report[name] for name in ("output", "first_loss", "loss", "seconds")}


def save_sheet(rows: list[list[Image.Image]], side: int = 128) -> None:
    """Truth, without, with; then cats without and with."""
    sheet = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (column * side, row * side))
    path = Path(__file__).parents[1] / "outputs" / "teach_object.png"
    path.parent.mkdir(exist_ok=True)
    sheet.save(path)


if __name__ == "__main__":
    main()
