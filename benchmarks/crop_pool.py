"""Crops of data/photos drawn beforehand, as bytes: decoding and cutting would keep a GPU waiting.

python benchmarks/crop_pool.py SIDE EACH FOLDER     draws EACH crops of every picture and keeps them in FOLDER
"""
# bench: by hand: draws the crops that another script reads

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewer.core.files import read_image
from fewer.generate.autoencoder.crops import MAX_PIXELS, PictureFolder

PHOTOS = Path(__file__).parents[1] / "data" / "photos"


def crop_pool(
    side: int,
    each: int,
    seed: int,
    held_out: bool = False,
    workers: int = 1,
    folder: Path | None = None,
    halvings: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(bytes of shape (pictures * each, 3, side, side), number of the picture of each), in mixed order.

    A crop shows the picture at its own size or halved, up to `halvings` times where it is large enough.
    """
    kept = folder and folder / f"crops-{side}-{each}-{seed}-{int(held_out)}-{halvings}.npz"
    if kept and kept.exists():
        with np.load(kept) as found:
            return torch.from_numpy(found["crops"]), torch.from_numpy(found["numbers"])
    pictures = PictureFolder(PHOTOS)
    paths = pictures.held_out if held_out else pictures.train
    tasks = [(path, side, each, 1000 * seed + number, halvings) for number, path in enumerate(paths)]
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
            parts = list(processes.map(_crops_of, tasks))
    else:
        parts = list(map(_crops_of, tasks))
    numbers = np.repeat(np.arange(len(paths)), each)
    order = np.random.default_rng(seed).permutation(len(numbers))
    crops, numbers = np.concatenate(parts)[order], numbers[order]
    if kept:  # whole or not at all: others may be waiting for it
        part = kept.with_suffix(".part.npz")
        np.savez(part, crops=crops, numbers=numbers)
        part.replace(kept)
    return torch.from_numpy(crops), torch.from_numpy(numbers)


def _crops_of(task: tuple[Path, int, int, int, int]) -> np.ndarray:
    """With one halving the crops that `PictureFolder.crop` would cut, by slices of the decoded picture."""
    path, side, each, seed, halvings = task
    picture, generator = read_image(path, max_pixels=MAX_PIXELS), torch.Generator().manual_seed(seed)
    shortest, pixels = min(picture.size), np.asarray(picture)
    crops = np.empty((each, 3, side, side), dtype=np.uint8)
    for number in range(each):
        _, scale, row, column, mirror = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        windows = [side * 2**k for k in range(halvings, -1, -1) if side * 2**k <= shortest] or [shortest]
        window = windows[int(scale * len(windows))]
        left = int(column * (picture.width - window + 1))
        top = int(row * (picture.height - window + 1))
        crop = pixels[top : top + window, left : left + window]
        while crop.shape[0] > max(side, window // 2**halvings):
            four = crop.astype(np.uint16)
            rows = four[::2] + four[1::2]
            crop = ((rows[:, ::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)
        if window < side:
            crop = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC))
        crops[number] = (crop[:, ::-1] if mirror < 0.5 else crop).transpose(2, 0, 1)
    return crops


if __name__ == "__main__":
    crop_pool(int(sys.argv[1]), int(sys.argv[2]), seed=0, workers=12, folder=Path(sys.argv[3]))
    crop_pool(int(sys.argv[1]), 80, seed=99, held_out=True, workers=7, folder=Path(sys.argv[3]))
