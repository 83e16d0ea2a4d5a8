"""Eighty prompts in a stranger's words through the built-in model, as they are written and as they are read.

python benchmarks/free_prompts.py [--steps 2] [--half first|second|both] [--way written|read|both]
writes benchmarks/results/free_prompts.json (halves and ways that it held before stay). The prompts, each
with the names that a picture of it should hold, were written before any of them was drawn; the reader was
made with pictures of the first half (odd lines) in sight, and those of the second half unseen. The judge of
639 names looks at every group of foreground pixels and at all of them together: "right" is every name
wanted among its first guesses, "half" is some of them.
"""
# bench: cpu, 5 min:

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from builtin_gallery import sheet
from record import RESULTS, record
from scipy import ndimage

from fewer.generate import TextToImage
from fewer.generate.scenes.judges import AROUND, SpriteJudge, shrink
from fewer.generate.scenes.measures import foreground
from fewer.generate.scenes.presets import preset

HERE = Path(__file__).parent
LEAST = 0.005
"""Smallest group that is looked at, as a share of the picture."""


def wanted_names(line: str) -> list[tuple[set[str], int]]:
    """ "cat|dog*2,tree" -> two of cat or dog, and a tree."""
    found = []
    for part in filter(None, line.split(",")):
        names, _, count = part.partition("*")
        found.append((set(names.split("|")), int(count or 1)))
    return found


@torch.no_grad()
def guesses(judge: SpriteJudge, pixels: np.ndarray) -> list[str]:
    """What the judge sees in each group, largest first, and last in everything together."""
    mask = foreground(torch.from_numpy(pixels)[None])[0].numpy()
    labels, _ = ndimage.label(
        ndimage.binary_closing(np.pad(mask, 8), iterations=4)[8:-8, 8:-8], np.ones((3, 3))
    )
    boxes = [
        box
        for number, box in enumerate(ndimage.find_objects(labels), 1)
        if (labels[box] == number).sum() >= LEAST * mask.size
    ]
    boxes.sort(key=lambda box: -(box[0].stop - box[0].start) * (box[1].stop - box[1].start))
    boxes += ndimage.find_objects(mask.astype(int))
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    cutouts = []
    for rows, columns in boxes:
        half = AROUND / 2 * max(rows.stop - rows.start, columns.stop - columns.start)
        ends = [
            (int(max(0, (one.start + one.stop) / 2 - half)), round((one.start + one.stop) / 2 + half))
            for one in (rows, columns)
        ]
        cutouts.append(shrink(picture[:, :, ends[0][0] : ends[0][1], ends[1][0] : ends[1][1]]))
    return (
        [judge.words[index] for index in judge(torch.cat(cutouts))[0].argmax(dim=1).tolist()]
        if cutouts
        else []
    )


def verdict(seen: list[str], wanted: list[tuple[set[str], int]]) -> str:
    """ "right", "half" or "wrong"; "" where no name of the model's is wanted."""
    met = [min(sum(name in names for name in seen), count) / count for names, count in wanted]
    return "" if not wanted else "right" if min(met) == 1 else "half" if max(met) > 0 else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--half", choices=("first", "second", "both"), default="both")
    parser.add_argument("--way", choices=("written", "read", "both"), default="both")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--sheets", type=Path, help="folder for sheets of the pictures")
    options = parser.parse_args()
    emoji = preset("emoji")
    judge = SpriteJudge.load(
        HERE / "builtin_judge.safetensors", tuple((emoji.concepts or {}).values()), emoji.styles
    )
    pipe = TextToImage.load("default", device="cpu")
    lines = [line.split(" | ") for line in (HERE / "free_prompts.txt").read_text().splitlines()]
    figures: dict[str, object] = {}
    if (before := RESULTS / "free_prompts.json").exists():
        figures = {key: value for key, value in json.loads(before.read_text()).items() if " half, as " in key}
    figures |= {"steps": options.steps, "seed": options.seed}
    for number, half in enumerate(("first", "second")):
        if options.half not in (half, "both"):
            continue
        rows = lines[number::2]
        for way, as_written in (("written", True), ("read", False)):
            if options.way not in (way, "both"):
                continue
            drawn = [
                pipe(prompt, steps=options.steps, seed=options.seed, as_written=as_written).pictures[0]
                for prompt, _ in rows
            ]
            pixels = [np.array(picture.image) for picture in drawn]
            verdicts = [
                verdict(guesses(judge, one), wanted_names(names))
                for one, (_, names) in zip(pixels, rows, strict=True)
            ]
            counts = {word: verdicts.count(word) for word in ("right", "half", "wrong")}
            print(half, way, counts)
            told = [
                f"{prompt}: {picture.read or '='}: {word}"
                for (prompt, _), picture, word in zip(rows, drawn, verdicts, strict=True)
            ]
            figures[f"{half} half, as {way}"] = counts | {"each": told}
            if options.sheets is not None:
                options.sheets.mkdir(parents=True, exist_ok=True)
                tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
                sheet(tensor, told, 8, 150).save(options.sheets / f"free-{half}-{way}.png")
    record("free_prompts", figures)


if __name__ == "__main__":
    main()
