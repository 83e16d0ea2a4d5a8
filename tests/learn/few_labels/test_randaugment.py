"""Every batched operation against Pillow, image by image, exactly."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.core.errors import ConfigError
from fewer.learn.few_labels.randaugment import (
    COLOUR_POOL,
    GREY_POOL,
    RANGES,
    affine_matrices,
    apply_operation,
    apply_picked,
    rand_augment,
)
from tests.learn.few_labels.one_by_one import pillow


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, smooth ramps, a constant and few grey levels, so that every branch is met."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)
    ramp = torch.linspace(30, 200, width).to(torch.uint8).expand(channels, height, width)
    images[0], images[1 % count] = ramp, 77
    images[2 % count] = images[2 % count] // 100 * 90
    return images


def each(name: str, images: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    out = []
    for image, v in zip(images, magnitudes.tolist(), strict=True):
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        result = np.asarray(pillow(name, picture, v))
        out.append(torch.from_numpy(result.reshape(array.shape).copy()).permute(2, 0, 1))
    return torch.stack(out)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 5, 123), (1, 1, 7)])
def test_exactly_what_pillow_gives(name: str, channels: int, height: int, width: int) -> None:
    images = pictures(24, channels, height, width)
    low, high = RANGES[name]
    shares = torch.linspace(0, 1, 24, dtype=torch.float64)
    magnitudes = low + (high - low) * shares
    assert torch.equal(apply_operation(name, images, magnitudes), each(name, images, magnitudes))


def test_a_mixed_round_is_each_operation_by_itself() -> None:
    images = pictures(60, 3, 13, 17, seed=1)
    generator = torch.Generator().manual_seed(2)
    picks = torch.randint(len(COLOUR_POOL), (60,), generator=generator)
    shares = torch.rand(60, generator=generator, dtype=torch.float64)
    mixed = apply_picked(images, picks, shares, COLOUR_POOL)
    for i, pick in enumerate(picks.tolist()):
        name = COLOUR_POOL[pick]
        low, high = RANGES[name]
        v = low + (high - low) * shares[i : i + 1]
        assert torch.equal(mixed[i : i + 1], each(name, images[i : i + 1], v)), name


def test_seed_decides_and_images_differ() -> None:
    images = pictures(8, 1, 28, 28)
    images[:] = images[3].clone()
    first, again = (rand_augment(images, torch.Generator().manual_seed(5), GREY_POOL) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(image.flatten().tolist()) for image in first}) > 4


def test_identity_matrix_for_zero_magnitude() -> None:
    for name in ("rotate", "shear_x", "translate_y"):
        matrix = affine_matrices(name, torch.zeros(1, dtype=torch.float64), 9, 4)
        torch.testing.assert_close(matrix[0], torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float64))


def test_grey_pool_leaves_out_what_changes_the_meaning_of_grey() -> None:
    assert set(COLOUR_POOL) - set(GREY_POOL) == {"autocontrast", "colour", "posterize", "solarize"}


def test_unknown_operation() -> None:
    with pytest.raises(ConfigError, match="swirl"):
        rand_augment(pictures(3, 1, 4, 4), torch.Generator(), ("swirl",))
