import numpy as np
import torch

from fewer.learn.few_labels.augment import cutout, reflected, strong_pool, strong_view, weak_view
from fewer.learn.few_labels.randaugment import COLOUR_POOL, GREY_POOL


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_reflected_positions_are_those_of_numpy() -> None:
    line = np.arange(9)
    padded = np.pad(line, 3, mode="reflect")
    assert reflected(torch.arange(-3, 12), 9).tolist() == padded.tolist()


def test_weak_views_are_windows_of_the_reflected_picture() -> None:
    images = torch.randint(0, 256, (40, 3, 16, 24), dtype=torch.uint8, generator=seeded(0))
    views = weak_view(images, seeded(1), flip=True)
    flipped = shifted = 0
    for image, view in zip(images.numpy(), views.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        windows = {
            (y, x, turn): padded[:, y : y + 16, x : x + 24][:, :, :: -1 if turn else 1]
            for y in range(5)
            for x in range(7)
            for turn in (False, True)
        }
        found = [key for key, window in windows.items() if np.array_equal(window, view)]
        assert found
        flipped += found[0][2]
        shifted += found[0][:2] != (2, 3)
    assert 8 < flipped < 32
    assert shifted > 30


def test_without_flip_nothing_is_mirrored() -> None:
    ramp = torch.arange(28, dtype=torch.uint8).expand(20, 1, 28, 28)
    views = weak_view(ramp, seeded(0), flip=False)
    assert (views[:, 0, 0, 14] > views[:, 0, 0, 10]).all()


def test_cutout_is_one_grey_square_of_at_most_half_the_side() -> None:
    views = cutout(torch.zeros(200, 3, 20, 20, dtype=torch.uint8), seeded(3))
    box = views[:, 0] == 125
    assert torch.equal(box, views[:, 2] == 114)
    assert torch.equal(views[:, 0] > 0, box)
    rows, columns = box.any(2).sum(1), box.any(1).sum(1)
    assert torch.equal(rows * columns, box.sum((1, 2)))
    assert rows.max() in (10, 11)
    assert (rows == 0).float().mean() < 0.15


def test_strong_views_repeat_with_their_seed() -> None:
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=seeded(0))
    first, again, other = (strong_view(images, seeded(s), GREY_POOL) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.uint8


def test_pool_follows_the_channels() -> None:
    assert strong_pool("auto", 1) == strong_pool("grey", 3) == GREY_POOL
    assert strong_pool("auto", 3) == strong_pool("colour", 1) == COLOUR_POOL
