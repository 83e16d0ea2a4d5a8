from typing import get_args

import pytest
import torch

from fewer.learn.distillation.augment import (
    Augmentation,
    OperationName,
    default_augmentations,
    draw_augmentation,
)

OPERATIONS = get_args(OperationName)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_draw_is_the_same_change_on_both_batches(operation: str) -> None:
    change = Augmentation(operation, torch.tensor([[0.3, 0.8, 0.1, 0.9]]))
    picture = torch.randn(1, 3, 9, 7)
    real, synthetic = change(picture.expand(5, -1, -1, -1)), change(picture)
    for row in real:
        torch.testing.assert_close(row, synthetic[0])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_is_differentiable(operation: str, channels: int) -> None:
    change = Augmentation(operation, torch.tensor([[0.31, 0.77, 0.1, 0.9], [0.6, 0.2, 0.5, 0.4]]))
    images = torch.randn(2, channels, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(change, (images,))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (6, 3, 28, 28), (4, 1, 123, 5)])
def test_shape_and_range_stay(operation: str, shape: tuple[int, ...]) -> None:
    change = draw_augmentation((operation,), 1, torch.Generator().manual_seed(3))
    images = torch.randn(shape)
    changed = change(images)
    assert changed.shape == images.shape
    assert torch.isfinite(changed).all()


def test_seeds_decide_and_no_names_change_nothing() -> None:
    images = torch.randn(4, 1, 8, 8)
    draws = [draw_augmentation(OPERATIONS, 4, torch.Generator().manual_seed(s))(images) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draw_augmentation((), 2, torch.Generator())(images) is images


def test_known_cases() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    flip = Augmentation("flip", torch.tensor([[0.1, 0, 0, 0]]))
    torch.testing.assert_close(flip(image), image.flip(3))
    brighter = Augmentation("brightness", torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(brighter(image), image + 0.5)
    still = Augmentation("rotate", torch.tensor([[0.5, 0, 0, 0]]))
    torch.testing.assert_close(still(image), image, atol=1e-5, rtol=1e-5)
    cut = Augmentation("cutout", torch.tensor([[0.5, 0.5, 0, 0]]))(torch.ones(1, 1, 8, 8))
    assert 16 <= int((cut == 0).sum()) <= 25
    shifted = Augmentation("crop", torch.tensor([[0.0, 0.5, 0, 0]]))(torch.ones(1, 1, 8, 8))
    assert torch.equal(shifted[0, 0, 0], torch.zeros(8)) and torch.equal(shifted[0, 0, 1:], torch.ones(7, 8))


def test_each_class_has_its_own_strength() -> None:
    change = Augmentation("brightness", torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    images = torch.zeros(2, 3, 1, 4, 4)
    changed = change.on_classes(images)
    assert torch.equal(changed[0], images[0] - 0.5) and torch.equal(changed[1], images[1] + 0.5)
    with pytest.raises(ValueError, match="shared"):
        change(torch.zeros(3, 1, 4, 4))


def test_grey_pictures_keep_their_colour_and_digits_their_sides() -> None:
    assert "saturation" not in default_augmentations(1)
    assert "flip" not in default_augmentations(3)
    assert "flip" in default_augmentations(1, flips=True)
