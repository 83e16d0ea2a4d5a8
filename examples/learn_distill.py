"""Two sites each distil their digits into two pictures per class, audit them, and merge the files."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from fewer.learn import DistilledSet, DistillPlan, LabelledImages, distill, merge
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.page import to_html
from fewer.learn.distillation.scores import score_distilled
from fewer.learn.distillation.training import Recipe


def bars(count: int, seed: int) -> LabelledImages:
    """A stand-in for a site's pictures: upright, lying and slanting bars in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 12, 12, 1, generator=generator) * 100
    for row, label in enumerate(labels.tolist()):
        place = 3 + int(torch.randint(6, (1,), generator=generator))
        for step in range(12):
            y, x = ((step, place), (place, step), (step, (step + place) % 12))[label]
            images[row, y, x] += 150
    return LabelledImages(images.to(torch.uint8), labels, ("upright", "lying", "slanting"))


def main() -> None:
    plan = DistillPlan(method="dm", iterations=40, real_batch=32, network=NetworkPlan(width=16))
    recipe = Recipe(epochs=60)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for site in range(2):
            made = distill(bars(300, seed=site), images_per_class=2, plan=plan)
            sheet = replace(made.datasheet, recipe=recipe, title=f"Bars of site {site}", licence="CC0-1.0")
            files.append(Path(folder) / f"site{site}.distilled.safetensors")
            replace(made, datasheet=sheet).save(files[-1])
        joined = merge([DistilledSet.load(file) for file in files])
        page = to_html(joined)
        score = score_distilled(joined, bars(120, seed=9), seeds=(0, 1))
        size = sum(file.stat().st_size for file in files)
    print(
        f"{len(joined)} pictures in {size:,} bytes teach a network {100 * score.accuracy:.0f} % of new bars"
    )
    print(f"their page has {len(page):,} characters and shows them all")


if __name__ == "__main__":
    main()
