"""A pool of composed scenes, encoded ahead: the training set of the built-in model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.core.errors import FileError
from fewer.core.progress import Progress, SilentProgress, track
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.scenes.captions import captions_of, draw_captions
from fewer.generate.scenes.compose import Placement, Scene, SceneRenderer
from fewer.generate.scenes.split import Split
from fewer.generate.scenes.table import SceneTable, draw_table
from fewer.generate.scenes.vocabulary import Vocabulary
from fewer.generate.text.prompt import PromptEncoder
from fewer.generate.training.captions import caption_weights
from fewer.generate.training.encoded import encode_captions
from fewer.generate.training.on_device import DeviceSet

__all__ = [
    "Vocabulary",
    "crops",
    "draw_scenes",
    "encode_pool",
    "encode_scenes",
    "scene_captions",
    "to_tensor",
]


PoolCaptions = tuple[list[str], np.ndarray, np.ndarray]


def draw_scenes(vocabulary: Vocabulary, count: int, split: Split, seed: int) -> list[Scene]:
    """Random scenes of one split. Raises `ConfigError` when the vocabulary has next to none of it."""
    return draw_table(vocabulary, count, split, seed).scenes()


def to_tensor(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]] | UInt8[np.ndarray, "batch height width 3"],
) -> Float[Tensor, "batch 3 height width"]:
    """Rendered pictures as a batch in [-1, 1]."""
    return signed(torch.from_numpy(np.stack(list(pictures))))


def signed(pictures: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Bytes to values in [-1, 1], channels last in memory."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(
    renderer: SceneRenderer, placed: Placement, count: int, side: int, generator: torch.Generator
) -> Float[Tensor, "count 3 side side"]:
    """Square cut-outs of random scenes, each touching a sprite: what the autoencoder trains on.

    A plain background teaches nothing, and a cut-out costs a fraction of a whole scene. All randomness is
    drawn on the CPU, so that a seed means the same on every device.
    """
    rows = torch.randint(len(placed), (count,), generator=generator)
    which, where = torch.rand(count, generator=generator), torch.rand(2, count, generator=generator) - 0.5
    device = renderer.device
    chosen = placed.rows(rows.to(device))
    objects = (chosen.size > 0).sum(dim=1)
    slot = (which.to(device) * objects).long()[:, None]
    size = chosen.size.gather(1, slot)[:, 0]
    corner = [
        (edge.gather(1, slot)[:, 0] + size / 2 + share * size - side / 2).round().long()
        for edge, share in zip((chosen.top, chosen.left), where.to(device), strict=True)
    ]
    lengths = (renderer.height, renderer.width)
    top, left = (edge.clamp(0, length - side) for edge, length in zip(corner, lengths, strict=True))
    return signed(renderer.render(chosen, top, left, side))


def encode_scenes(
    placed: Placement,
    renderer: SceneRenderer,
    autoencoder: DCAutoencoder,
    progress: Progress | None = None,
    batch: int = 32,
) -> Float[Tensor, "scenes channels lat_h lat_w"]:
    """Latents of every scene, on the autoencoder's device; in bf16 on a GPU."""
    device = next(autoencoder.parameters()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    parts: list[Tensor] = []
    chunks = torch.arange(len(placed), device=device).split(batch)
    for rows in track(chunks, progress or SilentProgress(), "scenes", len(chunks)):
        pixels = signed(renderer.render(placed.rows(rows)))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), torch.no_grad():
            found = autoencoder.encoder(pixels)
        parts.append(autoencoder.scale(found.float()).to(dtype))
    return torch.cat(parts)


def scene_captions(
    scenes: list[Scene], per_scene: int, generator: torch.Generator
) -> list[list[tuple[str, float]]]:
    """Up to `per_scene` random captions of each scene with their scores."""
    chosen = []
    for scene in scenes:
        every = captions_of(scene)
        order = torch.randperm(len(every), generator=generator)[:per_scene].tolist()
        chosen.append([(every[place].text, every[place].score) for place in order])
    return chosen


def encode_pool(
    table: SceneTable,
    renderer: SceneRenderer,
    autoencoder: DCAutoencoder,
    encoder: PromptEncoder,
    captions_per_scene: int,
    seed: int,
    progress: Progress | None = None,
    captions: PoolCaptions | None = None,
) -> DeviceSet:
    """Pictures and captions of all scenes, encoded where the networks are; each caption is read once.

    `captions` are those of `pool_captions`, if they have been drawn already.
    """
    gpu = renderer.device.type == "cuda"
    latents = encode_scenes(table.placed(renderer), renderer, autoencoder, progress, 256 if gpu else 32)
    texts, rows, chances = captions or pool_captions(table, captions_per_scene, seed)
    text = encode_captions(encoder, texts, progress, batch=1024 if gpu else 64, device=renderer.device)
    return DeviceSet(
        latents,
        torch.from_numpy(rows).to(renderer.device),
        torch.from_numpy(chances).float().to(renderer.device),
        text.tokens,
        text.mask,
    )


def pool_captions(table: SceneTable, captions_per_scene: int, seed: int) -> PoolCaptions:
    """Captions of all scenes: different texts, the empty one first; texts of each scene; their chances."""
    random = np.random.default_rng([seed, 7])
    row_of: dict[str, int] = {"": 0}
    rows = np.zeros((len(table), captions_per_scene), dtype=np.int64)
    chances = np.zeros((len(table), captions_per_scene))
    for number, scene in enumerate(table.scenes()):
        captions = draw_captions(scene, captions_per_scene, random)
        found = [row_of.setdefault(caption.text, len(row_of)) for caption in captions]
        rows[number, : len(found)] = found
        chances[number, : len(found)] = caption_weights([caption.score for caption in captions])
    return list(row_of), rows, chances


def save_pool(path: Path, pool: DeviceSet) -> None:
    """One safetensors file, so that a resumed run on a CPU need not encode again."""
    write_tensors(path, pool.columns())


def load_pool(path: Path, device: torch.device) -> DeviceSet:
    """Inverse of `save_pool`. Raises `FileError` for a file that is missing, damaged or something else."""
    found = read_tensors(path, device)
    try:
        return DeviceSet(**found)
    except TypeError as error:
        raise FileError(f"{path.name!r} is no encoded pool; delete it and encode again") from error
