"""Judges of generated scenes: is what the caption says in the picture?

Colour, count and place are measured, not learned. Concept and style are told by a small network that has
seen rendered truth only, never a generated picture; its score on truth is reported beside every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from fewer.generate.scenes.compose import Scene
from fewer.generate.scenes.vocabulary import COLOURS

CROP = 48
"""Side in pixels of what the network looks at."""
_DIFFERENT = 40
_LEAST_AREA = 0.005


def background_colour(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """The named colour nearest to the median of the picture's border."""
    names = list(COLOURS)
    table = np.array([COLOURS[name] for name in names], dtype=np.float64)
    return names[int(np.square(table - _border_median(picture)).sum(axis=1).argmin())]


def _border_median(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "3"]:
    width = max(1, picture.shape[0] // 32)
    strips = (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:])
    return np.median(np.concatenate([strip.reshape(-1, 3) for strip in strips]), axis=0)


def foreground(picture: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    """Pixels that differ from the background in any channel."""
    return np.abs(picture.astype(np.float64) - _border_median(picture)).max(axis=2) > _DIFFERENT


def count_objects(picture: UInt8[np.ndarray, "height width 3"]) -> int:
    """Connected groups of foreground pixels of at least 0.5 % of the picture, small gaps closed."""
    mask = torch.from_numpy(foreground(picture))[None, None].float()
    reach = max(1, picture.shape[0] // 64)
    closed = functional.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)
    labels = closed * torch.arange(1, mask.numel() + 1, dtype=torch.float32).view_as(mask)
    while True:  # every pixel takes the largest label that it is connected with
        spread = functional.max_pool2d(labels, 3, stride=1, padding=1) * closed
        if torch.equal(spread, labels):
            break
        labels = spread
    sizes = labels[mask > 0].unique(return_counts=True)[1]
    return int((sizes >= _LEAST_AREA * mask.numel()).sum())


def place_of(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """ "left", "center" or "right": the third that holds the foreground's centroid ("center" if empty)."""
    columns = foreground(picture).sum(axis=0)
    if columns.sum() == 0:
        return "center"
    centre = (columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum() / len(columns)
    return "left" if centre < 0.4 else "right" if centre > 0.6 else "center"


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

    def forward(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> tuple[Float[Tensor, "batch concepts"], Float[Tensor, "batch styles"]]:
        """Logits of concepts and styles, for pictures in [-1, 1]."""
        found = self.features(cutouts)
        pooled = torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1)
        return self.concept(pooled), self.style(pooled)


def cut_objects(
    pictures: Float[Tensor, "batch 3 height width"], scenes: Sequence[Scene]
) -> tuple[Float[Tensor, "objects 3 crop crop"], Int[Tensor, " objects"]]:
    """A cut-out at each place where a scene's object should be, and the number of the scene it is of."""
    cutouts, owners = [], []
    side = pictures.shape[-1]
    for number, scene in enumerate(scenes):
        for thing in scene.objects:
            half = 0.55 * thing.side * side
            top, left = (int(max(0, round(middle * side - half))) for middle in (thing.down, thing.across))
            bottom, right = (
                int(min(side, round(middle * side + half))) for middle in (thing.down, thing.across)
            )
            part = pictures[number : number + 1, :, top:bottom, left:right]
            cutouts.append(
                functional.interpolate(
                    part, size=(CROP, CROP), mode="bilinear", antialias=True, align_corners=False
                )
            )
            owners.append(number)
    return torch.cat(cutouts), torch.tensor(owners)


def judge_loss(
    judge: SpriteJudge,
    pictures: Float[Tensor, "batch 3 height width"],
    scenes: Sequence[Scene],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Cross-entropy of concept and style on rendered truth, blurred, shifted and made noisy at random."""
    cutouts, owners = cut_objects(pictures, scenes)
    concepts, styles = truth_of(judge, scenes)
    amount = torch.rand(len(cutouts), 1, 1, 1, generator=generator)
    # Up to a sixth of the resolution: soft pictures are judged by what they show, not by their softness.
    coarse = int(torch.randint(2, 7, (), generator=generator))
    blurred = functional.interpolate(
        functional.avg_pool2d(cutouts, coarse), size=(CROP, CROP), mode="bilinear", align_corners=False
    )
    seen = cutouts + amount * (blurred - cutouts)
    seen = seen + 0.15 * torch.rand(len(seen), 1, 1, 1, generator=generator) * torch.randn(
        seen.shape, generator=generator
    )
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    concept, style = judge(seen.roll(shift, dims=(2, 3)))
    return functional.cross_entropy(concept, concepts) + functional.cross_entropy(style, styles[owners])


def truth_of(
    judge: SpriteJudge, scenes: Sequence[Scene]
) -> tuple[Int[Tensor, " objects"], Int[Tensor, " scenes"]]:
    """Concept of every object and style of every scene, as the judge numbers them."""
    concepts = [judge.words.index(word) for scene in scenes for word in scene.concepts]
    return torch.tensor(concepts), torch.tensor([judge.styles.index(scene.style) for scene in scenes])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares between 0 and 1 of what was asked and is there; NaN where nothing was asked."""

    colour: float
    count: float
    left_right: float
    """Of single objects asked for on the left or right: the centroid is there."""
    order: float
    """Of pairs: the first is more likely on the left than the second."""
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
    bytes_ = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    cutouts, owners = cut_objects(pictures.clamp(-1, 1), scenes)
    concept, style = judge(cutouts)
    concepts, styles = truth_of(judge, scenes)
    top5 = concept.topk(min(5, concept.shape[1]), dim=1).indices
    # Another picture's objects: rotate by half, so that no picture keeps its own.
    other = concepts.roll(len(concepts) // 2)
    placed = [i for i, scene in enumerate(scenes) if scene.place != "center"]
    style_of_scene = torch.stack([style[owners == i].mean(dim=0) for i in range(len(scenes))])
    return Verdict(
        colour=_mean(background_colour(bytes_[i]) == scene.colour for i, scene in enumerate(scenes)),
        count=_mean(count_objects(bytes_[i]) == len(scene.objects) for i, scene in enumerate(scenes)),
        left_right=_mean(place_of(bytes_[i]) == scenes[i].place for i in placed),
        order=_mean(
            _in_order(concept, owners, concepts, i) for i, s in enumerate(scenes) if s.arrangement == "pair"
        ),
        style=_mean((style_of_scene.argmax(dim=1) == styles).tolist()),
        identity=_mean((top5[:, 0] == concepts).tolist()),
        identity_top5=_mean((top5 == concepts[:, None]).any(dim=1).tolist()),
        shuffled=_mean((top5[:, 0] == other).tolist()),
        chance=_mean((other == concepts).tolist()),
        pictures=len(scenes),
    )


def _in_order(concept: Tensor, owners: Tensor, concepts: Tensor, scene: int) -> bool:
    left, right = concept.log_softmax(dim=1)[owners == scene]
    first, second = concepts[owners == scene].tolist()
    return bool(left[first] + right[second] > left[second] + right[first])


def _mean(values: object) -> float:
    found = [float(value) for value in values]  # type: ignore[attr-defined]
    return sum(found) / len(found) if found else float("nan")
