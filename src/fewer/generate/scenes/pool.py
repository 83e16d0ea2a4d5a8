"""A pool of composed scenes, encoded ahead: the training set of the built-in model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError
from fewer.core.progress import Progress, SilentProgress, track
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.scenes.captions import captions_of
from fewer.generate.scenes.compose import Scene, SceneRenderer, draw_scene
from fewer.generate.scenes.split import Split, split_of

_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which concepts and styles scenes are drawn from."""

    words: tuple[str, ...]
    styles: tuple[str, ...]


def draw_scenes(vocabulary: Vocabulary, count: int, split: Split, seed: int) -> list[Scene]:
    """Random scenes of one split. Raises `ConfigError` when the vocabulary has next to none of it."""
    random = np.random.default_rng([seed, ("train", "validation", "held-out").index(split)])
    found: list[Scene] = []
    missed = 0
    while len(found) < count:
        scene = draw_scene(vocabulary.words, vocabulary.styles, random)
        if split_of(scene) == split:
            found.append(scene)
            missed = 0
        elif (missed := missed + 1) > _ATTEMPTS:
            raise ConfigError(
                f"{len(vocabulary.words)} concepts have hardly any {split} scenes; use more concepts"
            )
    return found


def to_tensor(pictures: list[np.ndarray]) -> Float[Tensor, "batch 3 height width"]:
    """Rendered pictures as a batch in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(
    renderer: SceneRenderer, vocabulary: Vocabulary, count: int, side: int, generator: torch.Generator
) -> Float[Tensor, "count 3 side side"]:
    """Square cut-outs of training scenes, each touching a sprite: what the autoencoder trains on.

    A plain background teaches nothing, and a cut-out costs a fraction of a whole scene.
    """
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    cut: list[np.ndarray] = []
    while len(cut) < count:
        scene = draw_scene(vocabulary.words, vocabulary.styles, random)
        if split_of(scene) != "train":
            continue
        thing = scene.objects[random.integers(len(scene.objects))]
        reach = thing.side / 2
        corner = [
            int(
                np.clip(
                    (middle + random.uniform(-reach, reach)) * renderer.side - side / 2,
                    0,
                    renderer.side - side,
                )
            )
            for middle in (thing.down, thing.across)
        ]
        cut.append(renderer(scene)[corner[0] : corner[0] + side, corner[1] : corner[1] + side])
    return to_tensor(cut)


def encode_scenes(
    scenes: list[Scene],
    renderer: SceneRenderer,
    autoencoder: DCAutoencoder,
    progress: Progress | None = None,
    batch: int = 32,
) -> list[Float[Tensor, "channels lat_h lat_w"]]:
    """Latents of every scene, on the CPU."""
    parameter = next(autoencoder.parameters())
    latents: list[Tensor] = []
    chunks = list(_chunks(scenes, batch))
    for chunk in track(chunks, progress or SilentProgress(), "scenes", len(chunks)):
        pixels = to_tensor([renderer(scene) for scene in chunk])
        found = autoencoder.encode(pixels.to(parameter.device, parameter.dtype), tile=None)
        latents.extend(found.float().cpu())
    return latents


def scene_captions(
    scenes: list[Scene], per_scene: int, generator: torch.Generator
) -> list[list[tuple[str, float]]]:
    """Up to `per_scene` random captions of each scene with their scores.

    Fewer different captions mean fewer passes through the text encoder; a large pool has them all anyway.
    """
    chosen = []
    for scene in scenes:
        every = captions_of(scene)
        order = torch.randperm(len(every), generator=generator)[:per_scene].tolist()
        chosen.append([(every[place].text, every[place].score) for place in order])
    return chosen


def _chunks(scenes: list[Scene], size: int) -> Iterator[list[Scene]]:
    for start in range(0, len(scenes), size):
        yield scenes[start : start + size]
