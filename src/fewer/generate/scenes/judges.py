"""Judges of generated scenes: is what the caption says in the picture?

Colour, count and place are measured, not learned. Concept and style are told by a small network that has
seen rendered truth only, never a generated picture; its score on truth is reported beside every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.compact import compact, expand
from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.measures import as_bytes, background_colours, count_objects, places_of

CROP = 48
"""Side in pixels of what the network looks at."""
AROUND = 1.1
"""Side of a cut-out, in sides of the sprite."""


class SpriteJudge(nn.Module):
    """Concept and style of one sprite in a square cut-out."""

    def __init__(self, words: tuple[str, ...], styles: tuple[str, ...], width: int = 16) -> None:
        super().__init__()
        self.words = words
        self.styles = styles
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.concept = nn.Linear(8 * width, len(words))
        self.style = nn.Linear(8 * width, len(styles))

    def pooled(self, cutouts: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch features"]:
        """Mean and maximum of every feature: what both answers, and Fréchet distances, are made of."""
        found = self.features(cutouts)
        return torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1)

    def forward(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> tuple[Float[Tensor, "batch concepts"], Float[Tensor, "batch styles"]]:
        """Logits of concepts and styles, for pictures in [-1, 1]."""
        pooled = self.pooled(cutouts)
        return self.concept(pooled), self.style(pooled)

    def save(self, path: Path) -> None:
        """A byte a weight; words and styles are not in the file."""
        write_tensors(path, compact(self.state_dict()))

    @classmethod
    def load(cls, path: Path, words: tuple[str, ...], styles: tuple[str, ...]) -> "SpriteJudge":
        """The judge of these words and styles from a file of `save`, ready to judge."""
        tensors = expand(read_tensors(path), torch.float32)
        judge = cls(words, styles, len(tensors["features.0.weight"]))
        judge.load_state_dict(tensors)
        return judge.eval()


def cut_objects(
    pictures: Float[Tensor, "batch 3 height width"], scenes: Sequence[Scene]
) -> tuple[Float[Tensor, "objects 3 crop crop"], Int[Tensor, " objects"]]:
    """A cut-out at each place where a scene's object should be, and the number of the scene it is of."""
    cutouts, owners = [], []
    height, width = pictures.shape[-2:]
    for number, scene in enumerate(scenes):
        for thing in scene.objects:
            half = AROUND / 2 * thing.side * min(height, width)
            middles = ((thing.down * height, height), (thing.across * width, width))
            top, left = (int(max(0, round(middle - half))) for middle, _ in middles)
            bottom, right = (int(min(length, round(middle + half))) for middle, length in middles)
            cutouts.append(shrink(pictures[number : number + 1, :, top:bottom, left:right]))
            owners.append(number)
    return torch.cat(cutouts), torch.tensor(owners, device=pictures.device)


def shrink(cutouts: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 crop crop"]:
    """To the side that the network looks at."""
    return functional.interpolate(
        cutouts, size=(CROP, CROP), mode="bilinear", antialias=True, align_corners=False
    )


def judge_loss(
    judge: SpriteJudge,
    pictures: Float[Tensor, "batch 3 height width"],
    scenes: Sequence[Scene],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Cross-entropy of concept and style on rendered truth, blurred, shifted and made noisy at random."""
    cutouts, owners = cut_objects(pictures, scenes)
    concepts, styles = truth_of(judge, scenes)
    return cutout_loss(judge, cutouts, concepts, styles[owners], generator)


def cutout_loss(
    judge: SpriteJudge,
    cutouts: Float[Tensor, "objects 3 crop crop"],
    concepts: Int[Tensor, " objects"],
    styles: Int[Tensor, " objects"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The same for cut-outs; the generator lives on their device."""
    draw = {"generator": generator, "device": cutouts.device}
    amount = torch.rand(len(cutouts), 1, 1, 1, **draw)
    # Up to a sixth of the resolution: soft pictures are judged by what they show, not by their softness.
    coarse, down, across = (int(value) for value in torch.rand(3, **draw).mul(9).long().tolist())
    blurred = functional.interpolate(
        functional.avg_pool2d(cutouts, 2 + coarse % 5),
        size=(CROP, CROP),
        mode="bilinear",
        align_corners=False,
    )
    seen = cutouts + amount * (blurred - cutouts)
    seen = seen + 0.15 * torch.rand(len(seen), 1, 1, 1, **draw) * torch.randn(seen.shape, **draw)
    concept, style = judge(seen.roll((down - 4, across - 4), dims=(2, 3)))
    return functional.cross_entropy(concept, concepts) + functional.cross_entropy(style, styles)


def truth_of(
    judge: SpriteJudge, scenes: Sequence[Scene]
) -> tuple[Int[Tensor, " objects"], Int[Tensor, " scenes"]]:
    """Concept of every object and style of every scene, as the judge numbers them."""
    number = {word: place for place, word in enumerate(judge.words)}
    device = judge.concept.weight.device
    concepts = [number[word] for scene in scenes for word in scene.concepts]
    styles = [judge.styles.index(scene.style) for scene in scenes]
    return torch.tensor(concepts, device=device), torch.tensor(styles, device=device)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares between 0 and 1 of what was asked and is there; NaN where nothing was asked."""

    colour: float
    count: float
    left_right: float
    """Of single objects asked for on the left or right: the centroid is there."""
    above_below: float
    """The same of those asked for at the top or the bottom."""
    order: float
    """Of pairs: the first is more likely on the left than the second, or above it."""
    style: float
    identity: float
    """Of objects: the judge's first guess is the concept asked for."""
    identity_top5: float
    shuffled: float
    """The same as `identity` against other pictures' captions: should be chance."""
    chance: float
    pictures: int


@torch.no_grad()
def judge_pictures(
    judge: SpriteJudge, pictures: Float[Tensor, "batch 3 height width"], scenes: Sequence[Scene]
) -> Verdict:
    """All judgements of pictures in [-1, 1] that were made for these scenes' captions."""
    judge.eval()
    colours, counts, places = _measured(pictures)
    cutouts, owners = cut_objects(pictures.clamp(-1, 1), scenes)
    concept, style = judge(cutouts)
    concepts, styles = truth_of(judge, scenes)
    top5 = concept.topk(min(5, concept.shape[1]), dim=1).indices
    # Another picture's objects: rotate by half, so that no picture keeps its own.
    other = concepts.roll(len(concepts) // 2)
    beside = [i for i, scene in enumerate(scenes) if scene.place in ("left", "right")]
    stacked = [i for i, scene in enumerate(scenes) if scene.place in ("top", "bottom")]
    two = [i for i, scene in enumerate(scenes) if scene.arrangement in ("pair", "stack")]
    style_of_scene = torch.stack([style[owners == i].mean(dim=0) for i in range(len(scenes))])
    return Verdict(
        colour=_mean(colours[i] == scene.colour for i, scene in enumerate(scenes)),
        count=_mean(counts[i] == len(scene.objects) for i, scene in enumerate(scenes)),
        left_right=_mean(places[i] == scenes[i].place for i in beside),
        above_below=_mean(places[i] == scenes[i].place for i in stacked),
        order=_mean(_in_order(concept, owners, concepts, i) for i in two),
        style=_mean((style_of_scene.argmax(dim=1) == styles).tolist()),
        identity=_mean((top5[:, 0] == concepts).tolist()),
        identity_top5=_mean((top5 == concepts[:, None]).any(dim=1).tolist()),
        shuffled=_mean((top5[:, 0] == other).tolist()),
        chance=_mean((other == concepts).tolist()),
        pictures=len(scenes),
    )


def _measured(pictures: Float[Tensor, "batch 3 height width"]) -> tuple[list[str], list[int], list[str]]:
    colours: list[str] = []
    counts: list[int] = []
    places: list[str] = []
    for part in as_bytes(pictures).split(128):
        colours += background_colours(part)
        counts += count_objects(part)
        places += places_of(part)
    return colours, counts, places


def _in_order(concept: Tensor, owners: Tensor, concepts: Tensor, scene: int) -> bool:
    left, right = concept.log_softmax(dim=1)[owners == scene]
    first, second = concepts[owners == scene].tolist()
    return bool(left[first] + right[second] > left[second] + right[first])


def _mean(values: object) -> float:
    found = [float(value) for value in values]  # type: ignore[attr-defined]
    return sum(found) / len(found) if found else float("nan")
