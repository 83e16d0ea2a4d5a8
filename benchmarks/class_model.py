"""A small class-conditional model that draws well: 48 emoji in two drawing styles, adaLN with generated
weights.

python benchmarks/class_model.py [--steps 20000] [--output FOLDER]
trains it on a GPU in minutes (32 px, patch 4, width 64, 5 blocks, rank 8, half a million parameters) on the
tiles of data/emoji-styles under licences that allow it (Fluent flat, Noto; mirrored and moved by a pixel),
writes the model's folder with 16-bit weights, a contact sheet and benchmarks/results/class_model.json: flow
error, and for 960 drawings the share that a classifier trained on the tiles takes for their class, the
Fréchet distance in its features, and how far in pixels (root mean square) a drawing lies from the nearest
tile of its class and from the nearest of another.
"""
# bench: gpu, 4 min:

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from can_judge import Judge, draw, judge_trainee, judged
from can_quality import DATA
from graphed import Trainee, train_side_by_side
from PIL import Image
from record import record
from torch import Tensor

from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
from fewer.generate.conditional.build import build
from fewer.generate.conditional.formats import save_folder
from fewer.generate.conditional.pictures import LabelledPictures
from fewer.generate.conditional.training import flow_error, parameter_groups, validation_error

STYLES = ("flat", "noto")
"""Under MIT and Apache-2.0; not openmoji (share-alike), twemoji (attribution), nor contrast (no colours)."""
CLASSES = (
    "smiling face with sunglasses", "ghost", "alien", "robot", "red heart", "dog face", "fox", "cat face",
    "lion", "unicorn", "pig face", "panda", "penguin", "owl", "frog", "octopus", "butterfly", "honeybee",
    "lady beetle", "sunflower", "tulip", "evergreen tree", "cactus", "mushroom", "watermelon", "lemon",
    "banana", "red apple", "cherries", "strawberry", "tomato", "carrot", "hamburger", "pizza", "doughnut",
    "house", "automobile", "sailboat", "rocket", "alarm clock", "crescent moon", "sun", "star", "rainbow",
    "umbrella", "snowman", "balloon", "light bulb",
)  # fmt: skip


def tiles() -> LabelledPictures:
    """One picture of every class and style."""
    rows = csv.DictReader((DATA / "emoji-styles" / "labels.csv").open())
    number = {row["name"]: int(row["index"]) for row in rows}
    images = []
    for style in STYLES:
        sheet = np.asarray(Image.open(DATA / "emoji-styles" / f"{style}.webp").convert("RGB"))
        side = sheet.shape[1] // 40
        for name in CLASSES:
            top, left = number[name] // 40 * side, number[name] % 40 * side
            images.append(torch.from_numpy(sheet[top : top + side, left : left + side].copy()))
    pixels = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return LabelledPictures(pixels, torch.arange(len(images)) % len(CLASSES), CLASSES)


def moved(pictures: LabelledPictures) -> LabelledPictures:
    """Also mirrored, and moved by one pixel each way on white."""
    padded = torch.nn.functional.pad(pictures.images, (1, 1, 1, 1), value=1.0)
    side = pictures.images.shape[-1]
    shifted = [padded[:, :, y : y + side, x : x + side] for y in range(3) for x in range(3)]
    images = torch.cat([part for one in shifted for part in (one, one.flip(-1))])
    return LabelledPictures(images, pictures.labels.repeat(18), pictures.class_names)


def network(device: str) -> torch.nn.Module:
    params = ClassConditionalParams(
        architecture="dit", channels=3, out_channels=3, size=32, patch=4, width=64, depth=5, heads=4,
        ffn_ratio=2.0, classes=len(CLASSES), adaln=True, tokens=False,
    )  # fmt: skip
    model = build(params, ConditionPlan(rank=8), 0).to(device)
    if device == "cuda":
        set_form(model, "fused")
    return model


def set_form(model: torch.nn.Module, form: str) -> None:
    """How depthwise convolutions compute: "fused" is for training on a GPU."""
    for names in model.layers.values():  # type: ignore[union-attr,operator]
        for name in names:
            layer = model.layer(name)  # type: ignore[operator]
            layer.form = form if layer.static.weight.shape[-1] == 3 else "split"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--drawn", type=int, default=960)
    parser.add_argument("--output", type=Path, default=Path("outputs/emoji-classes"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plain, train = (on(part, options.device) for part in (tiles(), moved(tiles())))
    model = network(options.device)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train.labels), (128,), generator=generator, device=options.device)
        level = torch.sigmoid(torch.randn(128, generator=generator, device=options.device))
        noise = torch.randn(128, 3, 32, 32, generator=generator, device=options.device)
        dropped = torch.rand(128, generator=generator, device=options.device) < 0.1
        labels = train.labels[rows].masked_fill(dropped, len(CLASSES))
        return flow_error(model, train.images[rows], labels, level, noise).mean()

    trainee = Trainee(
        name="classes", model=model, loss=loss, groups=parameter_groups(model, 0.01), rate=2e-3,
        steps=options.steps, warmup=min(200, options.steps // 2), final_rate=0.01, seed=0,
    )  # fmt: skip
    judge = judge_trainee(train, options.judge_steps)
    began = time.monotonic()
    train_side_by_side([trainee, judge])
    net = judge.model
    assert isinstance(net, Judge)
    with torch.no_grad():
        right = float((net(plain.images).argmax(1) == plain.labels).float().mean())
        labels = torch.arange(len(CLASSES), device=options.device).repeat(4)
        sheet = draw(model, labels, (3, 32, 32), len(CLASSES))
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - began, 1),
        "flow_error": validation_error(model, plain),
        "drawn": judged(model, net, train, options.drawn),
        "judge_on_tiles": right,
        "pixels_from": distances(sheet, labels, train),
    }
    print(figures)
    record("class_model", {"steps": options.steps, "styles": STYLES, "classes": CLASSES, **figures})
    set_form(model, "split")
    save_folder(model.cpu().half(), options.output, CLASSES)
    levels = ((sheet + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    rows = [torch.cat(list(levels[first : first + 24]), 1) for first in range(0, len(levels), 24)]
    Image.fromarray(torch.cat(rows).numpy()).save(options.output / "sheet.png")


def distances(drawn: Tensor, labels: Tensor, train: LabelledPictures) -> dict[str, float]:
    """Mean root-mean-square distance to the nearest picture of the same class, and of any other."""
    gaps = torch.cdist(drawn.flatten(1), train.images.flatten(1)) / drawn[0].numel() ** 0.5
    same = labels[:, None] == train.labels[None]
    return {
        "same_class": float(gaps.masked_fill(~same, 9.0).amin(1).mean()),
        "another_class": float(gaps.masked_fill(same, 9.0).amin(1).mean()),
    }


def on(pictures: LabelledPictures, device: str) -> LabelledPictures:
    return LabelledPictures(pictures.images.to(device), pictures.labels.to(device), pictures.class_names)


if __name__ == "__main__":
    main()
